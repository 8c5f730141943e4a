"""Two builds compared: which images, pixels and classes differ, and which class became which."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset, Split

_CODE = 2**16
"""Classes fit 16 bits; a pair (a, b) is counted under the number a * _CODE + b."""


class Pair(NamedTuple):
    """Class ``a`` in the first data set where the second has ``b``; 0 is unlabelled."""

    a: int
    b: int
    pixels: int


@dataclass(slots=True)
class Difference:
    """What two data sets do not have in common.

    ``only_a`` and ``only_b`` are (split, image id) that one of them lacks; of the ``common`` images, ``differing`` lists
    (split, image id, pixels), and ``resized`` those whose masks have different sizes. ``pairs`` is sorted, most pixels first;
    ``pixels`` counts all pixels of the compared images.
    """

    only_a: list[tuple[str, int]] = field(default_factory=list)
    only_b: list[tuple[str, int]] = field(default_factory=list)
    common: int = 0
    resized: list[tuple[str, int]] = field(default_factory=list)
    differing: list[tuple[str, int, int]] = field(default_factory=list)
    pixels: int = 0
    pairs: list[Pair] = field(default_factory=list)

    @property
    def differing_pixels(self) -> int:
        """Pixels of another class, over all compared images."""
        return sum(pair.pixels for pair in self.pairs)

    @property
    def classes(self) -> list[int]:
        """The classes that gained or lost a pixel, ascending; 0 is not among them."""
        return sorted({c for pair in self.pairs for c in (pair.a, pair.b)} - {0})


def diff(a: Dataset, b: Dataset, progress: Progress = ignore) -> Difference:
    """Compare every mask of ``a`` with the one of the same split and image id in ``b``; ``progress`` counts images."""
    found = Difference()
    counts: dict[int, int] = {}
    total, rows = 0, {}
    for name in sorted({*a.splits, *b.splits}):
        splits = [dataset.split(name) if name in dataset.splits else None for dataset in (a, b)]
        in_a, in_b = (_rows(split) for split in splits)
        total += len(in_a.keys() & in_b.keys())
        rows[name] = splits, in_a, in_b
    for split, (splits, in_a, in_b) in rows.items():
        found.only_a += [(split, image_id) for image_id in in_a if image_id not in in_b]
        found.only_b += [(split, image_id) for image_id in in_b if image_id not in in_a]
        common = [image_id for image_id in in_a if image_id in in_b]
        for image_id in common:
            pair = [one.mask(place[image_id]) for one, place in zip(splits, (in_a, in_b), strict=True)]
            _compare(found, counts, (split, image_id), *pair)
            found.common += 1
            progress(found.common, total)
    pairs = (Pair(*divmod(code, _CODE), pixels) for code, pixels in counts.items())
    found.pairs = sorted(pairs, key=lambda pair: (-pair.pixels, pair))
    return found


def _compare(found: Difference, counts: dict[int, int], image: tuple[str, int], a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        found.resized.append(image)
        return
    found.pixels += a.size
    where = a != b
    codes, pixels = np.unique(a[where].astype(np.int64) * _CODE + b[where], return_counts=True)
    for code, count in zip(codes.tolist(), pixels.tolist(), strict=True):
        counts[code] = counts.get(code, 0) + count
    if codes.size:
        found.differing.append((*image, int(pixels.sum())))


def _rows(split: Split | None) -> dict[int, int]:
    """Image id -> row, in order; empty when the data set lacks the split."""
    return {} if split is None else {image_id: row for row, image_id in enumerate(split.image_ids().tolist())}
