"""Compares two data sets: which images, pixels and classes differ, and which class became which."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cocolvis.progress import Phase, Progress, ignore
from cocolvis.storage.dataset import Dataset, Split

_CODE = 2**16
"""A class fits in 16 bits; a pair of classes (a, b) is counted under the number a * _CODE + b."""


class Pair(NamedTuple):
    """The pixels that have class ``a`` in the first data set and class ``b`` in the second; 0 is unlabelled."""

    a: int
    b: int
    pixels: int


@dataclass(slots=True)
class Difference:
    """How two data sets differ.

    ``only_a`` and ``only_b`` list the (split, image id) that only one of them holds; ``common`` counts the images that both
    hold. Of these, ``differing`` lists (split, image id, differing pixels), and ``resized`` lists (split, image id) of masks of
    another size, which are not compared. ``pixels`` counts all compared pixels; ``pairs`` is sorted by pixels, largest first.
    ``recounted`` lists (split, image id) of common images in which a class has another number of instances; None unless both
    data sets record them.
    """

    only_a: list[tuple[str, int]] = field(default_factory=list)
    only_b: list[tuple[str, int]] = field(default_factory=list)
    common: int = 0
    resized: list[tuple[str, int]] = field(default_factory=list)
    differing: list[tuple[str, int, int]] = field(default_factory=list)
    pixels: int = 0
    pairs: list[Pair] = field(default_factory=list)
    recounted: list[tuple[str, int]] | None = None

    @property
    def differing_pixels(self) -> int:
        """Pixels whose class differs, over all compared images."""
        return sum(pair.pixels for pair in self.pairs)

    @property
    def classes(self) -> list[int]:
        """The classes that gained or lost a pixel, ascending, without 0."""
        return sorted({c for pair in self.pairs for c in (pair.a, pair.b)} - {0})


class _Rows(NamedTuple):
    """A split of both data sets: the row of each image by its id, in order; empty for a data set without the split."""

    split_a: Split | None
    split_b: Split | None
    a: dict[int, int]
    b: dict[int, int]


def diff(a: Dataset, b: Dataset, progress: Progress = ignore, phase: Phase = ignore) -> Difference:
    """Compare every mask of ``a`` with the mask of the same split and image id in ``b``.

    ``progress`` counts images; ``phase`` is called for every shard whose image ids are read beforehand.
    """
    difference = Difference(recounted=[] if a.records_instances and b.records_instances else None)
    counts: dict[int, int] = {}
    splits = {name: _find_rows(a, b, name, phase) for name in sorted({*a.splits, *b.splits})}
    total = sum(len(rows.a.keys() & rows.b.keys()) for rows in splits.values())
    progress(0, total)
    for name, rows in splits.items():
        difference.only_a += [(name, image_id) for image_id in rows.a if image_id not in rows.b]
        difference.only_b += [(name, image_id) for image_id in rows.b if image_id not in rows.a]
        if rows.split_a is None or rows.split_b is None:
            continue
        for image_id in [image_id for image_id in rows.a if image_id in rows.b]:
            row_a, row_b = rows.a[image_id], rows.b[image_id]
            _compare(difference, counts, (name, image_id), rows.split_a.mask(row_a), rows.split_b.mask(row_b))
            if difference.recounted is not None and rows.split_a.instances_of(row_a) != rows.split_b.instances_of(row_b):
                difference.recounted.append((name, image_id))
            difference.common += 1
            progress(difference.common, total)
    pairs = (Pair(*divmod(code, _CODE), pixels) for code, pixels in counts.items())
    difference.pairs = sorted(pairs, key=lambda pair: (-pair.pixels, pair))
    return difference


def _compare(difference: Difference, counts: dict[int, int], image: tuple[str, int], a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        difference.resized.append(image)
        return
    difference.pixels += a.size
    where = a != b
    codes, pixels = np.unique(a[where].astype(np.int64) * _CODE + b[where], return_counts=True)
    for code, count in zip(codes.tolist(), pixels.tolist(), strict=True):
        counts[code] = counts.get(code, 0) + count
    if codes.size:
        difference.differing.append((*image, int(pixels.sum())))


def _find_rows(a: Dataset, b: Dataset, name: str, phase: Phase) -> _Rows:
    split_a, split_b = (dataset.split(name) if name in dataset.splits else None for dataset in (a, b))
    return _Rows(split_a, split_b, _rows(split_a, phase), _rows(split_b, phase))


def _rows(split: Split | None, phase: Phase) -> dict[int, int]:
    ids: list[int] = []
    for shard in split.shards() if split is not None else ():
        phase("reading the image ids", 0, 0)
        ids += shard.image_ids().tolist()
    return {image_id: row for row, image_id in enumerate(ids)}
