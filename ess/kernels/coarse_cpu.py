"""The class with the largest score at each pixel, from scores on a coarser grid, on the CPU; compiled by numba.

Bilinear interpolation never leaves the range of the four grid points around a pixel. So a class can only win somewhere between
them if its largest score there is at least the largest of all classes' smallest scores. A few classes remain in most cells of
the grid, and only these are interpolated. The result is exact; the scores of all classes at all pixels are never computed.
"""

from collections.abc import Callable

import numpy as np

from cocolvis.compiled import entry, inlined
from ess.kernels.threads import parallel_for

_NUMBERS = 1 << 22
"""About how many scores are computed at a time."""

_LINE = 16
"""How many classes are compared with the bound at once."""

Scores = Callable[[int, int], np.ndarray]
"""scores(first, end) gives those rows of the grid: (end - first, w, C) float32."""

_fast = inlined(fastmath={"nnan", "nsz", "contract"}, error_model="numpy")


@_fast
def _bounds(a, b, c, d, largest):
    """Write the largest of each class's four scores, and return the largest of the smallest ones."""
    bound = np.float32(-np.inf)
    for k in range(len(a)):
        upper, lower = (a[k], b[k]) if a[k] > b[k] else (b[k], a[k])
        high, low = (c[k], d[k]) if c[k] > d[k] else (d[k], c[k])
        largest[k] = upper if upper > high else high
        smallest = lower if lower < low else low
        bound = bound if bound > smallest else smallest
    return bound


@_fast
def _reaches(largest, first, bound):
    """Whether one of the 16 numbers from ``first`` on is at least the bound."""
    most = largest[first]
    for k in range(first + 1, first + _LINE):
        most = most if most > largest[k] else largest[k]
    return most >= bound


@_fast
def _raise(best, labels, weights, a, b, c, d, label):
    """Interpolate a class at all pixels of a cell, and replace the smaller scores with their labels."""
    for p in range(len(best)):
        score = weights[0, p] * a + weights[1, p] * b + weights[2, p] * c + weights[3, p] * d
        higher = score > best[p]
        labels[p] = label if higher else labels[p]
        best[p] = score if higher else best[p]


@_fast
def _weigh(weights, down, right):
    """Write weights (4, P), those of the four grid points at the pixels of a cell; their distances are as in _run_row."""
    p = 0
    for y in down:
        for x in right:
            weights[0, p] = (1 - y) * (1 - x)
            weights[1, p] = (1 - y) * x
            weights[2, p] = y * (1 - x)
            weights[3, p] = y * x
            p += 1


@entry(error_model="numpy")
def _run_row(above, below, down, starts, right, found):
    """Write found (rows, W), the labels of the pixels between two rows of the grid, (w, C) each.

    down (rows,) and right (W,) say how far a pixel is from the grid point before it, in units of the grid. The columns of
    pixels after grid point i are starts[i]:starts[i + 1].
    """
    width, classes = above.shape
    largest = np.full(-(-classes // _LINE) * _LINE, -np.inf, np.float32)
    most = len(down) * (starts[1:] - starts[:-1]).max()
    room, scores, ids = np.empty((4, most), np.float32), np.empty(most, np.float32), np.empty(most, np.int32)
    for column in range(width):
        first, end = starts[column], starts[column + 1]
        if first == end:
            continue
        after = min(column + 1, width - 1)
        a, b, c, d = above[column], above[after], below[column], below[after]
        bound = _bounds(a, b, c, d, largest)
        pixels = len(down) * (end - first)
        weights, best, labels = room[:, :pixels], scores[:pixels], ids[:pixels]
        _weigh(weights, down, right[first:end])
        best[:], labels[:] = -np.inf, 0
        for line in range(0, classes, _LINE):
            if _reaches(largest, line, bound):
                for k in range(line, min(line + _LINE, classes)):
                    if largest[k] >= bound:
                        _raise(best, labels, weights, a[k], b[k], c[k], d[k], k)
        found[:, first:end] = labels.reshape(len(down), end - first)


def largest_class(
    scores: Scores, grid: tuple[int, int, int], full: tuple[int, int], size: tuple[int, int], threads: int
) -> np.ndarray:
    """(H, W) int64: the class with the largest score at each pixel; ties go to the lower class.

    The scores on a ``grid`` of (h, w, C) points cover ``full`` (height, width) pixels, and are interpolated as by
    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``; the first ``size`` = (H, W) of them are needed.
    Where a score is not a number, the class is arbitrary.
    """
    height, width, classes = grid
    (tops, down), (starts, right) = (axis(*each) for each in zip(grid, full, size, strict=False))
    found = np.empty(size, np.int64)
    rows = max(1, _NUMBERS // (width * classes))
    for first in range(0, height, rows):
        end = min(first + rows, height)
        block = np.require(scores(first, min(end + 1, height)), np.float32, ("C", "W"))
        parts = [slice(tops[row], tops[row + 1]) for row in range(first, end)]
        below = [*block[1:], block[-1]]
        jobs = [(block[i], below[i], down[part], starts, right, found[part]) for i, part in enumerate(parts)]
        parallel_for(lambda: (_run_row, lambda: None), jobs, threads)
    return found


def axis(points: int, full: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts (points + 1,) int64, distance (size,) float32) along one axis, as in :func:`_run_row`."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(points / full) - np.float32(0.5)
    centres = np.maximum(centres, np.float32(0))
    before = np.minimum(centres.astype(np.int64), points - 1)
    return np.searchsorted(before, np.arange(points + 1)), centres - before.astype(np.float32)
