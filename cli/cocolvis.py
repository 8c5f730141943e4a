"""The command ``cocolvis``: build COCO+LVIS masks, and look at what was built."""

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli import dataset_commands
from cli.building import MISSING, build_options, run_build
from cli.import_command import importing
from cli.listings import print_summary
from cli.options import Group, json_option, path_argument, path_option, print_json, print_table, progress, source_options
from cocolvis.errors import DataError

if TYPE_CHECKING:
    from cocolvis.download import Job


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="cocolvis")
def main() -> None:
    """Merge COCO-Stuff and LVIS annotations into the 1284-class COCO+LVIS masks, and look at them."""


@main.command()
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
    from cocolvis.merge_task import BuildOptions
    from cocolvis.plan import Plan
    from cocolvis.sources import Sources
    from cocolvis.vocabulary import coco_lvis

    splits = tuple(dict.fromkeys(splits))
    kept = {"limit": limit, "images": images, "shard_size": shard_size, "decode": decode}
    options = BuildOptions(splits=splits, overlap=overlap, compat=compat, **kept)
    run_build("build", lambda: Plan.make(Sources(coco, lvis, coco_lvis()), options), out, **how)


@main.command()
@path_argument("dir")
@click.option("--allow-missing", is_flag=True, help=MISSING)
@json_option
def join(dir, allow_missing, as_json) -> None:
    """Complete a data set whose shards were built in parts with `build --shard I/N`.

    \b
    Example:
      cocolvis join ~/cocolvis
    """
    from cocolvis.build import join as complete
    from cocolvis.dataset import Dataset

    complete(dir, partial(click.echo, err=True), allow_missing=allow_missing)
    print_summary(Dataset.open(dir), as_json)


@main.command()
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
    from cocolvis.sample import write_sample

    with progress("sample") as show:
        write_sample(out, progress=show, **settings)
    click.echo(f"Build it with `cocolvis build --coco {out}/coco --lvis {out}/lvis --out DIR`.")


@main.command()
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

    from cocolvis import download as fetcher

    jobs = fetcher.plan(out, names, mirror)
    _print_plan(out, jobs, fetcher.free_bytes(out))
    fetcher.check_disk(out, jobs)
    if any(job.left for job in jobs) and not yes:
        if not sys.stdin.isatty():
            raise DataError("nothing was fetched: stdin is no terminal to ask on; to fetch without being asked add --yes")
        click.confirm("Fetch what is left?", abort=True, err=True)
    try:
        with progress("download", "MB") as show:
            records = fetcher.download(
                out,
                names,
                mirror,
                progress=lambda done, total: show(done // 10**6, total // 10**6),
                note=lambda line: click.echo(line, err=True),
            )
    except KeyboardInterrupt:
        click.echo("interrupted; what came is kept; the same command goes on there", err=True)
        raise click.exceptions.Exit(130) from None
    if as_json:
        return print_json({"out": str(out), "files": [asdict(record) for record in records]})
    print_table(("file", "bytes", "SHA-256"), [(record.file, record.bytes, record.sha256) for record in records])
    click.echo(f"\nThe list is kept in {out / fetcher.RECORD}.")
    click.echo(f"Build with `cocolvis build --coco {out / 'coco'} --lvis {out / 'lvis'} --out DIR`.")


def _print_plan(out: Path, jobs: "list[Job]", free: int) -> None:
    """What a download will cost, on stderr: stdout is for what came."""
    rows = [(job.remote.file, *(round(size / 1e6) for size in (job.size, job.have, job.left)), job.state) for job in jobs]
    total = ("total", *(sum(row[column] for row in rows) for column in (1, 2, 3)), "")
    with redirect_stdout(sys.stderr):
        print_table(("file", "MB", "there", "left", ""), [*rows, total])
    click.echo(f"\n{out}: {total[3]:,} MB are left to fetch; the disk has {free / 1e6:,.0f} MB free", err=True)


for command in (importing, *dataset_commands.COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()
