"""``cocolvis sample``: generated pictures with exact annotations."""

from pathlib import Path
from typing import Any

import click

from cli.commands import command
from cli.display import progress, say, shell
from cli.options import path_option
from cocolvis.limits import cores

PRESETS = ("longtail-tiny", "longtail-small", "longtail-full", "scale")

_FITTING = {"scale": {"classes"}}
"""Preset -> the numbers that can be given with it."""

_NUMBERS = {"images", "classes", "size"}


@command(interrupted="nothing was written")
@path_option("--out", required=True, help="Folder to write the sample to.")
@click.option("--preset", type=click.Choice(PRESETS), help="A benchmark of fixed size instead of the small sample.")
@click.option("--images", type=int, help="Images in both splits together.  [default: 120]")
@click.option("--classes", type=int, help="How many classes occur.  [default: 120; with --preset scale 1000, at most 10000]")
@click.option("--size", type=int, help="Average side length in pixels; each side is within 25 % of it.  [default: 96]")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed writes the same bytes.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes for a preset. Default: the number of cores, at most 8.")
def sample(out: Path, preset: str | None, seed: int, workers: int | None, **numbers: int | None) -> None:
    """Generate a COCO and LVIS tree with procedural pictures, to try everything without a download.

    \b
    Example:
      cocolvis sample --out sample && cocolvis build --coco sample/coco --lvis sample/lvis --out data
      cocolvis sample --preset longtail-tiny --out longtail
      cocolvis sample --preset scale --classes 10000 --out scale && cocolvis import folder scale --out data
    """
    given: dict[str, Any] = {name: number for name, number in numbers.items() if number is not None}
    fitting = _FITTING.get(preset, set()) if preset else _NUMBERS
    if strange := sorted(given.keys() - fitting):
        raise click.UsageError(f"--{strange[0]} cannot be combined with --preset {preset}, which determines it")
    if workers and not preset:
        raise click.UsageError("--workers needs --preset: the small sample is written by one process")
    with progress("sample") as show:
        _write(out, preset, given, {"seed": seed, "progress": show, "announce": show.line}, workers or min(cores(), 8))
    if preset == "scale":
        say(f"Import it with {shell('cocolvis', 'import', 'folder', out, '--out', 'DIR')}.")
    else:
        build = shell("cocolvis", "build", "--coco", out / "coco", "--lvis", out / "lvis", "--out", "DIR")
        say(f"Build it with {build}.")


def _write(out: Path, preset: str | None, given: dict[str, Any], how: dict[str, Any], workers: int) -> None:
    from cocolvis.sample.longtail import LONG_TAILS, write_long_tail
    from cocolvis.sample.scale import write_scale
    from cocolvis.sample.writer import write_sample

    if preset is None:
        write_sample(out, **given, **how)
    elif preset == "scale":
        write_scale(out, workers=workers, **given, **how)
    else:
        write_long_tail(out, LONG_TAILS[preset], workers=workers, **how)
