"""Damaged images: the error that names one, which image replaces it in a batch, and how skipped ones are reported."""

from collections.abc import Callable, Sequence

import numpy as np

from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Split

_TRIES = 1000
"""How many other images are tried in place of a damaged one."""

_REPLACEMENT_STREAM = (0, 1)
"""Separates the random numbers that choose replacements from those that augment images."""


def with_advice(error: DamagedImage) -> DamagedImage:
    """The error with a hint at --skip-damaged, for where it ends a command."""
    return DamagedImage(f"{error}; --skip-damaged leaves such images out")


def replace_damaged(
    split: Split, items: Sequence[tuple[int, int]], seed: int, check: Callable[[int], object]
) -> tuple[list[tuple[int, int]], list[DamagedImage]]:
    """The (index, draw) items of a batch with another image in place of each damaged one, and the damaged images found.

    ``check`` raises DamagedImage if the image with an index is damaged. The replacement is random but depends only on ``seed``
    and the draw, so it is the same in any process and after a resume. Raises DataError if a thousand images in a row are
    damaged, or all of the split.
    """
    sound: list[tuple[int, int]] = []
    damaged: list[DamagedImage] = []
    for index, draw in items:
        order = np.random.default_rng([seed, draw, *_REPLACEMENT_STREAM]).permutation(len(split))
        candidates = [index, *order[order != index][:_TRIES].tolist()]
        found_before = len(damaged)
        for candidate in candidates:
            try:
                check(candidate)
            except DamagedImage as error:
                damaged.append(error)
            else:
                sound.append((candidate, draw))
                break
        else:
            tried = f"all {len(split)} images" if len(candidates) == len(split) else f"{len(candidates)} images in a row"
            raise DataError(f"split {split.name}: {tried} are damaged; the first: {damaged[found_before]}")
    return sound, damaged


def describe_skipped(count: int) -> str:
    """The number of skipped pictures in words: "3 pictures skipped"."""
    return f"{count} picture{'' if count == 1 else 's'} skipped"
