"""The frequency of each class against the length of its class embedding before normalisation, with their correlation."""

from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from ess.figures.analysis import Analysis, LeftOut
from ess.figures.figure import Figure, write_figure
from ess.figures.style import clean, colour_of, group_legend, new_figure

NAME, TITLE = "class_lengths", "Class frequency and the length of class embeddings"
COLUMNS = ("class", "name", "group", "training_images", "training_pixels", "length")
"""The columns of the CSV, with a row for every class."""

_UNNORMALISED = (
    "The run does not normalise embeddings, so the length of a class embedding changes its distances."
    " In the paper, the embeddings of frequent classes become longer in such runs."
)
_NORMALISED = (
    "The run normalises embeddings (normalize = {}), so the loss and the predictions do not depend on these lengths."
    " They show only how training moved the raw parameters; the paper's statement about frequency and length is about runs"
    " with +no-normalisation."
)


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure; classes without training images are in the CSV only."""
    lengths = np.linalg.norm(analysis.raw_embeddings, axis=1)
    images, pixels = analysis.training_images, analysis.training_pixels
    trained = images > 0
    if trained.sum() < 3:
        raise LeftOut("a correlation needs at least three classes with training images")
    found = correlations(images[trained], lengths[trained])
    numbers = f"Spearman's rank correlation is {_number(found[0])}; Pearson's, of log images and length, {_number(found[1])}."
    setting = analysis.run.config.normalize
    meaning = _UNNORMALISED if setting == "none" else _NORMALISED.format(setting)
    classes = [*analysis.vocabulary]
    rows = zip(classes, images.tolist(), pixels.tolist(), lengths.tolist(), strict=True)
    table = [[c.id, c.name, c.group, n, area, length] for c, n, area, length in rows]
    drawn = _draw(analysis, images, lengths, f"{numbers} {meaning}")
    caption = f"Each point is a class of the {int(trained.sum()):,} that have training images. {numbers} {meaning}"
    return write_figure(folder, NAME, TITLE, caption, drawn, COLUMNS, table)


def correlations(images: np.ndarray, lengths: np.ndarray) -> tuple[float, float]:
    """Spearman's correlation of (n,) images and lengths, and Pearson's of log images and lengths; NaN if one is constant."""
    return _pearson(_ranks(images), _ranks(lengths)), _pearson(np.log(images), lengths)


def _ranks(values: np.ndarray) -> np.ndarray:
    """The ranks 1..n; equal values share their mean rank."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm else float("nan")


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"


def _draw(analysis: Analysis, images: np.ndarray, lengths: np.ndarray, text: str) -> Any:
    from matplotlib.ticker import LogLocator

    figure = new_figure(7.2, 5.6)
    axes = figure.subplots()
    shown = [c for c in analysis.vocabulary if images[c.id - 1]]
    at = [c.id - 1 for c in shown]
    size = 24 if len(shown) < 300 else 10
    axes.scatter(images[at], lengths[at], s=size, c=[colour_of(c) for c in shown], alpha=0.7, linewidths=0, zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if images.max() < 200 else (1,)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="training images with the class", ylabel="length of the class embedding")
    axes.set_title(fill(text, 92), fontsize=9, loc="left", color="0.25")
    clean(axes)
    group_legend(axes, shown, loc="best", fontsize=9)
    return figure
