"""The classes of the scale sample: combinations of visible attributes, as many as needed, each dividing a coarser one."""

from functools import cache, lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np

from cocolvis.sample.scenes import GOLDEN

FEWEST, MOST = 100, 10_000
"""The limits of the number of classes."""

KINDS = ("stripes", "dots", "checks", "rings", "grid")

HUES = ("red", "orange", "yellow", "lime", "green", "teal", "cyan", "blue", "violet", "pink")

SIZES = ("small", "large")

_ROUNDS = ("period", "hue", "contrast", "size", "hue", "period", "contrast")
"""The attribute that halves the classes in each round."""


class Bin(NamedTuple):
    """What a class looks like: its kind of texture, and an interval of 0..1 of each other attribute."""

    kind: str
    hue: tuple[float, float] = (0, 1)
    size: tuple[float, float] = (0, 1)
    period: tuple[float, float] = (0, 1)
    contrast: tuple[float, float] = (0, 1)


class Hierarchy(NamedTuple):
    """All classes that any sample can have, in the order in which they are added.

    ``bins[i]`` and ``names[i]`` belong to class i + 1 of the finest labels; ``parents[i]`` is the class of which it
    was a part before it was added, 0 for the first 100.
    """

    bins: list[Bin]
    names: list[str]
    parents: list[int]


@cache
def hierarchy() -> Hierarchy:
    """The 10,000 finest classes.

    The first 100 are the combinations of ten hues, five kinds of texture and two sizes. Every further class is the upper half
    of an earlier one, whose number keeps the lower half. In each round one attribute is halved in all classes, in an order
    that spreads over them. A sample with C classes has the first C.
    """
    cells = [
        Bin(kind, hue=(h / len(HUES), (h + 1) / len(HUES)), size=(s / 2, (s + 1) / 2))
        for s, h, kind in product(range(2), range(len(HUES)), KINDS)
    ]
    names = [f"{size} {hue} {kind}" for size, hue, kind in product(SIZES, HUES, KINDS)]
    parents = [0] * len(cells)
    for number, attribute in enumerate(_ROUNDS, 1):
        for k in np.argsort(np.arange(len(cells)) * GOLDEN % 1, kind="stable").tolist():
            if len(cells) == MOST:
                break
            low, high = getattr(cells[k], attribute)
            middle = (low + high) / 2
            cells.append(cells[k]._replace(**{attribute: (middle, high)}))
            cells[k] = cells[k]._replace(**{attribute: (low, middle)})
            names.append(f"{names[k]} +{attribute}{number}")
            parents.append(k + 1)
    return Hierarchy(cells, names, parents)


@lru_cache(maxsize=8)
def coarsened(classes: int) -> np.ndarray:
    """The label among ``classes`` of each of the 10,000 finest classes: (10001,) uint16, read-only, with 0 for 0."""
    labels = np.arange(MOST + 1, dtype=np.uint16)
    for label, parent in enumerate(hierarchy().parents, 1):
        if label > classes:
            labels[label] = labels[parent]
    labels.setflags(write=False)
    return labels
