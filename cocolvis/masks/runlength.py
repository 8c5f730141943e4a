"""Masks as row-major runs of equal class: the form in which they lie on disk."""

from typing import NamedTuple

import numpy as np

from cocolvis.limits import MAX_PIXELS


class Runs(NamedTuple):
    """A mask (``height``, ``width``) as runs: ``classes`` (R,) uint16, 0 = unlabelled, and ``lengths`` (R,) uint16."""

    classes: np.ndarray
    lengths: np.ndarray
    height: int
    width: int

    @classmethod
    def of(cls, mask: np.ndarray) -> "Runs":
        """Those of an (H, W) uint16 mask."""
        return cls(*encode(mask), *mask.shape)

    def check(self, largest: int = 2**16 - 1) -> None:
        """A ValueError unless they fill the mask exactly, which has at most MAX_PIXELS, with classes up to ``largest``."""
        pixels, covered = self.height * self.width, self.lengths.sum(dtype=np.int64)
        if pixels > MAX_PIXELS:
            raise ValueError(f"{self.height} x {self.width} pixels are more than {MAX_PIXELS}")
        if covered != pixels:
            raise ValueError(f"runs cover {covered} pixels, expected {self.height} x {self.width} = {pixels}")
        if self.classes.max(initial=0) > largest:
            raise ValueError(f"holds class {self.classes.max()}, the vocabulary has 1..{largest}")

    def mask(self) -> np.ndarray:
        """The mask, (H, W) uint16, of runs that were checked."""
        from cocolvis.masks import kernels  # numba is slow to import, and who only counts never decodes

        return kernels.expand(self.classes, self.lengths, self.height * self.width).reshape(self.height, self.width)

    def window(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(classes (R,) uint16, lengths (R,) int32) of a part of the mask, row-major, without decoding it."""
        from cocolvis.masks import kernels

        return kernels.window(self.classes, self.lengths, self.width, rows.start, rows.stop, columns.start, columns.stop)


def encode(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An (H, W) uint16 mask to (classes (R,) uint16, lengths (R,) uint16), row-major.

    Neighbouring runs differ in class, but for a run of more than 65535 pixels, which is stored as several.
    """
    from cocolvis.masks import kernels

    flat = np.require(mask, np.uint16, ("C", "W")).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    return kernels.run_lengths(flat, flat[: flat.size // 4 * 4].view(np.uint64))


def decode(classes: np.ndarray, lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """The (H, W) uint16 mask of runs; a ValueError when they do not fill it exactly, or it is over MAX_PIXELS."""
    runs = Runs(classes, lengths, height, width)
    runs.check()
    return runs.mask()


def pixel_counts(classes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes present but 0, ascending (n,) uint16; their pixels (n,) uint32)."""
    from cocolvis.masks import kernels

    return kernels.pixels_of(classes, lengths)
