"""How class embeddings lie in memory while pixels meet them."""

import numpy as np

TILE = 512
"""The most classes of a tile: the embeddings of that many stay in the first cache."""

LINES = 16
"""The number of classes in a tile is a multiple of this."""


def tiles(classes: np.ndarray) -> np.ndarray:
    """(C, D) as (T, D', n) float32: n classes a tile, one dimension after another, D' a multiple of 4; zeros where none is.

    Each tile is an array of its own to the compiled loops: of a part of a larger one, numba forgets that lines are contiguous,
    and loads number by number.
    """
    count, channels = classes.shape
    number = -(-count // TILE)
    width = -(-count // (number * LINES)) * LINES
    table = np.zeros((number * width, -(-channels // 4) * 4), np.float32)
    table[:count, :channels] = classes
    return np.ascontiguousarray(table.reshape(number, width, -1).transpose(0, 2, 1))
