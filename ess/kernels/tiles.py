"""The memory layout of class embeddings and of scratch arrays in the loops of the CPU, and their comparison with pixels."""

import numpy as np

from ess.kernels.distances import COSINE
from ess.kernels.softmax_cpu import fast

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


@fast
def _add_squares(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[tile, d, c], table[tile, d + 1, c], table[tile, d + 2, c], table[tile, d + 3, c]
        rows[i, at, c] += (x0 - e) * (x0 - e) + (x1 - f) * (x1 - f) + (x2 - g) * (x2 - g) + (x3 - h) * (x3 - h)
        rows[i + 1, at, c] += (y0 - e) * (y0 - e) + (y1 - f) * (y1 - f) + (y2 - g) * (y2 - g) + (y3 - h) * (y3 - h)


@fast
def _add_products(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[tile, d, c], table[tile, d + 1, c], table[tile, d + 2, c], table[tile, d + 3, c]
        rows[i, at, c] += x0 * e + x1 * f + x2 * g + x3 * h
        rows[i + 1, at, c] += y0 * e + y1 * f + y2 * g + y3 * h


@fast
def score_pair(rows, i, at, table, tile, points, distance):
    """Squared distances, or inner products, of the pixels i and i + 1 and the classes of one tile, into rows[i : i + 2, at].

    Two pixels share each class that is loaded. Four dimensions at a time save loads and stores of the rows.
    """
    for c in range(table.shape[2]):
        rows[i, at, c] = 0
        rows[i + 1, at, c] = 0
    for d in range(0, points.shape[1], 4):
        x0, x1, x2, x3 = points[i, d], points[i, d + 1], points[i, d + 2], points[i, d + 3]
        y0, y1, y2, y3 = points[i + 1, d], points[i + 1, d + 1], points[i + 1, d + 2], points[i + 1, d + 3]
        if distance == COSINE:
            _add_products(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3)
        else:
            _add_squares(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3)
