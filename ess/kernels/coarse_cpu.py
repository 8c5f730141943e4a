"""The class with the largest score at each pixel, from what the decoder gives on a coarser grid, on the CPU; compiled by numba.

Bilinear interpolation never leaves the range of the four grid points around a pixel. So a class can only win somewhere between
them if its largest score there is at least the largest of all classes' smallest scores. A few classes remain in most cells of
the grid, and only these are interpolated. The result is exact; the scores of all classes at all pixels are never computed.
Threads take a few columns of the grid at a time, so that scores stay in the cache between being computed and being compared.
"""

import numpy as np

from cocolvis.compiled import entry
from ess.kernels.distances import COSINE
from ess.kernels.softmax_cpu import fast, larger, smaller, strict
from ess.kernels.threads import parallel_for
from ess.kernels.tiles import score_pair, tiles

_ROWS, _COLUMNS = 32, 16
"""How many rows and columns of cells a thread takes at a time; threads share rows."""

_LINE = 16
"""How many classes are compared with the bound at once."""


@fast
def _extremes(above, below, high, low):
    """Write the larger and the smaller one of each class's scores at two grid points."""
    for k in range(len(above)):
        high[k] = larger(above[k], below[k])
        low[k] = smaller(above[k], below[k])


@fast
def _bound(high, low, higher, lower, largest):
    """Write the largest of each class's four scores, and return the largest of the smallest ones."""
    bound = np.float32(-np.inf)
    for k in range(len(high)):
        largest[k] = larger(high[k], higher[k])
        bound = larger(bound, smaller(low[k], lower[k]))
    return bound


@fast
def _reaches(largest, first, bound):
    """Whether one of the numbers of a line that begins with ``first`` is at least the bound."""
    most = largest[first]
    for k in range(first + 1, first + _LINE):
        most = larger(most, largest[k])
    return most >= bound


@fast
def _raise(best, labels, weights, a, b, c, d, label):
    """Interpolate a class at all pixels of a cell, and replace the smaller scores with their labels."""
    for p in range(len(best)):
        score = weights[0, p] * a + weights[1, p] * b + weights[2, p] * c + weights[3, p] * d
        higher = score > best[p]
        labels[p] = label if higher else labels[p]
        best[p] = score if higher else best[p]


@fast
def _weigh(weights, down, right):
    """Write weights (4, P), those of the four grid points at the pixels of a cell; their distances are as in _run_cells."""
    p = 0
    for y in down:
        for x in right:
            weights[0, p] = (1 - y) * (1 - x)
            weights[1, p] = (1 - y) * x
            weights[2, p] = y * (1 - x)
            weights[3, p] = y * x
            p += 1


@strict
def _score(points, left, wide, table, bias, count, block, rows):
    """Write the scores of ``wide`` points (w, D) from ``left`` on to rows (n, T * N), as in _run_cells; n is even."""
    even, (tiles, _, width) = len(rows), table.shape
    if tiles:
        for i in range(wide):
            for d in range(points.shape[1]):
                block[i, d] = points[left + i, d]
        products = rows.reshape(even, tiles, width)
        for tile in range(tiles):
            for i in range(0, even, 2):
                score_pair(products, i, tile, table, tile, block, COSINE)
        for i in range(even):
            for k in range(count, tiles * width):
                rows[i, k] = -np.inf
    else:
        for i in range(wide):
            for k in range(count):
                rows[i, k] = points[left + i, k]
            for k in range(len(bias)):
                rows[i, k] += bias[k]


@strict
def _win(above, below, i, j, largest, bound, weights, best, labels):
    """Write the labels of the pixels between the points i and j of two rows of the grid. ``best`` is scratch."""
    best[:], labels[:] = -np.inf, 0
    for line in range(0, len(largest), _LINE):
        if _reaches(largest, line, bound):
            for k in range(line, line + _LINE):
                if largest[k] >= bound:
                    _raise(best, labels, weights, above[i, k], above[j, k], below[i, k], below[j, k], k)


@entry(error_model="numpy")
def _run_cells(points, table, bias, count, tops, down, starts, right, columns, found):
    """Write found (H, W), the labels of the pixels after some rows of the grid, in some of its columns (first, end).

    points (h, w, D) are those rows, and the next one if there is any. They are compared with the ``count`` classes of table
    (T, D, N); if T is 0, they are scores, to which bias (C,) is added. The rows of pixels after the point i of a column are
    tops[i]:tops[i + 1], and starts are the same for the points of a row. down (H,) and right (W,) say how far a pixel is from
    the point before it, in units of the grid.
    """
    (height, width, _), (left, last) = points.shape, columns
    wide = min(last + 1, width) - left
    length = table.shape[0] * table.shape[2] if len(table) else count
    scores = np.empty((2, wide + wide % 2, length), np.float32)  # of two rows, which take turns
    block = np.zeros((wide + wide % 2, table.shape[1]), np.float32)
    high, low = np.empty((2, length), np.float32), np.empty((2, length), np.float32)
    largest = np.full(-(-length // _LINE) * _LINE, -np.inf, np.float32)
    most = (tops[1:] - tops[:-1]).max() * (starts[left + 1 : last + 1] - starts[left:last]).max()
    room, best, labels = np.empty((4, most), np.float32), np.empty(most, np.float32), np.empty(most, np.int32)
    _score(points[0], left, wide, table, bias, count, block, scores[0])
    for row in range(len(tops) - 1):
        above, below = scores[row & 1], scores[(row + 1) & 1]
        if row + 1 < height:
            _score(points[row + 1], left, wide, table, bias, count, block, below)
        else:
            below = above
        here = down[tops[row] : tops[row + 1]]
        _extremes(above[0], below[0], high[0], low[0])
        for i in range(last - left):
            start, stop = starts[left + i], starts[left + i + 1]
            j, now, then = min(i + 1, wide - 1), i & 1, (i + 1) & 1
            _extremes(above[j], below[j], high[then], low[then])
            pixels = len(here) * (stop - start)
            if pixels:
                bound = _bound(high[now], low[now], high[then], low[then], largest)
                _weigh(room, here, right[start:stop])
                _win(above, below, i, j, largest, bound, room[:, :pixels], best[:pixels], labels[:pixels])
                for p in range(pixels):
                    found[tops[row] + p // (stop - start), start + p % (stop - start)] = labels[p]


def largest_class(
    points: np.ndarray,
    classes: np.ndarray | None,
    bias: np.ndarray | None,
    full: tuple[int, int],
    size: tuple[int, int],
    threads: int,
) -> np.ndarray:
    """(H, W) int64: the class with the largest score at each pixel; ties go to the lower class.

    The scores are the products of points (h, w, D) and ``classes`` (C, D), or the points themselves plus a bias (C,) if those
    are None. They cover ``full`` (height, width) pixels, and are interpolated as by
    ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``; the first ``size`` = (H, W) of them are needed.
    Where a score is not a number, the class is arbitrary.
    """
    height, width, channels = points.shape
    table = np.empty((0, 0, 0), np.float32) if classes is None else tiles(classes)
    added = np.require(() if bias is None else bias, np.float32, ("C", "W"))
    count = channels if classes is None else len(classes)
    (tops, down), (starts, right) = (axis(*each) for each in zip((height, width), full, size, strict=True))
    found = np.empty(size, np.int64)
    columns = [(first, min(first + _COLUMNS, width)) for first in range(0, width, _COLUMNS)]
    for first in range(0, height, _ROWS):  # points in another order are copied, a few rows at a time
        rows, end = np.require(points[first : first + _ROWS + 1], np.float32, ("C", "W")), min(first + _ROWS, height)
        below = tops[first : end + 1]
        jobs = [(rows, table, added, count, below, down, starts, right, each, found) for each in columns]
        parallel_for(lambda: (_run_cells, lambda: None), jobs, threads)
    return found


def axis(points: int, full: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts (points + 1,) int64, distance (size,) float32) along one axis, as in :func:`_run_cells`."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(points / full) - np.float32(0.5)
    centres = np.maximum(centres, np.float32(0))
    before = np.minimum(centres.astype(np.int64), points - 1)
    return np.searchsorted(before, np.arange(points + 1)), centres - before.astype(np.float32)
