"""The options that ``cocolvis build`` and ``cocolvis import`` share."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import click

from cli.options import Decorator, json_option, path_option

ALLOW_MISSING = "Leave out everything that cannot be read, however much it is, even if a disk is at fault."
"""The help text of --allow-missing."""

_IMAGES = {"embed": "the bytes of the pictures", "path": "only their paths", "none": "masks alone (no image folder is needed)"}


class _Part(click.ParamType):
    """A part of a build; commands receive the pair (I, N)."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse the text; anything other than I/N with 1 <= I <= N is wrong usage."""
        if isinstance(value, tuple):
            return value
        part = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", value)
        if not part or not 1 <= int(part[1]) <= int(part[2]):
            self.fail(f"{value!r} is not a part I/N with 1 <= I <= N", param, ctx)
        return int(part[1]), int(part[2])


def build_options(images: Sequence[str], shard_size: int | None) -> Decorator:
    """The options of a build.

    ``images`` are the choices of --images. ``shard_size`` is the default of --shard-size; with None, the plan chooses.
    """
    options = (*_selection_options(), *_storage_options(images, shard_size), *_conduct_options(), json_option)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _selection_options() -> tuple[Decorator, ...]:
    """Options that select the images, the folder and the processes of a build."""
    both = ("train", "val")
    split_help = "Split to build; may be given twice. Default: both."
    workers_help = "Worker processes; 1 works in this process. Default: the number of cores, at most 8."
    return (
        path_option("--out", required=True, help="Folder to write the data set to."),
        click.option("--split", "splits", multiple=True, type=click.Choice(both), default=both, help=split_help),
        click.option("--limit", type=click.IntRange(min=0), help="Only the first N images of each split."),
        click.option("--workers", type=click.IntRange(min=1), help=workers_help),
        click.option("--scheduler", metavar="ADDRESS", help="Run on the dask.distributed cluster at tcp://HOST:PORT."),
        click.option("--shard", "part", type=_Part(), help="Build only part I of N; `cocolvis join` completes the data set."),
    )


def _storage_options(images: Sequence[str], shard_size: int | None) -> tuple[Decorator, ...]:
    """Options about what shards store, and their size."""
    size_help = "Images per shard." if shard_size else "Images per shard. Default: 500, or fewer if the pictures are large."
    *others, last = (_IMAGES[choice] for choice in images)
    images_help = f"Store {', '.join(others)}{',' if others[1:] else ''} or {last}."
    decode_help = "Also look for damage inside the JPEGs, and leave out damaged pictures."
    return (
        click.option("--shard-size", type=click.IntRange(min=1), default=shard_size, show_default=True, help=size_help),
        click.option("--images", type=click.Choice(images), default="embed", show_default=True, help=images_help),
        click.option("--decode", is_flag=True, help=decode_help),
    )


def _conduct_options() -> tuple[Decorator, ...]:
    """Options about existing folders and faults of the input."""
    return (
        click.option("--overwrite", is_flag=True, help="Replace the data set or unfinished build in --out; other files stay."),
        click.option("--resume", is_flag=True, help="Complete an interrupted build; finished shards are kept."),
        click.option("--strict", is_flag=True, help="Stop at the first fault of the input instead of reporting it."),
        click.option("--allow-missing", is_flag=True, help=ALLOW_MISSING),
    )
