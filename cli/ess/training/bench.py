"""``ess bench``: the time and memory of training steps, predictions and the loader."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cli.commands import command
from cli.display import Size, print_json, print_table, progress, say
from cli.options import json_option, path_option
from cocolvis.text import human_size

if TYPE_CHECKING:
    from ess.config import Config

_STEPS = {"train": "training", "predict": "prediction of one image"}
"""What is compared with the dense baseline -> the title of its table."""

_CLASSES = (1284, 150, 19, 10_000)

_BUDGET = 300.0
"""The seconds after which a GPU starts nothing new."""


class _Seconds(click.FloatRange):
    """A number of seconds in a range; NaN, which click would accept, is wrong usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text as click does, and refuse NaN."""
        seconds = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is not a number of seconds", param, ctx) if math.isnan(seconds) else seconds


@command(interrupted="what is printed so far was measured; run the same command to start over")
@click.option(
    "--classes",
    "counts",
    multiple=True,
    type=click.IntRange(2),
    default=_CLASSES,
    show_default=True,
    help="Number of classes; may be repeated.",
)
@click.option("--arch", default="deeplabv3plus", show_default=True, help="Decoder.")
@click.option("--encoder", default="resnet50", show_default=True, help="Encoder.")
@click.option("--loss", default="auto", show_default=True, type=click.Choice(["knn", "exact", "auto"]), help="Our loss.")
@click.option("--dim", type=click.IntRange(1, 4096), help="Length of our embedding.  [default: that of ess train]")
@click.option("--batch-size", type=click.IntRange(1), help="Images per step.  [default: as many as fit a GPU; 2 on the CPU]")
@click.option("--crop", type=click.IntRange(8), help="Side length of the pictures.  [default: as in the paper]")
@click.option("--precision", help="As for ess train.  [default: that of ess train]")
@click.option("--channels-last/--no-channels-last", default=None, help="As for ess train.  [default: that of ess train]")
@click.option("--compile/--no-compile", default=None, help="As for ess train.  [default: that of ess train]")
@click.option("--accumulate", type=click.IntRange(1), help="Parts of a step.  [default: 1]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option(
    "--seconds", default=1.0, show_default=True, type=_Seconds(0, 86_400), help="Minimum duration of each measurement."
)
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the result is their median.")
@click.option(
    "--budget",
    type=_Seconds(0, min_open=True),
    help=f"Seconds after which nothing new is measured.  [default: {_BUDGET:.0f} on a GPU; no limit on the CPU]",
)
@path_option("--data", help="Data set for measuring the loader.  [default: a generated one]")
@click.option("--workers", type=click.IntRange(1), help="Loader processes.  [default: 2]")
@click.option("--only", type=click.Choice(["train", "predict", "loading"]), multiple=True, help="Only this; may be repeated.")
@json_option
def bench(
    counts: tuple[int, ...],
    batch_size: int | None,
    crop: int | None,
    seconds: float,
    repeats: int,
    budget: float | None,
    data: Path | None,
    only: tuple[str, ...],
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure training steps and predictions next to a dense baseline, as in Table 1 of the paper, and the loader.

    Each table is printed when it is complete, the most important one first.

    \b
    Example:
      ess bench --classes 1284 --crop 512 --batch-size 2 --only train
    """
    unused = [name for name, value in (("--data", data), ("--workers", settings["workers"])) if value]
    if unused and only and "loading" not in only:
        raise click.UsageError(f"{unused[0]} is only used for loading; add --only loading, or leave it out")
    from ess.config import Config
    from ess.device import choose_device

    given = {name: value for name, value in settings.items() if value is not None}
    config = Config(**{"workers": 2} | given, crop=crop or 512, weights="none")
    if budget is None and choose_device(config.device).type != "cpu":
        budget = _BUDGET
    end = None if budget is None else time.monotonic() + budget
    parts = [(what, classes) for classes in counts for what in _STEPS if not only or what in only]
    if not only or "loading" in only:
        parts.insert(len(_STEPS), ("loading", 0))
    result: dict[str, Any] = {}
    for what, classes in parts:
        if end is not None and time.monotonic() >= end:
            _say_skipped(what, classes, budget)
        elif what == "loading":
            result[what] = _loading(data, replace(config, batch_size=batch_size or 8), 5 * seconds, repeats)
            if not as_json:
                _print_loading(result[what])
        else:
            how: dict[str, Any] = {"crop": crop, "batch_size": batch_size, "seconds": seconds, "rounds": repeats}
            row = _compared(what, classes, config, end, **how)
            result.setdefault(what, []).append(row)
            if not as_json:
                _print_comparison(what, row)
    if as_json:
        print_json(result)


def _say_skipped(what: str, classes: int, budget: float | None) -> None:
    about = f"{what} with {classes} classes" if classes else what
    say(f"{about}: not measured, because the {budget:g} seconds of --budget are over", err=True)


def _compared(what: str, classes: int, config: "Config", end: float | None, *, rounds: int, **how: Any) -> dict[str, Any]:
    """The result of :func:`ess.bench.steps.compare`, whose later rounds leave half of the time until ``end`` to the rest."""
    from ess.bench.steps import compare

    with progress(f"{what}, {classes} classes", "rounds") as show:
        done = count(1)
        if end is not None:
            how["until"] = (time.monotonic() + end) / 2
        how["progress"] = lambda: show(next(done), rounds)
        return compare(what, classes, config, rounds=rounds, **how).to_json()


def _loading(data: Path | None, config: "Config", seconds: float, rounds: int) -> dict[str, float]:
    """The result of :func:`ess.bench.loading.measure_loading`."""
    from ess.bench.loading import measure_loading

    with _data_set(data) as folder:
        return measure_loading(folder, config, seconds=seconds, rounds=rounds).to_json()


@contextmanager
def _data_set(folder: Path | None) -> Iterator[Path]:
    """The folder of a data set; with None, a generated one, which is deleted afterwards."""
    if folder is not None:
        yield folder
        return
    from cocolvis.building.build import build
    from cocolvis.building.coco_lvis import CocoLvisOptions
    from cocolvis.sample.writer import write_sample
    from cocolvis.sources.inputs import Sources
    from cocolvis.vocabulary import coco_lvis

    with TemporaryDirectory() as name:
        root = Path(name)
        with progress("sample") as show:
            write_sample(root / "sample", images=96, classes=60, size=512, progress=show)
        with progress("build") as show:
            sources = Sources(root / "sample" / "coco", root / "sample" / "lvis", coco_lvis())
            build(sources, root / "data", CocoLvisOptions(), progress=show)
        yield root / "data"


_NAMES = {"ours": "ours", "network": "ours without its loss", "dense": "dense", "points": "dense at points"}
"""The contestants -> their names in the table."""


def _print_comparison(what: str, row: dict[str, Any]) -> None:
    """Print a table with a row for each contestant, and the ratios."""
    say()
    say(f"{_STEPS[what]}, {row['classes']:,} classes, {row['height']} x {row['width']} pixels")
    hours = ("40 epochs of COCO+LVIS",) if what == "train" else ()
    header = ("", "images", "images/s", "memory", *hours, "seconds")
    print_table(header, [_cells(name, row[name], bool(hours)) for name in _NAMES if name in row])
    if row["beyond_network"] is not None:
        say(f"the loss takes {row['beyond_network']:.0%} of our step")
    ratios = [("ours / dense", "ratio"), ("per image", "ratio_per_image"), ("in the paper", "paper_ratio")]
    known = [f"{name} {row[key]:.2f}" for name, key in ratios if row[key] is not None]
    if known:
        say(f"seconds: {', '.join(known)}")


def _cells(name: str, result: dict[str, Any], hours: bool) -> tuple[Any, ...]:
    """A row of the table: the figures of one contestant, or the reason why it was not measured."""
    if "seconds" not in result:
        why = f"needs {human_size(result['needs_bytes'])}" if "needs_bytes" in result else result["failed"]
        return (_NAMES[name], result["batch_size"], *("",) * (2 + hours), why)
    epochs = (f"{result['hours_coco_lvis']:,.1f} h",) if hours else ()
    speed, memory = f"{result['images_per_second']:,.2f}", Size(result["peak_bytes"])
    return (_NAMES[name], result["batch_size"], speed, memory, *epochs, f"{result['seconds']:.4f}")


def _print_loading(result: dict[str, float]) -> None:
    say()
    say(
        f"loading: {result['crops_per_second']:.1f} crops/s from {result['workers']} processes,"
        f" {result['share']:.2f} of the rate of as many processes that only decode"
        f" ({result['decodes_per_second']:.1f} pictures/s each)"
    )
