"""The memory layout of class embeddings and of scratch arrays in the loops of the CPU."""

import numpy as np

TILE = 1536
"""The most classes of a tile."""

LINES = 16
"""The number of classes in a tile is a multiple of this, so that rows of float32 start at cache lines of 64 bytes."""

_NUMBERS = 1 << 15
"""About the most numbers of a tile with many dimensions, so that it stays in the second-level cache."""


def zeros(*shape: int) -> np.ndarray:
    """Float32 zeros that start at a cache line, which saves a fifth of the time of loops over rows."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def tiles(classes: np.ndarray) -> np.ndarray:
    """The (C, D) class embeddings as (T, D, N) float32: N classes per tile and D padded to a multiple of 4, with zeros.

    Each tile is contiguous. If it were a slice of one (D, C) array, numba would not know that its rows are contiguous and would
    load single numbers.
    """
    count, channels = classes.shape
    padded = -(-channels // 4) * 4
    most = max(128, min(TILE, _NUMBERS // padded // LINES * LINES))
    number = -(-count // most)
    width = -(-count // (number * LINES)) * LINES
    table = zeros(number, padded, width)
    for tile in range(number):
        part = classes[tile * width : (tile + 1) * width]
        table[tile, :channels, : len(part)] = part.T
    return table
