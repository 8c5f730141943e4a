"""Writes a generated COCO + LVIS tree: procedural pictures with exact annotations in the formats of the real data sets."""

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from cocolvis.errors import DataError
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sample.output import filled
from cocolvis.sample.scenes import GOLDEN, looks_of
from cocolvis.sample.tree import MAX_IMAGE_ID, Drawing, Scene, write_tree
from cocolvis.vocabulary import ClassInfo, coco_lvis

ODDITIES = {"train": ("", "no stuff", "gray", "unlisted", "no things", "no stuff"), "val": ("", "no stuff")}
TURNS = ("stuff", "frequent", "common", "stuff", "frequent", "rare")

_LARGEST = 8192
"""The largest size, for which width times height is below the 2^27 pixels that pictures may have."""


def write_sample(
    out: Path,
    *,
    images: int = 120,
    classes: int = 120,
    size: int = 96,
    seed: int = 0,
    progress: Progress = ignore,
    announce: Announce = ignore,
) -> None:
    """Write a generated COCO + LVIS tree to the folder ``out``, with the layout of the real data sets.

    A quarter of the ``images`` form the LVIS val split. They show ``classes`` of the 1284 classes, each with its own colours,
    texture and (for things) outline, which do not depend on ``seed``. Width and height are within 25 % of ``size`` pixels.
    ``progress`` is called with (images written, images), ``announce`` with a line while this waits for a process that may be
    writing there. The same arguments produce the same bytes. ``out`` must be new or empty and stays so until everything is
    written. Raises DataError if an argument is out of range, or if the folder is not empty, cannot be written, or is written by
    another process.
    """
    _check(images, classes, size)
    used = _used_classes(classes)
    with filled(out, seed, announce) as root:
        write_tree(root, _plan(used, images, seed), Drawing(used, looks_of(used, size), size, (seed,)), progress)


def _check(images: int, classes: int, size: int) -> None:
    total = len(coco_lvis())
    if not 8 <= images <= MAX_IMAGE_ID:
        raise DataError(f"sample: images is {images}, expected 8..{MAX_IMAGE_ID}")
    if not 20 <= classes <= total:
        raise DataError(f"sample: classes is {classes}, expected 20..{total}")
    if not 32 <= size <= _LARGEST:
        raise DataError(f"sample: size is {size} pixels, expected 32..{_LARGEST}")


def _used_classes(count: int) -> list[ClassInfo]:
    """The 10 shared classes, then stuff, frequent, common and rare classes in turn, spread over the ids of each group.

    Two out of three are stuff or frequent, so that most classes of a small sample can be learnt; the others form its tail.
    """
    vocabulary = coco_lvis()
    streams = {}
    for group in set(TURNS):
        members = [c for c in vocabulary if c.group == group and c.kind != "both"]
        streams[group] = iter([members[k] for k in np.argsort(np.arange(len(members)) * GOLDEN % 1, kind="stable")])
    used = [c for c in vocabulary if c.kind == "both"]
    turns = cycle(TURNS)
    while len(used) < count:
        used += islice(streams[next(turns)], 1)
    return used


def _plan(used: Sequence[ClassInfo], images: int, seed: int) -> list[Scene]:
    """Plan what each image shows, in order of image id; of 40 or more images, some have an oddity of the real data sets."""
    rng = np.random.default_rng([seed, images, len(used)])
    ids = np.sort(rng.choice(MAX_IMAGE_ID, size=images, replace=False) + 1).tolist()
    order = rng.permutation(images)
    val = max(2, round(images / 4))
    scenes = []
    for split, members in (("val", np.sort(order[:val]).tolist()), ("train", np.sort(order[val:]).tolist())):
        odd = ODDITIES[split] if images >= 40 else ()
        roles = [odd[k] if k < len(odd) else "" for k in range(len(members))]
        stuff_room = [0 if role in ("no stuff", "unlisted") else int(rng.integers(2, 5)) for role in roles]
        thing_room = [0 if role == "no things" else int(rng.integers(4, 8)) for role in roles]
        floor = 3 if split == "train" else 1
        stuff = _deal([c for c in used if "stuff" in c.sources], stuff_room, floor, 0.5, rng)
        things = _deal([c for c in used if "lvis" in c.sources], thing_room, floor, 1.0, rng)
        for k, index in enumerate(members):
            folder = "val2017" if split == "val" and k % 3 else "train2017"
            scenes.append(Scene(index, ids[index], split, folder, things[k], stuff[k], roles[k]))
    return sorted(scenes, key=lambda s: s.image_id)


def _deal(
    classes: Sequence[ClassInfo], room: Sequence[int], floor: int, power: float, rng: np.random.Generator
) -> list[list[ClassInfo]]:
    """Deal classes to images, at most ``room[i]`` different ones to image i: each to ``floor`` images, then by Zipf's law.

    The classes are ranked stuff, frequent, shared, common, rare, so that LVIS's frequency groups keep their order.
    """
    groups = ("stuff", "frequent", "common", "rare")
    ranked = sorted(classes, key=lambda c: (groups.index(c.group), c.kind == "both"))
    weights = np.array([(5 + ranked.index(c)) ** -power for c in classes])
    drawn = rng.choice(len(classes), size=4 * sum(room), p=weights / weights.sum()).tolist()
    hands: list[list[ClassInfo]] = [[] for _ in room]
    free = np.asfortranarray(np.tile(np.array(room)[:, None], len(classes)))
    for k in [*range(len(classes))] * floor + drawn:
        if free[:, k].any():
            hand = int(rng.choice(len(room), p=free[:, k] / free[:, k].sum()))
            hands[hand].append(classes[k])
            free[hand] = np.maximum(free[hand] - 1, 0)
            free[hand, k] = 0
    return [[hand[k] for k in rng.permutation(len(hand))] for hand in hands]
