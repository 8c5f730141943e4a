"""The long-tailed sample: the classes of COCO+LVIS as often as in LVIS, together in scenes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sample.families import looks_of_families, stuff_table
from cocolvis.sample.output import filled
from cocolvis.sample.scenes import GOLDEN
from cocolvis.sample.tree import MAX_IMAGE_ID, Drawing, Scene, write_tree
from cocolvis.vocabulary import ClassInfo, coco_lvis

SCENES = {
    "home": 0.2,
    "street": 0.19,
    "park": 0.16,
    "kitchen": 0.1,
    "coast": 0.08,
    "meal": 0.07,
    "mountains": 0.06,
    "office": 0.06,
    "bathroom": 0.04,
    "station": 0.04,
}
"""The types of scenes and their shares of the images."""

_THINGS, _STUFF = (4, 11), (2, 5)
"""The classes of an image: from the first number to the second minus 1."""

_SLACK = 1.06
"""Room in all images together, as a multiple of what the classes need."""

_SECOND = 0.25
"""The probability that an image shows a second object of a class."""


@dataclass(frozen=True, slots=True)
class LongTail:
    """A size of the long-tailed sample.

    A class that n training images of LVIS show is in max(``scale`` * n, sqrt(n)) training images, rounded up: frequent classes
    shrink in proportion, and rare ones less, so that they keep their order.
    """

    classes: int
    scale: float
    size: int


LONG_TAILS = {
    "longtail-tiny": LongTail(classes=300, scale=0.08, size=96),
    "longtail-small": LongTail(classes=1284, scale=0.15, size=128),
    "longtail-full": LongTail(classes=1284, scale=1.0, size=192),
}


def write_long_tail(
    out: Path,
    sample: LongTail,
    *,
    seed: int = 0,
    workers: int = 1,
    progress: Progress = ignore,
    announce: Announce = ignore,
) -> None:
    """Write a long-tailed COCO + LVIS tree to the folder ``out``, with the layout of the real data sets.

    Every class is in both splits. Images are scenes of ten types, each with its own stuff and things that prefer it. The bytes
    depend on ``sample`` and ``seed`` only; looks and frequencies do not depend on ``seed``, and two seeds share no picture.
    ``progress`` and ``announce`` are those of :func:`cocolvis.sample.writer.write_sample`. ``out`` must be new or empty and
    stays so until everything is written. Raises DataError if ``seed`` is negative, or if the folder is not empty, cannot be
    written, or is written by another process.
    """
    used = used_classes(sample.classes)
    heights = {c.id: stuff_table()[_stuff_name(c)].height for c in used if "stuff" in c.sources}
    with filled(out, seed, announce) as root:
        key = (seed, sample.classes, round(1000 * sample.scale), sample.size)
        drawing = Drawing(used, looks_of_families(used, sample.size), sample.size, key, heights)
        write_tree(root, _plan(used, sample, key), drawing, progress, workers)


def used_classes(count: int) -> list[ClassInfo]:
    """``count`` of the 1284 classes: of each frequency group its share, spread evenly over the ranking by frequency."""
    ranked = sorted(coco_lvis(), key=lambda c: (c.group or "", -_frequency(c), c.id))
    return [ranked[k] for k in ((np.arange(count) + 0.5) * len(ranked) / count).astype(int).tolist()]


def target(c: ClassInfo, sample: LongTail) -> int:
    """The number of training images that show class ``c``, for stuff before the choice of the number of images."""
    n = _frequency(c)
    return math.ceil(max(sample.scale * n, math.sqrt(n)))


def _frequency(c: ClassInfo) -> int:
    """The number of training images of LVIS v1 with a thing, or an estimate for stuff in as many images."""
    return c.images if c.images is not None else 100 * stuff_table()[c.name].images


def _stuff_name(c: ClassInfo) -> str:
    return coco_lvis().categories("stuff")[c.sources["stuff"]]


def _plan(used: Sequence[ClassInfo], sample: LongTail, key: tuple[int, ...]) -> list[Scene]:
    """Plan what each image shows, in order of image id."""
    rng = np.random.default_rng(key)
    train = {c.id: target(c, sample) for c in used if c.images is not None}
    val = {i: max(2, math.ceil(n / 5)) for i, n in train.items()}
    counts = {s: math.ceil(_SLACK * sum(t.values()) / (np.mean(_THINGS) - 0.5)) for s, t in (("train", train), ("val", val))}
    ids = (rng.choice(MAX_IMAGE_ID, size=sum(counts.values()), replace=False) + 1).tolist()
    scenes: list[Scene] = []
    for split, wanted in (("train", train), ("val", val)):
        types = rng.choice(len(SCENES), counts[split], p=list(SCENES.values()))
        stuff, things = _cast(used, wanted, types, rng)
        for k in range(counts[split]):
            folder = "val2017" if split == "val" and k % 3 else "train2017"
            scenes.append(Scene(len(scenes), ids[len(scenes)], split, folder, things[k], stuff[k]))
    return sorted(scenes, key=lambda s: s.image_id)


def _cast(
    used: Sequence[ClassInfo], wanted: dict[int, int], types: np.ndarray, rng: np.random.Generator
) -> tuple[list[list[ClassInfo]], list[list[ClassInfo]]]:
    """The stuff and the things of each image, whose scene types are ``types``; ``wanted`` is class id -> images.

    The ten classes that are both are stuff in up to a third of their images, and things in the others.
    """
    table, names = stuff_table(), list(SCENES)
    stuff = [c for c in used if "stuff" in c.sources]
    rows = [table[_stuff_name(c)] for c in stuff]
    room = rng.integers(*_STUFF, len(types))
    shares = np.array([row.images for row in rows])
    numbers = np.maximum(2, np.floor(shares / shares.sum() * room.sum() / _SLACK)).astype(int)
    numbers = np.minimum(numbers, [wanted[c.id] // 3 if c.id in wanted else len(types) for c in stuff])
    liking = np.array([[1 if name in row.scenes else 0.03 for name in names] for row in rows])
    shown = np.zeros((len(types), len(coco_lvis()) + 1), bool)
    stuff_hands = _deal(stuff, numbers, liking, types, room, shown, rng)
    things = [c for c in used if c.id in wanted]
    left = np.array([wanted[c.id] for c in things]) - shown[:, [c.id for c in things]].sum(axis=0)
    hands = _deal(things, left, _homes(things), types, rng.integers(*_THINGS, len(types)), shown, rng)
    for hand in hands:
        hand += [c for c in hand if rng.random() < _SECOND]
    return stuff_hands, [[hand[k] for k in rng.permutation(len(hand))] for hand in hands]


def _homes(things: Sequence[ClassInfo]) -> np.ndarray:
    """How much each class likes each type of scene, (C, S): each has a home, and a second one that it likes less."""
    bounds = np.cumsum(list(SCENES.values()))
    liking = np.full((len(things), len(SCENES)), 0.04)
    for k, c in enumerate(things):
        liking[k, np.searchsorted(bounds, c.id * GOLDEN * 7 % 1).clip(0, len(SCENES) - 1)] = 0.3
        liking[k, np.searchsorted(bounds, c.id * GOLDEN % 1).clip(0, len(SCENES) - 1)] = 1
    return liking


def _deal(
    classes: Sequence[ClassInfo],
    numbers: np.ndarray,
    liking: np.ndarray,
    types: np.ndarray,
    room: np.ndarray,
    shown: np.ndarray,
    rng: np.random.Generator,
) -> list[list[ClassInfo]]:
    """Deal each of C classes to exactly ``numbers`` (C,) different images, at most ``room`` (N,) classes to an image.

    The probability of an image is proportional to how much the class likes its type, ``liking[:, types]`` with ``liking``
    (C, S) and ``types`` (N,), and to the room that is left. ``shown`` (N, ids) bool
    is true where an image already shows a class, and is updated.
    """
    hands: list[list[ClassInfo]] = [[] for _ in room]
    room = room.copy()
    for k in np.argsort(-numbers, kind="stable").tolist():
        c, free = classes[k], np.flatnonzero((room > 0) & ~shown[:, classes[k].id])
        keys = np.log(liking[k, types[free]] * room[free]) + rng.gumbel(size=len(free))
        chosen = free[np.argsort(-keys, kind="stable")[: numbers[k]]]
        room[chosen] -= 1
        shown[chosen, c.id] = True
        for i in chosen.tolist():
            hands[i].append(c)
    return hands
