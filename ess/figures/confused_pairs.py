"""The pairs of classes that a run confuses most: pixels of one class that were predicted as another."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocolvis.figures.long_tail import plain
from ess.evaluation.metrics import LARGEST_MATRIX
from ess.figures.analysis import Analysis, LeftOut
from ess.figures.figure import Figure, write_figure
from ess.figures.style import clean, new_figure

NAME, TITLE = "confused_pairs", "The most confused pairs of classes"
COLUMNS = ("truth", "truth_name", "predicted", "predicted_name", "pixels", "share_of_truth")
"""The columns of the CSV, with a row for each of the LISTED most confused pairs."""

LISTED = 1000
"""The most pairs in the CSV."""

_DRAWN = 25


class Pair(NamedTuple):
    """``pixels`` of class ``truth`` were predicted as ``predicted``, class ids 1..C; ``share`` of all pixels of the former."""

    truth: int
    predicted: int
    pixels: int
    share: float


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure; raises LeftOut if there are very many classes."""
    if len(analysis.vocabulary) > LARGEST_MATRIX:
        raise LeftOut(
            f"pairs of classes are counted for at most {LARGEST_MATRIX:,}, and there are {len(analysis.vocabulary):,}"
        )
    confusion, names = analysis.confusion, [c.name for c in analysis.vocabulary]
    if confusion.matrix is None:
        raise ValueError("the counts have no matrix")
    pairs = most_confused(confusion.matrix.numpy(), LISTED)
    if not pairs:
        raise LeftOut("no pixel was predicted as a wrong class")
    total = int(confusion.totals()[0].sum() - confusion.totals()[2].sum())
    caption = (
        f"Pixels of the class on the left that were predicted as the class on the right, and their share of all pixels of the"
        f" former. All wrong pixels: {total:,}, in {confusion.images:,} images of split {analysis.options.split}."
    )
    rows = [[p.truth, names[p.truth - 1], p.predicted, names[p.predicted - 1], p.pixels, p.share] for p in pairs]
    return write_figure(folder, NAME, TITLE, caption, _draw(pairs[:_DRAWN], names), COLUMNS, rows)


def most_confused(matrix: np.ndarray, most: int) -> list[Pair]:
    """At most ``most`` pairs of different classes with any pixels, most pixels first; ``matrix`` (C, C) has the truth by rows.

    Ties go to the lower class in the truth, then to the lower predicted one.
    """
    classes = len(matrix)
    wrong = np.where(np.eye(classes, dtype=bool), 0, matrix).ravel()
    found = np.flatnonzero(wrong)
    found = found[np.argsort(-wrong[found], kind="stable")][:most]
    totals = matrix.sum(axis=1)
    truth, predicted = np.divmod(found, classes)
    return [
        Pair(t + 1, p + 1, n, n / int(totals[t]))
        for t, p, n in zip(truth.tolist(), predicted.tolist(), wrong[found].tolist(), strict=True)
    ]


def _draw(pairs: Sequence[Pair], names: Sequence[str]) -> Any:
    figure = new_figure(9, 1.2 + 0.27 * len(pairs))
    axes = figure.subplots()
    places = np.arange(len(pairs))
    bars = axes.barh(places, [pair.pixels for pair in pairs], color="#1f6f8b", height=0.72, zorder=2)
    axes.set_yticks(
        places, [f"{plain(names[p.truth - 1], 30)} → {plain(names[p.predicted - 1], 30)}" for p in pairs], fontsize=9
    )
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    axes.bar_label(bars, [f"{p.pixels:,}  ({p.share:.0%})" for p in pairs], padding=4, fontsize=8, color="0.25")
    axes.set_xlim(0, max(pair.pixels for pair in pairs) * 1.2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_locator(_few_ticks())
    axes.set_xlabel("pixels (share of the pixels of the true class)")
    axes.set_title("true class → predicted class", fontsize=9, loc="left", color="0.25")
    clean(axes, "x")
    return figure


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, integer=True)
