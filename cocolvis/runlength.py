"""Masks as row-major runs of equal class: the form in which they lie on disk."""

import numpy as np

MAX_PIXELS = 2**27
"""Masks with more pixels than this are refused: a fault of the data, or an attack on memory."""


def encode(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An (H, W) uint16 mask to (classes (R,) uint16, lengths (R,) uint16), row-major.

    Neighbouring runs differ in class, but for a run of more than 65535 pixels, which is stored as several.
    """
    from cocolvis import kernels

    flat = np.require(mask, np.uint16, ("C", "W")).reshape(-1)
    if not flat.size:
        return np.zeros(0, np.uint16), np.zeros(0, np.uint16)
    return kernels.run_lengths(flat, flat[: flat.size // 4 * 4].view(np.uint64))


def decode(classes: np.ndarray, lengths: np.ndarray, height: int, width: int) -> np.ndarray:
    """The (H, W) uint16 mask of runs; a ValueError when they do not fill it exactly, or it is over MAX_PIXELS."""
    pixels = height * width
    if pixels > MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels are more than {MAX_PIXELS}")
    from cocolvis import kernels  # numba is slow to import, and who only counts never decodes

    mask = kernels.expand(classes, lengths, pixels)
    if len(mask) < pixels:
        raise ValueError(f"runs cover {lengths.sum(dtype=np.uint64)} pixels, expected {height} x {width} = {pixels}")
    return mask.reshape(height, width)


def pixel_counts(classes: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes present but 0, ascending (n,) uint16; their pixels (n,) uint32)."""
    from cocolvis import kernels

    return kernels.pixels_of(classes, lengths)
