"""``ess bench``: the time and memory of training steps, predictions and the loader."""

from collections.abc import Iterator, Sequence
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

_STEPS = {"train": "training, seconds per iteration", "predict": "prediction, seconds per image"}
"""What is compared with the dense baseline -> the title of its table."""

_CLASSES = (19, 150, 1284, 10_000)


@command(interrupted="no measurement was kept; run the same command to start over")
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
@click.option("--batch-size", type=click.IntRange(1), help="Images per step.  [default: as many as fit a GPU; 2 on the CPU]")
@click.option("--crop", type=click.IntRange(8), help="Side length of the pictures.  [default: as in the paper]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
@click.option("--seconds", default=1.0, show_default=True, help="Minimum duration of each measurement.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Rounds; the result is their median.")
@path_option("--data", help="Data set for measuring the loader.  [default: a generated one]")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Loader processes.")
@click.option("--only", type=click.Choice(["train", "predict", "loading"]), multiple=True, help="Only this; may be repeated.")
@json_option
def bench(
    counts: tuple[int, ...],
    batch_size: int | None,
    crop: int | None,
    seconds: float,
    repeats: int,
    data: Path | None,
    only: tuple[str, ...],
    as_json: bool,
    **network: Any,
) -> None:
    """Measure training steps and predictions next to a dense baseline, as in Table 1 of the paper, and the loader.

    \b
    Example:
      ess bench --classes 1284 --crop 512 --batch-size 2 --only train
    """
    from ess.config import Config

    config = Config(**network, crop=crop or 512, weights="none")
    result: dict[str, Any] = {}
    for what in _STEPS:
        if not only or what in only:
            result[what] = _compared(what, counts, config, crop=crop, batch_size=batch_size, seconds=seconds, rounds=repeats)
    if not only or "loading" in only:
        result["loading"] = _loading(data, replace(config, batch_size=batch_size or 8), 5 * seconds, repeats)
    if as_json:
        print_json(result)
        return
    for what, title in _STEPS.items():
        if what in result:
            _print_comparison(title, result[what])
    if "loading" in result:
        _print_loading(result["loading"])


def _compared(what: str, counts: Sequence[int], config: "Config", *, rounds: int, **how: Any) -> list[dict[str, Any]]:
    """The results of :func:`ess.bench.steps.compare`, one for each number of classes."""
    from ess.bench.steps import compare

    with progress(what, "rounds") as show:
        done, total = count(1), len(counts) * rounds
        how["progress"] = lambda: show(next(done), total)
        return [compare(what, classes, config, rounds=rounds, **how).to_json() for classes in counts]


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


_COLUMNS = {
    "ratio": "ours/dense",
    "ratio_per_image": "per image",
    "paper_ratio": "in the paper",
    "beyond_network": "beyond the network",
}
"""The ratios in the result of a comparison -> the headers of their columns."""


def _print_comparison(title: str, rows: Sequence[dict[str, Any]]) -> None:
    """Print a table with a row for each number of classes."""
    contestants = ("network", "ours", "dense")
    header = ("classes", "pictures", *(f"{name} s" for name in contestants), *_COLUMNS.values(), "ours memory", "dense memory")
    say()
    say(title)
    print_table(
        header,
        [
            (
                row["classes"],
                f"{row['ours']['batch_size']} x {row['height']} x {row['width']}",
                *(_seconds(row.get(name)) for name in contestants),
                *("" if row[name] is None else f"{row[name]:.2f}" for name in _COLUMNS),
                *(Size(row[name]["peak_bytes"]) if "peak_bytes" in row[name] else None for name in ("ours", "dense")),
            )
            for row in rows
        ],
    )


def _seconds(result: dict[str, Any] | None) -> str:
    """The time of one contestant, or the reason why it was not measured."""
    if result is None:
        return ""
    if "seconds" in result:
        return f"{result['seconds']:.3f}"
    return f"needs {human_size(result['needs_bytes'])}" if "needs_bytes" in result else "out of memory"


def _print_loading(result: dict[str, float]) -> None:
    say()
    say(
        f"loading: {result['crops_per_second']:.1f} crops/s from {result['workers']} processes,"
        f" {result['share']:.2f} of the rate of as many processes that only decode"
        f" ({result['decodes_per_second']:.1f} pictures/s each)"
    )
