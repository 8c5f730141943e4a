"""``cocolvis download``: the official archives."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import command
from cli.display import BYTES, Size, print_json, print_table, progress, say, shell
from cli.options import json_option, path_option
from cocolvis.errors import DataError
from cocolvis.text import human_size

if TYPE_CHECKING:
    from cocolvis.downloads.official import Job


@command(interrupted="what was fetched is kept; the same command continues from there")
@path_option("--out", required=True, help="Folder to write coco/ and lvis/ to.")
@click.option(
    "--only",
    "names",
    multiple=True,
    type=click.Choice(["train2017", "val2017", "stuff", "lvis-train", "lvis-val"]),
    help="Fetch only this file; may be repeated. Default: all five.",
)
@click.option("--mirror", metavar="URL", help="Fetch URL/train2017.zip and so on instead of the official addresses.")
@click.option("--yes", is_flag=True, help="Fetch without asking.")
@json_option
def download(out: Path, names: tuple[str, ...], mirror: str | None, yes: bool, as_json: bool) -> None:
    """Fetch the official COCO, COCO-Stuff and LVIS archives, 21 GB in all.

    Before fetching, prints what is there and what is left to fetch. An interrupted download continues where it stopped.

    \b
    Example:
      cocolvis download --out ~/data && cocolvis build --coco ~/data/coco --lvis ~/data/lvis --out ~/cocolvis
    """
    from msgspec.structs import asdict

    from cocolvis.downloads import official

    jobs = official.plan(out, names, mirror)
    _print_plan(out, jobs, official.free_bytes(out))
    official.check_disk(out, jobs)
    if not yes and any(job.left for job in jobs):
        _ask()
    with progress("download", BYTES) as show:
        records = official.download(out, names, mirror, progress=show, announce=show.line, phase=show.phase)
    if as_json:
        print_json({"out": str(out), "files": [asdict(record) for record in records]})
        return
    print_table(("file", "size", "SHA-256"), [(record.file, Size(record.bytes), record.sha256) for record in records])
    say()
    say(f"This list is stored in {out / official.RECORD}.")
    say(f"Build with {shell('cocolvis', 'build', '--coco', out / 'coco', '--lvis', out / 'lvis', '--out', 'DIR')}.")


def _print_plan(out: Path, jobs: "Sequence[Job]", free: int) -> None:
    """Print to stderr what is left to fetch; stdout is for the result."""
    sizes = [(job.size, job.have, job.left) for job in jobs]
    *_, left = totals = [sum(column) for column in zip(*sizes, strict=True)]
    rows = [(job.archive.file, *map(Size, row), job.state) for job, row in zip(jobs, sizes, strict=True)]
    print_table(("file", "size", "there", "left", ""), [*rows, ("total", *map(Size, totals), "")], err=True)
    say(err=True)
    say(f"{out}: {human_size(left)} are left to fetch; the disk has {human_size(free)} free", err=True)


def _ask() -> None:
    """Ask whether to fetch, and end the command with exit code 1 if the answer is no."""
    if not sys.stdin.isatty():
        raise DataError("nothing was fetched: stdin is not a terminal, so the command cannot ask; add --yes to fetch anyway")
    try:
        wanted = click.confirm("Fetch what is left?", err=True)
    except click.Abort:
        raise KeyboardInterrupt from None
    if not wanted:
        say("nothing was fetched", err=True)
        raise click.exceptions.Exit(1)
