"""What `cocolvis build` and `cocolvis import` share: the options of a build, how it is run, and what is said at its end."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.display import Progress, progress, say
from cli.listings import print_summary
from cli.options import cores, json_option, path_option

if TYPE_CHECKING:
    from cocolvis.building.shard_plan import ShardPlan

_IMAGES = {"embed": "the pictures' bytes", "path": "only their paths", "none": "masks alone (then no image folder is needed)"}


MISSING = "Leave out what cannot be read, however much it is, also where a disk is to blame."


def what_is_kept(given: dict[str, Any]) -> str:
    """What is true of the folder of a build that was interrupted, and how to go on."""
    out = given["out"]
    if (out / "dataset.json").exists():
        return f"the data set in {out} is as it was"
    if not (out / ".build").exists():
        return f"nothing was written to {out} yet"
    same = "the same command" if given["part"] else "--resume instead of --overwrite" if given["overwrite"] else "--resume"
    return f"finished shards are kept: go on with {same}"


class _Part(click.ParamType):
    name = "I/N"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{value!r} is no part I/N with 1 <= I <= N", param, ctx)
        return int(found[1]), int(found[2])


def build_options(images: Sequence[str], shard_size: int | None) -> Callable:
    """The options of a build, with these choices for --images and this --shard-size, None for what the plan chooses."""
    size_help = "Images a shard." if shard_size else "Images a shard. Default: 500, or fewer where pictures are large."
    kept = [_IMAGES[choice] for choice in images]
    split_help = "Split to build; may be given twice. Default: both."
    options = (
        path_option("--out", required=True, help="Folder to write the data set to."),
        click.option(
            "--split", "splits", multiple=True, type=click.Choice(["train", "val"]), default=("train", "val"), help=split_help
        ),
        click.option("--limit", type=click.IntRange(min=0), help="Only the first N images of each split."),
        click.option(
            "--workers", type=click.IntRange(min=1), help="Processes; 1 stays in this one. Default: the cores, at most 8."
        ),
        click.option("--scheduler", metavar="ADDRESS", help="Let the dask.distributed cluster at tcp://HOST:PORT do the work."),
        click.option("--shard", "part", type=_Part(), help="Build part I of N only; `cocolvis join` completes the data set."),
        click.option("--shard-size", type=click.IntRange(min=1), default=shard_size, show_default=True, help=size_help),
        click.option(
            "--images",
            type=click.Choice(images),
            default="embed",
            show_default=True,
            help=f"Store {', '.join(kept[:-1])}{',' if kept[2:] else ''} or {kept[-1]}.",
        ),
        click.option("--decode", is_flag=True, help="Also look for damage inside the JPEGs; damaged pictures are left out."),
        click.option("--overwrite", is_flag=True, help="Replace what is in --out."),
        click.option("--resume", is_flag=True, help="Complete an interrupted build; finished shards are kept."),
        click.option("--strict", is_flag=True, help="Stop at the first fault of the input instead of reporting it."),
        click.option("--allow-missing", is_flag=True, help=MISSING),
        json_option,
    )

    def decorate(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def run_build(
    label: str,
    make_plan: "Callable[[Progress], ShardPlan]",
    out: Path,
    *,
    workers: int | None,
    scheduler: str | None,
    part: tuple[int, int] | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Run a build with what the options said, and print what came of it; a usage error where they exclude each other.

    ``make_plan`` gets the progress to which it can tell what it reads.
    """
    from cocolvis.building.build import Build, Mode, Part
    from cocolvis.storage.dataset import Dataset

    if scheduler and workers:
        raise click.UsageError("--workers and --scheduler exclude each other: the cluster has its own workers")
    if part and (overwrite or scheduler):
        raise click.UsageError("--shard goes neither with --overwrite nor with --scheduler")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    mode = Part(*part) if part else Mode.OVERWRITE if overwrite else Mode.RESUME if resume else Mode.FRESH
    how |= {"mode": mode, "workers": scheduler or workers or min(cores(), 8)}
    with progress(label) as show:
        Build(progress=show, announce=show.line, phase=show.phase, **how).run(lambda: make_plan(show), out)
    if isinstance(mode, Part):
        say(f"part {mode.number} of {mode.count} is built; when all are, complete the data set with `cocolvis join {out}`")
        return
    print_summary(Dataset.open(out), as_json)
    if not as_json:
        say()
        say(f"The data set lies in {out}; look at it with `cocolvis stats {out}` and `cocolvis show {out} IMAGE_ID`.")
