"""Masks as row-major runs of equal class, which is how they are stored."""

from typing import NamedTuple

import numpy as np

from cocolvis.limits import MAX_PIXELS


class Runs(NamedTuple):
    """A mask of ``height`` x ``width`` pixels as runs: ``classes`` (R,) uint16, 0 = unlabelled, and ``lengths`` (R,) uint16."""

    classes: np.ndarray
    lengths: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, mask: np.ndarray) -> "Runs":
        """The runs of an (H, W) uint16 mask."""
        return cls(*encode(mask), *mask.shape)

    def check(self, largest: int = 2**16 - 1) -> None:
        """Raise ValueError unless the runs cover exactly a mask of at most MAX_PIXELS, with classes of at most ``largest``."""
        pixels, covered = self.height * self.width, self.lengths.sum(dtype=np.int64)
        if pixels > MAX_PIXELS:
            raise ValueError(f"{self.height} x {self.width} pixels are more than {MAX_PIXELS}")
        if covered != pixels:
            raise ValueError(f"runs cover {covered} pixels, expected {self.height} x {self.width} = {pixels}")
        if self.classes.max(initial=0) > largest:
            raise ValueError(f"holds class {self.classes.max()}, the vocabulary has 1..{largest}")

    def mask(self) -> np.ndarray:
        """The (H, W) uint16 mask. The runs must have passed :meth:`check`."""
        from cocolvis.masks import run_kernels  # imported late: numba is slow to import and not always needed

        return run_kernels.expand(self.classes, self.lengths, self.height * self.width).reshape(self.height, self.width)

    def window(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(classes (R,) uint16, lengths (R,) int32): the row-major runs of mask[rows, columns], without decoding the mask."""
        from cocolvis.masks import run_kernels

        return run_kernels.window(self.classes, self.lengths, self.width, rows.start, rows.stop, columns.start, columns.stop)


def encode(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes (R,) uint16, lengths (R,) uint16): the row-major runs of an (H, W) uint16 mask.

    Neighbouring runs differ in class, except that a run of more than 65535 pixels is split into several.
    """
    from cocolvis.masks import run_kernels

    flat = np.require(mask, np.uint16, ("C", "W")).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    return run_kernels.run_lengths(flat, flat[: flat.size // 4 * 4].view(np.uint64))


def decode(classes: np.ndarray, lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """The (H, W) uint16 mask of runs. Raises ValueError if they do not cover it exactly or it exceeds MAX_PIXELS."""
    runs = Runs(classes, lengths, height, width)
    runs.check()
    return runs.mask()


def pixel_counts(classes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes (n,) uint16 that occur in the runs, ascending and without 0; their pixels (n,) uint32)."""
    from cocolvis.masks import run_kernels

    return run_kernels.pixels_of(classes, lengths)
