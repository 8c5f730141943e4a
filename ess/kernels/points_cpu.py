"""Logits at single points of a coarser grid, on the CPU: how uncertain they are, and their cross entropy; compiled by numba.

The logits of a point are weighted sums of the four grid points around it. They are computed in one row, which stays in the
cache. The points of an image are visited in the order of the grid, so that neighbours share what was loaded. The reference is
``torch.nn.functional.grid_sample``, which stores the rows of all points.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import float32

from cocolvis.compiled import entry
from ess.kernels.softmax_cpu import LN_2, fast, larger, probabilities, strict
from ess.kernels.threads import by_grid_rows, parallel_for
from ess.kernels.tiles import zeros

_PER_LN_2 = np.float32(1 / LN_2)

_HUGE = np.float32(3e38)
"""The largest logit less this is below all others."""


@fast
def _weighted(row, a, b, c, d, u, v, w, x):
    """row = u a + v b + w c + x d; returns the largest number."""
    largest = float32(-np.inf)
    for k in range(len(row)):
        value = u * a[k] + v * b[k] + w * c[k] + x * d[k]
        row[k] = value
        largest = larger(largest, value)
    return largest


@strict
def _logits(row, above, below, column, weights, factor):
    """Write the logits of a point times a factor, and return the largest."""
    after = min(column + 1, len(above) - 1)
    u, v, w, x = factor * weights[0], factor * weights[1], factor * weights[2], factor * weights[3]
    return _weighted(row, above[column], above[after], below[column], below[after], u, v, w, x)


@fast
def _next(row, largest):
    """(the largest number below ``largest``, how often that occurs). A choice between two numbers would not be vectorised."""
    second, times = float32(-np.inf), float32(0)
    for k in range(len(row)):
        equal = float32(row[k] == largest)
        second = larger(second, row[k] - _HUGE * equal)
        times += equal
    return second, times


@fast
def _add_to_four(a, b, c, d, row, u, v, w, x):
    """a += u row, b += v row, c += w row, d += x row."""
    for k in range(len(row)):
        a[k] += u * row[k]
        b[k] += v * row[k]
        c[k] += w * row[k]
        d[k] += x * row[k]


@entry(error_model="numpy")
def _write_margins(above, below, columns, weights, margins, row):
    """Write the margins (P,) of the points between two rows of the grid, (w, C) each. ``row`` (C,) is scratch memory."""
    for p in range(len(columns)):
        largest = _logits(row, above, below, columns[p], weights[p], float32(1))
        second, times = _next(row, largest)
        margins[p] = largest - (largest if times > 1 else second)


@entry(fastmath={"contract"}, error_model="numpy")
def _write_losses(above, below, columns, weights, targets, ignore_index, losses, moves, row):
    """As :func:`_write_margins`: write the losses, and add their gradients to moves (2, w, C), which has length 0 without."""
    for p in range(len(columns)):
        if targets[p] == ignore_index:
            continue
        best = _logits(row, above, below, columns[p], weights[p], _PER_LN_2)
        losses[p], factor = probabilities(row, best, targets[p])
        if len(moves):
            at, after = columns[p], min(columns[p] + 1, len(above) - 1)
            u, v, w, x = factor * weights[p, 0], factor * weights[p, 1], factor * weights[p, 2], factor * weights[p, 3]
            _add_to_four(moves[0, at], moves[0, after], moves[1, at], moves[1, after], row, u, v, w, x)


class _Sorted(NamedTuple):
    """The points of an image in the order of the grid: ``order`` (P,) are their numbers. Those after row i of the grid are
    starts[i]:starts[i + 1], ``columns`` (P,) are the grid points before them, and ``weights`` (P, 4) those of the four around.
    """

    order: np.ndarray
    starts: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


def margins(grid: np.ndarray, places: np.ndarray, extent: tuple[int, int], *, threads: int) -> np.ndarray:
    """(P,) float32: the largest logit less the second largest at each of ``places`` (P, 2) float32, (y, x) in pixels.

    The logits ``grid`` (h, w, C) float32 of an image cover ``extent`` (height, width) pixels.
    """
    grid = np.require(grid, np.float32, ("C", "W"))
    points, found = _sorted(places, grid.shape, extent), np.zeros(len(places), np.float32)

    def worker() -> tuple[Callable[[int], None], Callable[[], None]]:
        row = zeros(grid.shape[2])

        def compute(top: int) -> None:
            part = slice(points.starts[top], points.starts[top + 1])
            below = grid[min(top + 1, len(grid) - 1)]
            _write_margins(grid[top], below, points.columns[part], points.weights[part], found[part], row)

        return compute, lambda: None

    parallel_for(worker, [(top,) for top in range(len(grid))], threads)
    return _unsorted(found, points.order)


class Losses(NamedTuple):
    """The losses (B, P) float32, 0 where ignored, and the gradient (B, h, w, C) of their sum, None unless requested."""

    losses: np.ndarray
    grid: np.ndarray | None


def losses(
    grid: np.ndarray,
    places: np.ndarray,
    targets: np.ndarray,
    extent: tuple[int, int],
    *,
    ignore_index: int,
    gradient: bool,
    threads: int,
) -> Losses:
    """The cross entropy at the ``places`` (B, P, 2) of several images, whose classes are ``targets`` (B, P) int64.

    ``grid`` (B, h, w, C) and the other arguments are as in :func:`margins`. Equal inputs give equal bits on any number of
    threads.
    """
    grid, targets = np.require(grid, np.float32, ("C", "W")), np.require(targets, np.int64, ("C", "W"))
    points = [_sorted(each, grid.shape[1:], extent) for each in places]
    found, total = np.zeros(targets.shape, np.float32), np.zeros_like(grid) if gradient else None

    def compute(image: int, top: int, moves: np.ndarray, scratch: np.ndarray) -> None:
        order, starts, columns, weights = points[image]
        part, below = slice(starts[top], starts[top + 1]), grid[image, min(top + 1, grid.shape[1] - 1)]
        labels, place = targets[image, order[part]], (columns[part], weights[part])
        _write_losses(grid[image, top], below, *place, labels, ignore_index, found[image, part], moves, scratch[0])

    by_grid_rows(compute, grid.shape, total, scratch=1, threads=threads)
    return Losses(np.stack([_unsorted(each, of.order) for each, of in zip(found, points, strict=True)]), total)


def _sorted(places: np.ndarray, grid: tuple[int, ...], extent: tuple[int, int]) -> _Sorted:
    size = np.array(grid[:2])
    scaled = np.maximum(places * (size / extent).astype(np.float32) - np.float32(0.5), np.float32(0))
    before = np.minimum(scaled.astype(np.int64), size - 1)
    cells = before[:, 0] * grid[1] + before[:, 1]
    order = np.argsort(cells, kind="stable")
    down, right = (scaled - before.astype(np.float32))[order].T
    weights = np.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], axis=1)
    return _Sorted(order, np.searchsorted(cells[order], np.arange(grid[0] + 1) * grid[1]), before[order, 1].copy(), weights)


def _unsorted(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    found = np.empty_like(values)
    found[order] = values
    return found
