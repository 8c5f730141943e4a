"""The command ``cocolvis``: build COCO+LVIS masks, and look at what was built."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import dataset_commands
from cli.building import MISSING, build_options, run_build, what_is_kept
from cli.display import BYTES, Progress, Size, print_json, print_table, progress, say
from cli.import_command import importing
from cli.listings import print_summary
from cli.options import Group, json_option, path_argument, path_option, source_options
from cocolvis.errors import DataError
from cocolvis.text import human_size

if TYPE_CHECKING:
    from cocolvis.downloads.official import Job


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="cocolvis")
def main() -> None:
    """Merge COCO-Stuff and LVIS annotations into the 1284-class COCO+LVIS masks, and look at them."""


@main.command(interrupted=what_is_kept)
@source_options()
@build_options(("embed", "path", "none"), 500)
@click.option(
    "--overlap",
    type=click.Choice(["first", "small-on-top"]),
    default="first",
    show_default=True,
    help="Which of two overlapping annotations of one source wins: the first in the file, or the smaller.",
)
@click.option("--compat", type=click.Choice(["essnet"]), help="Reproduce the published generator's masks, defects included.")
def build(coco, lvis, out, splits, limit, images, shard_size, decode, overlap, compat, **how) -> None:
    """Build the masks of both splits into HDF5 shards.

    Faults of single records are counted, listed and stored in dataset.json; they do not end the build.

    \b
    Example:
      cocolvis build --coco ~/coco --lvis ~/lvis --out ~/cocolvis --workers 8
    """
    from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
    from cocolvis.sources.pairing import Sources
    from cocolvis.vocabulary import coco_lvis

    splits = tuple(dict.fromkeys(splits))
    kept = {"limit": limit, "images": images, "shard_size": shard_size, "decode": decode}
    options = CocoLvisOptions(splits=splits, overlap=overlap, compat=compat, **kept)

    def make_plan(show: Progress) -> CocoLvisPlan:
        return CocoLvisPlan.make(Sources(coco, lvis, coco_lvis(), show.line, show.phase), options)

    run_build("build", make_plan, out, **how)


@main.command(interrupted="the shards are as they were; the same command begins again")
@path_argument("dir")
@click.option("--allow-missing", is_flag=True, help=MISSING)
@json_option
def join(dir, allow_missing, as_json) -> None:
    """Complete a data set whose shards were built in parts with `build --shard I/N`.

    \b
    Example:
      cocolvis join ~/cocolvis
    """
    from cocolvis.building.build import join as complete
    from cocolvis.storage.dataset import Dataset

    with progress("join", "shards") as show:
        complete(dir, show.line, show.phase, allow_missing=allow_missing)
    print_summary(Dataset.open(dir), as_json)


@main.command(interrupted="nothing was written")
@path_option("--out", required=True, help="Folder to write coco/ and lvis/ to.")
@click.option("--images", type=int, default=120, show_default=True, help="Images in both splits together.")
@click.option("--classes", type=int, default=120, show_default=True, help="Classes that occur, of the 1284.")
@click.option("--size", type=int, default=96, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed writes the same bytes.")
def sample(out, **settings) -> None:
    """Generate a COCO + LVIS tree with procedural pictures, to try everything without a download.

    \b
    Example:
      cocolvis sample --out sample && cocolvis build --coco sample/coco --lvis sample/lvis --out data
    """
    from cocolvis.sample.writer import write_sample

    with progress("sample") as show:
        write_sample(out, progress=show, **settings)
    say(f"Build it with `cocolvis build --coco {out}/coco --lvis {out}/lvis --out DIR`.")


@main.command(interrupted="what came is kept; the same command goes on there")
@path_option("--out", required=True, help="Folder to write coco/ and lvis/ to.")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(["train2017", "val2017", "stuff", "lvis-train", "lvis-val"]),
    help="Fetch only this file; may be given several times. Default: all five.",
)
@click.option("--mirror", metavar="URL", help="Fetch URL/train2017.zip and so on instead of the official addresses.")
@click.option("--yes", is_flag=True, help="Fetch without asking.")
@json_option
def download(out, names, mirror, yes, as_json) -> None:
    """Fetch the official COCO, COCO-Stuff and LVIS archives, 21 GB in all.

    Says first what is there and what is left to fetch. Started again, it goes on where it was interrupted.

    \b
    Example:
      cocolvis download --out ~/data && cocolvis build --coco ~/data/coco --lvis ~/data/lvis --out ~/cocolvis
    """
    from msgspec.structs import asdict

    from cocolvis.downloads import official as fetcher

    jobs = fetcher.plan(out, names, mirror)
    _print_plan(out, jobs, fetcher.free_bytes(out))
    fetcher.check_disk(out, jobs)
    if any(job.left for job in jobs) and not yes:
        if not sys.stdin.isatty():
            raise DataError("nothing was fetched: stdin is no terminal to ask on; to fetch without being asked add --yes")
        try:
            wanted = click.confirm("Fetch what is left?", err=True)
        except click.Abort:
            raise KeyboardInterrupt from None
        if not wanted:
            say("nothing was fetched", err=True)
            raise click.exceptions.Exit(1)
    with progress("download", BYTES) as show:
        records = fetcher.download(out, names, mirror, progress=show, note=show.line, phase=show.phase)
    if as_json:
        return print_json({"out": str(out), "files": [asdict(record) for record in records]})
    print_table(("file", "size", "SHA-256"), [(record.file, Size(record.bytes), record.sha256) for record in records])
    say()
    say(f"The list is kept in {out / fetcher.RECORD}.")
    say(f"Build with `cocolvis build --coco {out / 'coco'} --lvis {out / 'lvis'} --out DIR`.")


def _print_plan(out: Path, jobs: "list[Job]", free: int) -> None:
    """What a download will cost, on stderr: stdout is for what came."""
    rows = [(job.remote.file, job.size, job.have, job.left, job.state) for job in jobs]
    total = ("total", *(sum(row[column] for row in rows) for column in (1, 2, 3)), "")
    shown = [(row[0], *map(Size, row[1:4]), row[4]) for row in (*rows, total)]
    print_table(("file", "size", "there", "left", ""), shown, err=True)
    say(err=True)
    say(f"{out}: {human_size(total[3])} are left to fetch; the disk has {human_size(free)} free", err=True)


for command in (importing, *dataset_commands.COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()
