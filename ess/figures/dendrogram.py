"""A dendrogram of the class embeddings: which classes the run placed close to each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.figures.long_tail import plain
from cocolvis.vocabulary import ClassInfo
from ess.figures.analysis import Analysis, LeftOut, scikit_learn
from ess.figures.figure import Figure, write_figure
from ess.figures.style import colour_of, group_legend, new_figure

NAME, TITLE = "dendrogram", "Dendrogram of the class embeddings"
COLUMNS = ("merge", "first", "second", "distance", "classes", "first_name", "second_name")
"""The columns of the CSV: merge C + i joins ``first`` and ``second``, each a class 1..C or an earlier merge, names are empty
for merges, and ``classes`` is how many it holds."""

ALL = 160
"""The most classes that are all drawn; of more, the MOST_FREQUENT are."""

MOST_FREQUENT = 100


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure for the classes with training images, the 100 most frequent of many; for all without a data set."""
    scikit_learn("cluster")
    chosen, embeddings = analysis.trained, analysis.embeddings
    what = f"{'all' if len(chosen) == len(embeddings) else 'the'} {len(chosen)} classes"
    what += "" if len(chosen) == len(embeddings) else " that have training images"
    if len(chosen) > ALL:
        chosen = _most_frequent(analysis.training_images)
        what = f"the {len(chosen)} classes with the most training images"
    if len(chosen) < 2:
        raise LeftOut("a dendrogram needs two classes")
    classes = [analysis.vocabulary[c + 1] for c in chosen.tolist()]
    children, distances = merges(embeddings[chosen])
    caption = (
        f"Agglomerative clustering of the embeddings of {what}: the two groups with the smallest mean distance between their"
        " classes are joined, over and over. Classes that are joined far to the left are close to each other."
    )
    rows = _rows(classes, children, distances, len(embeddings))
    return write_figure(folder, NAME, TITLE, caption, _draw(classes, children, distances), COLUMNS, rows)


def _most_frequent(images: np.ndarray) -> np.ndarray:
    """The classes 0..C-1 with the most training images (C,), ascending; ties go to the lower class."""
    return np.sort(np.argsort(-images, kind="stable")[:MOST_FREQUENT])


def merges(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average linkage of embeddings (n, d) by Euclidean distance: children (n - 1, 2) int64 and distances (n - 1,).

    Merge i joins its two children, each an embedding 0..n-1 or n plus an earlier merge. Distances do not decrease.
    """
    how: dict[str, Any] = {"n_clusters": None, "distance_threshold": 0.0, "linkage": "average"}
    model = scikit_learn("cluster").AgglomerativeClustering(**how).fit(embeddings)
    return model.children_.astype(np.int64), model.distances_


def leaves(children: np.ndarray) -> list[int]:
    """The embeddings 0..n-1 in the order of the tree, in which no branches cross."""
    n, order, waiting = len(children) + 1, list[int](), [2 * len(children)]
    while waiting:
        node = waiting.pop()
        if node < n:
            order.append(node)
        else:
            waiting += children[node - n, ::-1].tolist()
    return order


def _rows(classes: Sequence[ClassInfo], children: np.ndarray, distances: np.ndarray, total: int) -> list[list[Any]]:
    n, sizes, rows = len(classes), [1] * len(classes), list[list[Any]]()
    for number, (pair, distance) in enumerate(zip(children.tolist(), distances.tolist(), strict=True), 1):
        sizes.append(sum(sizes[node] for node in pair))
        ids = [classes[node].id if node < n else total + node - n + 1 for node in pair]
        names = [classes[node].name if node < n else None for node in pair]
        rows.append([total + number, *ids, distance, sizes[-1], *names])
    return rows


def _draw(classes: Sequence[ClassInfo], children: np.ndarray, distances: np.ndarray) -> Any:
    from matplotlib.collections import LineCollection

    n = len(classes)
    order = leaves(children)
    figure = new_figure(8.5, 1.2 + 0.145 * n)
    axes = figure.subplots()
    places = np.zeros(2 * n - 1)
    places[order] = np.arange(n)
    reached = np.concatenate([np.zeros(n), distances])
    lines = []
    for number, (first, second) in enumerate(children.tolist(), n):
        x, (upper, lower) = reached[number], places[[first, second]]
        lines.append([(reached[first], upper), (x, upper), (x, lower), (reached[second], lower)])
        places[number] = (upper + lower) / 2
    axes.add_collection(LineCollection(lines, colors="0.45", linewidths=0.9))
    axes.set(xlim=(0, max(distances[-1], 1e-9) * 1.02), ylim=(n - 0.4, -0.6), xlabel="mean distance between the classes")
    axes.set_yticks(range(n), [plain(classes[leaf].name, 32) for leaf in order], fontsize=7.5)
    for label, leaf in zip(axes.get_yticklabels(), order, strict=True):
        label.set_color(colour_of(classes[leaf]))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    group_legend(axes, classes, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, fontsize=8)
    return figure
