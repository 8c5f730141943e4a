"""The pixel embeddings of an image in two dimensions, together with the embeddings of its classes as stars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocolvis.figures.long_tail import plain
from cocolvis.palette import palette
from ess.figures.analysis import Analysis, LeftOut, Shown, scikit_learn
from ess.figures.figure import Figure, write_figure
from ess.figures.style import clean, fitted, named_mask, new_figure, show_picture

NAME, TITLE = "pixel_embeddings", "Pixel and class embeddings of an image in two dimensions"
COLUMNS = ("kind", "class", "name", "row", "column", "predicted", "x", "y")
"""The columns of the CSV: a row for each pixel, by its true class, and for each class, whose row and column are empty."""

METHODS = ("tsne", "pca")
"""t-SNE, which keeps neighbours together, and PCA, the plane of the greatest variance."""

_NAMES = {"tsne": "t-SNE", "pca": "PCA"}

_PIXELS, _CLASSES = 1500, 12
"""The most pixels that are drawn, and the most classes that they come from."""

_PERPLEXITY = 30

_SIDE, _APART = 360, 12
"""About the side of the panel, and the least distance of a number from other stars and numbers, in points."""


class Sampled(NamedTuple):
    """Pixels of an image: their rows, columns and true classes 1..C, (n,) each, sorted by class."""

    rows: np.ndarray
    columns: np.ndarray
    classes: np.ndarray


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure for the first image that is shown."""
    scikit_learn("decomposition")
    image, seed = analysis.shown[0], analysis.options.seed
    pixels = analysis.pixel_embeddings(image)
    sampled = sample_pixels(image.sample.mask, seed)
    classes = np.unique(sampled.classes)
    if not classes.size:
        raise LeftOut(f"no pixel of image {image.sample.image_id} has a class")
    both = np.concatenate([pixels[sampled.rows, sampled.columns], analysis.embeddings[classes - 1]])
    method, flat = flattened(both, analysis.options.method, seed)
    how = f"{_NAMES[method]}, seed {seed}"
    area = np.bincount(image.sample.mask.ravel(), minlength=len(analysis.vocabulary) + 1)
    ranked = sorted(classes.tolist(), key=lambda c: (-area[c], c))
    drawn = _draw(analysis, image, sampled, flat, classes, ranked, how)
    caption = (
        f"{len(sampled.rows):,} pixels of image {image.sample.image_id}, drawn at random from its {len(classes)} largest"
        f" classes, in the colours of their true classes, and the embeddings of these classes as stars: {how}."
    )
    return write_figure(folder, NAME, TITLE, caption, drawn, COLUMNS, _rows(analysis, image, sampled, flat, classes))


def sample_pixels(mask: np.ndarray, seed: int) -> Sampled:
    """At most 1500 pixels of the 12 largest classes of a mask (H, W), with equally many for each class if it has them."""
    counts = np.bincount(mask.ravel())
    counts[0] = 0
    largest = np.argsort(-counts, kind="stable")[:_CLASSES]
    largest = np.sort(largest[counts[largest] > 0])
    rng, share = np.random.default_rng(seed), _PIXELS // max(1, len(largest))
    found = [np.zeros(0, np.int64)]
    for c in largest:
        places = np.flatnonzero(mask.ravel() == c)
        found.append(np.sort(rng.choice(places, min(share, len(places)), replace=False)))
    rows, columns = np.unravel_index(np.concatenate(found), mask.shape)
    return Sampled(rows, columns, mask[rows, columns].astype(np.int64))


def flattened(vectors: np.ndarray, method: str, seed: int) -> tuple[str, np.ndarray]:
    """The method that was used, and the vectors (n, d) in two dimensions, (n, 2). For fewer than 4 vectors it is PCA."""
    method = method if len(vectors) > 3 else "pca"
    if method == "tsne":
        perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
        init = "pca" if vectors.shape[1] > 1 else "random"
        model = scikit_learn("manifold").TSNE(2, perplexity=perplexity, init=init, random_state=seed)
        return method, model.fit_transform(vectors.astype(np.float32))
    parts = min(2, *vectors.shape)
    flat = scikit_learn("decomposition").PCA(parts, svd_solver="full").fit_transform(vectors)
    return method, np.pad(flat, ((0, 0), (0, 2 - parts)))


def _rows(analysis: Analysis, image: Shown, sampled: Sampled, flat: np.ndarray, classes: np.ndarray) -> list[list[Any]]:
    names, points = [c.name for c in analysis.vocabulary], flat.tolist()
    predicted = image.prediction[sampled.rows, sampled.columns].tolist()
    pixels = zip(*(values.tolist() for values in sampled), predicted, points, strict=False)
    table: list[list[Any]] = [["pixel", c, names[c - 1], row, column, guess, *xy] for row, column, c, guess, xy in pixels]
    stars = zip(classes.tolist(), points[len(sampled.rows) :], strict=True)
    return [*table, *(["class", c, names[c - 1], None, None, None, *xy] for c, xy in stars)]


def _draw(
    analysis: Analysis,
    image: Shown,
    sampled: Sampled,
    flat: np.ndarray,
    classes: np.ndarray,
    ranked: Sequence[int],
    how: str,
) -> Any:
    figure = new_figure(11.5, 6.4)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 2.1])
    panels = left.subplots(2, 1)
    show_picture(panels[0], fitted(image.picture), f"image {image.sample.image_id}")
    show_picture(panels[1], named_mask(image.sample.mask, analysis.vocabulary), "truth")
    axes = right.subplots()
    colours = palette(len(analysis.vocabulary)) / 255
    points, stars = flat[: len(sampled.rows)], flat[len(sampled.rows) :]
    axes.scatter(*points.T, s=7, c=colours[sampled.classes], linewidths=0, alpha=0.7, rasterized=True)
    numbers = {c: number for number, c in enumerate(ranked, 1)}
    for c, place, offset in zip(classes.tolist(), stars.tolist(), label_offsets(flat, stars), strict=True):
        axes.scatter(*place, s=260, marker="*", color=colours[c], edgecolors="black", linewidths=0.9, zorder=3)
        style = {"fontsize": 9, "weight": "bold", "ha": "center", "va": "center", "zorder": 4}
        axes.annotate(str(numbers[c]), place, xytext=offset, textcoords="offset points", **style)
    axes.margins(0.08)
    axes.set(xticks=[], yticks=[])
    axes.set_title(f"{how}; a star is a class embedding", fontsize=10, loc="left")
    clean(axes)
    axes.legend(*_legend(analysis, ranked, colours), loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=9)
    return figure


def label_offsets(flat: np.ndarray, stars: np.ndarray) -> list[tuple[float, float]]:
    """Where the number of each star is written, in points from its centre, so that none covers another star or number.

    ``flat`` (n, 2) are all points of the figure and ``stars`` (m, 2) those with numbers.
    """
    scale = _SIDE / np.maximum(np.ptp(flat, axis=0), 1e-12)
    centres, taken, offsets = stars * scale, list[np.ndarray](), list[tuple[float, float]]()
    angles = np.pi / 4 * np.array([1, 3, 7, 5, 0, 4, 2, 6])
    ring = [radius * np.array([np.cos(angle), np.sin(angle)]) for radius in (13, 24, 35, 46) for angle in angles]
    for centre in centres:
        others = [*centres[np.abs(centres - centre).max(axis=1) > 1e-6], *taken]
        room = [min((np.hypot(*(centre + step - other)) for other in others), default=np.inf) for step in ring]
        best = next((n for n, distance in enumerate(room) if distance > _APART), int(np.argmax(room)))
        taken.append(centre + ring[best])
        offsets.append((float(ring[best][0]), float(ring[best][1])))
    return offsets


def _legend(analysis: Analysis, ranked: Sequence[int], colours: np.ndarray) -> tuple[list[Any], list[str]]:
    """Stars and names of the classes, largest first, with the numbers that the figure uses."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {
        "marker": "*",
        "markersize": 13,
        "linestyle": "none",
        "markeredgecolor": "black",
        "markeredgewidth": 0.8,
    }
    stars = [Line2D([], [], color=colours[c], **style) for c in ranked]
    return stars, [f"{number} {plain(analysis.vocabulary.name(c), 24)}" for number, c in enumerate(ranked, 1)]
