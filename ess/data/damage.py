"""Damaged images: who meets them ends in one line that names them, or passes over them and tells how many there were."""

from collections.abc import Sequence

import numpy as np

from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Split

_TRIES = 1000
"""Images that are tried at most in the place of a damaged one."""

_OTHERS = (0, 1)
"""Tells the random numbers that choose them from those that augment an image."""


def advised(error: DamagedImage) -> DamagedImage:
    """The error with the way on, for where it ends a command."""
    return DamagedImage(f"{error}; --skip-damaged leaves such images out")


def replaced(split: Split, items: Sequence[tuple[int, int]], seed: int) -> tuple[list[tuple[int, int]], list[DamagedImage]]:
    """The (index, draw) of a batch with another image where one is damaged, and the damaged images that were met.

    The other one is random, by ``seed`` and the draw alone, and so the same in whichever process, and after a resume. A
    DataError when a thousand in a row are damaged, or all of the split.
    """
    found, damaged = [], []
    for index, draw in items:
        others = np.random.default_rng([seed, draw, *_OTHERS]).permutation(len(split))
        candidates = [index, *others[others != index][:_TRIES].tolist()]
        before = len(damaged)
        for candidate in candidates:
            try:
                split[candidate].image()
            except DamagedImage as error:
                damaged.append(error)
            else:
                found.append((candidate, draw))
                break
        else:
            tried = f"all {len(split)} images" if len(candidates) == len(split) else f"{len(candidates)} images in a row"
            raise DataError(f"split {split.name}: {tried} are damaged; the first: {damaged[before]}")
    return found, damaged


def skipped(count: int) -> str:
    """What is told in the end: "3 pictures skipped"."""
    return f"{count} picture{'' if count == 1 else 's'} skipped"
