"""Clusters of the class embeddings by k-means, as a list of names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocolvis.figures.long_tail import plain
from ess.figures.analysis import Analysis, LeftOut, scikit_learn
from ess.figures.figure import Figure, write_figure

NAME, TITLE = "clusters", "Clusters of the class embeddings"
COLUMNS = ("cluster", "classes_in_cluster", "class", "name", "group", "distance_to_centre")
"""The columns of the CSV, with a row for every class that was clustered."""

STARTS = 10
"""How many times k-means starts; the clusters with the least sum of squared distances are kept."""

_NAMED = 40
"""The most names of a cluster in the picture."""

_WIDE, _POINTS, _LINE = 3.5, 7.5, 0.145
"""The width of a column in inches, the size of the font in points, and the distance of two lines in inches."""


_SHORT = 40
"""The lines of a column below which no other column is begun."""


class Cluster(NamedTuple):
    """The embeddings 0..n-1 of a cluster and their distances to its centre, (m,) each, nearest first."""

    members: np.ndarray
    distances: np.ndarray


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure for the classes with training images, or for all without a data set."""
    options, chosen = analysis.options, analysis.trained
    if not chosen.size:
        raise LeftOut("no class has training images")
    classes = [analysis.vocabulary[c + 1] for c in chosen.tolist()]
    found = cluster(analysis.embeddings[chosen], options.clusters, options.seed)
    rows = [
        [number, len(one.members), classes[c].id, classes[c].name, classes[c].group, distance]
        for number, one in enumerate(found, 1)
        for c, distance in zip(one.members.tolist(), one.distances.tolist(), strict=True)
    ]
    how = f"k-means, {len(found)} clusters, seed {options.seed}, the best of {STARTS} starts"
    which = "" if len(classes) == len(analysis.vocabulary) else " that have training images"
    caption = (
        f"The {len(classes):,} classes{which} in clusters of their embeddings ({how}), the largest cluster first. The first"
        " names of a cluster are the nearest to its centre."
    )
    drawn = _draw([[classes[c].name for c in one.members.tolist()] for one in found], how)
    return write_figure(folder, NAME, TITLE, caption, drawn, COLUMNS, rows)


def cluster(embeddings: np.ndarray, clusters: int, seed: int) -> list[Cluster]:
    """k-means of embeddings (n, d) into ``clusters``, or as many as there are different embeddings; the largest comes first.

    Ties go to the cluster with the lowest member.
    """
    k = min(clusters, len(np.unique(embeddings, axis=0)))
    model = scikit_learn("cluster").KMeans(k, n_init=STARTS, random_state=seed).fit(embeddings)
    distances = np.linalg.norm(embeddings - model.cluster_centers_[model.labels_], axis=1)
    found = []
    for label in np.unique(model.labels_):
        members = np.flatnonzero(model.labels_ == label)
        members = members[np.argsort(distances[members], kind="stable")]
        found.append(Cluster(members, distances[members]))
    return sorted(found, key=lambda one: (-len(one.members), one.members.min()))


def _draw(clusters: Sequence[Sequence[str]], how: str) -> Any:
    """The names of each cluster as a paragraph, in columns of equal height."""
    from matplotlib.figure import Figure as Canvas

    blocks = [_paragraph(number, names) for number, names in enumerate(clusters, 1)]
    columns = _columns(blocks)
    lines = max(sum(len(block) + 1 for block in column) for column in columns)
    height, width = lines * _LINE + 0.5, _WIDE * len(columns)
    figure = Canvas(figsize=(width, height))
    figure.text(0.1 / width, 1 - 0.12 / height, how, fontsize=9, color="0.25", va="top")
    for number, column in enumerate(columns):
        down = 0.42
        for block in column:
            for place, line in enumerate(block):
                at = ((number * _WIDE + 0.1) / width, 1 - down / height)
                figure.text(*at, plain(line), fontsize=_POINTS, va="top", weight="normal" if place else "bold")
                down += _LINE
            down += _LINE
    return figure


def _paragraph(number: int, names: Sequence[str]) -> list[str]:
    """The lines of a cluster: its number and size, then its names."""
    count = "1 class" if len(names) == 1 else f"{len(names):,} classes"
    more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
    return [f"{number}  ({count})", *_wrapped([*names[:_NAMED], *more])]


def _wrapped(names: Sequence[str]) -> list[str]:
    """Names separated by commas, in lines that fit a column."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    font = ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 100)
    room = (_WIDE - 0.3) * 72 / _POINTS * 100
    lines = [""]
    for place, name in enumerate(names):
        part = (name if len(name) <= 40 else f"{name[:39]}…") + ("," if place < len(names) - 1 else "")
        longer = f"{lines[-1]} {part}" if lines[-1] else part
        if font.getlength(longer) <= room or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return lines


def _columns(blocks: Sequence[list[str]]) -> list[list[list[str]]]:
    """The paragraphs in order, in at most four columns that are as low as possible."""
    lines = sum(len(block) + 1 for block in blocks)
    wanted = min(4, -(-lines // _SHORT))
    height = -(-lines // wanted)
    while len(columns := _filled(blocks, height)) > wanted:
        height += 1
    return columns


def _filled(blocks: Sequence[list[str]], height: int) -> list[list[list[str]]]:
    """Columns of at most ``height`` lines, unless a paragraph alone is higher."""
    columns: list[list[list[str]]] = [[]]
    for block in blocks:
        if columns[-1] and sum(len(other) + 1 for other in columns[-1]) + len(block) + 1 > height:
            columns.append([])
        columns[-1].append(block)
    return columns
