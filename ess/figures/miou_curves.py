"""The mIoU of the n most frequent classes over n, with one curve for each run."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.figures.long_tail import plain
from ess.checkpoint import Run
from ess.evaluation.metrics import miou_curve
from ess.figures.analysis import Analysis, LeftOut
from ess.figures.figure import Figure, write_figure
from ess.figures.style import RUNS, clean, new_figure

NAME, TITLE = "miou_by_frequency", "mIoU of the n most frequent classes"
COLUMNS = ("run", "n", "class", "name", "training_images", "iou", "miou")
"""The columns of the CSV: for each run and n, the class with rank n, its IoU, and the mIoU of the first n classes."""


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure for the run, the further runs and the baseline, up to the last class with training images."""
    images = analysis.training_images
    order = np.argsort(-images, kind="stable")[: int((images > 0).sum())]
    if not order.size:
        raise LeftOut("no class has training images")
    options = analysis.options
    runs = _distinct([analysis.run, *options.also, *filter(None, [options.baseline])])
    ious = {
        name: (analysis.confusion if run is analysis.run else analysis.count(run)).iou() for name, run in named(runs).items()
    }
    rows = _rows(ious, order, images, [c.name for c in analysis.vocabulary])
    counted = f"{analysis.confusion.images:,} images of split {options.split}"
    caption = (
        f"The mean IoU over the n classes with the most training images, for n up to the {len(order):,} that have any;"
        f" all classes compete in the predictions. Classes that are absent from the truth are left out of the mean. {counted}."
    )
    return write_figure(folder, NAME, TITLE, caption, _draw(ious, order, counted), COLUMNS, rows)


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by the names of their folders, or by their paths if two names are equal."""
    names = [run.folder.resolve().name for run in runs]
    return {str(run.folder) if names.count(name) > 1 else name: run for name, run in zip(names, runs, strict=True)}


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs without those in a folder that came before."""
    return [*{run.folder.resolve(): run for run in reversed(runs)}.values()][::-1]


def _rows(ious: Mapping[str, np.ndarray], order: np.ndarray, images: np.ndarray, names: Sequence[str]) -> Iterator[list[Any]]:
    for run, iou in ious.items():
        for n, (c, mean) in enumerate(zip(order.tolist(), miou_curve(iou, order).tolist(), strict=True), 1):
            yield [run, n, c + 1, names[c], int(images[c]), _number(iou[c]), _number(mean)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _draw(ious: Mapping[str, np.ndarray], order: np.ndarray, counted: str) -> Any:
    figure = new_figure(7.2, 4.6)
    axes = figure.subplots()
    for number, (name, iou) in enumerate(ious.items()):
        curve = miou_curve(iou, order)
        last = curve[-1]
        label = f" {plain(name, 40)}"  # the space, because matplotlib leaves out labels that begin with an underscore
        label += f": {last:.3f} at n = {len(order):,}" if not np.isnan(last) else ""
        style = {"color": RUNS[number % len(RUNS)], "linestyle": ("solid", "dashed", "dotted")[number // len(RUNS) % 3]}
        axes.plot(np.arange(1, len(order) + 1), curve, linewidth=1.8, label=label, clip_on=False, zorder=3, **style)
    axes.set(xlabel="n most frequent classes, by training images", ylabel="mIoU", ylim=(0, None), xlim=(1, max(2, len(order))))
    axes.set_title(counted, fontsize=9, loc="left", color="0.25")
    clean(axes)
    axes.legend(loc="upper right", frameon=True, edgecolor="none", facecolor="white", framealpha=0.8, fontsize=9)
    return figure
