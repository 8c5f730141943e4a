"""How class embeddings and scratch lie in memory while pixels meet them."""

import numpy as np

TILE = 1536
"""The most classes of a tile."""

LINES = 16
"""The number of classes in a tile is a multiple of this: rows of float32 begin where a line of the cache does."""

_NUMBERS = 1 << 15
"""About how many numbers a tile of many dimensions has, so that it stays in the second cache."""


def zeros(*shape: int) -> np.ndarray:
    """Float32 zeros that begin where a line of the cache does, which saves a fifth of the time of loops over rows."""
    size = 4 * int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


def tiles(classes: np.ndarray) -> np.ndarray:
    """(C, D) as (T, D', n) float32: n classes a tile, one dimension after another, D' a multiple of 4; zeros where none is.

    Each tile is an array of its own to the compiled loops: of a part of a larger one, numba forgets that lines are contiguous,
    and loads number by number.
    """
    count, channels = classes.shape
    padded = -(-channels // 4) * 4
    number = -(-count // max(128, min(TILE, _NUMBERS // padded)))
    width = -(-count // (number * LINES)) * LINES
    table = zeros(number, padded, width)
    for tile in range(number):
        part = classes[tile * width : (tile + 1) * width]
        table[tile, :channels, : len(part)] = part.T
    return table
