"""The command ``cocolvis``: commands that create data sets, and commands that inspect them, one module each."""

import click

from cli.cocolvis.creation import build, download, import_, join, sample
from cli.cocolvis.inspection import diff, export, images, info, show, stats, verify, view, vocab, why
from cli.commands import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="cocolvis")
def main() -> None:
    """Merge COCO-Stuff and LVIS annotations into the 1284-class COCO+LVIS masks, and inspect them."""


for command in (
    sample.sample,
    download.download,
    build.build,
    join.join,
    import_.importing,
    info.info,
    vocab.vocab,
    images.images,
    stats.stats,
    verify.verify,
    diff.diff,
    export.export,
    view.view,
    show.show,
    why.why,
):
    main.add_command(command)
