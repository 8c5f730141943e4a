"""``cocolvis build``: the COCO+LVIS masks as HDF5 shards."""

from pathlib import Path
from typing import Any

import click

from cli.cocolvis.creation.options import build_options
from cli.cocolvis.creation.run import run_build, what_is_kept
from cli.commands import command
from cli.display import Progress
from cli.options import source_options


@command(interrupted=what_is_kept)
@source_options()
@build_options(("embed", "path", "none"), 500)
@click.option(
    "--overlap",
    type=click.Choice(["first", "small-on-top"]),
    default="first",
    show_default=True,
    help="Which of two overlapping annotations of one source wins: the first in the file, or the smaller one.",
)
@click.option("--compat", type=click.Choice(["essnet"]), help="Reproduce the masks of the published generator, including bugs.")
def build(
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
    out: Path,
    splits: tuple[str, ...],
    limit: int | None,
    images: str,
    shard_size: int,
    decode: bool,
    overlap: str,
    compat: str | None,
    **how: Any,
) -> None:
    """Build the masks of both splits into HDF5 shards.

    Faults of single records are counted, listed and stored in dataset.json; they do not stop the build.

    \b
    Example:
      cocolvis build --coco ~/coco --lvis ~/lvis --out ~/cocolvis --workers 8
    """
    from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
    from cocolvis.sources.inputs import Sources
    from cocolvis.vocabulary import coco_lvis

    splits = tuple(dict.fromkeys(splits))
    stored: dict[str, Any] = {"images": images, "shard_size": shard_size, "decode": decode}
    options = CocoLvisOptions(splits=splits, limit=limit, overlap=overlap, compat=compat, **stored)

    def make_plan(show: Progress) -> CocoLvisPlan:
        return CocoLvisPlan.make(Sources(coco, lvis, coco_lvis(), show.line, show.phase), options)

    run_build("build", make_plan, out, **how)
