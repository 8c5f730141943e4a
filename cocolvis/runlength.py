"""Masks as row-major runs of equal class: the form in which they lie on disk."""

import numpy as np

MAX_PIXELS = 2**27
"""Masks with more pixels than this are refused: a fault of the data, or an attack on memory."""


def encode(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An (H, W) uint16 mask to (classes (R,) uint16, lengths (R,) uint32), row-major, neighbouring runs of different class."""
    flat = np.ascontiguousarray(mask).ravel()
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1)) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=flat.size)
    return flat[starts].astype(np.uint16), lengths.astype(np.uint32)


def decode(classes: np.ndarray, lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """The (H, W) uint16 mask of runs; a ValueError when they do not fill it exactly, or it is over MAX_PIXELS."""
    total = int(lengths.sum(dtype=np.uint64))
    if total != height * width:
        raise ValueError(f"runs cover {total} pixels, expected {height} x {width} = {height * width}")
    if total > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels are more than {MAX_PIXELS}")
    return np.repeat(classes.astype(np.uint16, copy=False), lengths).reshape(height, width)


def pixel_counts(classes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes present but 0, ascending (n,) uint16; their pixels (n,) uint32)."""
    pixels = np.bincount(classes, weights=lengths, minlength=1).astype(np.uint32)
    pixels[0] = 0
    present = np.flatnonzero(pixels)
    return present.astype(np.uint16), pixels[present]
