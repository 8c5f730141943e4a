"""Cross entropy over bilinearly interpolated logits on the CPU, value and gradient in one pass; compiled by numba.

The logits lie on a grid that is coarser than the pixels. Those of a pixel are weighted sums of the four grid points around it;
they are computed in one row per pixel, turned into probabilities there, and added to the gradients of the four grid points. So
the logits of all pixels, which need hundreds of times as much memory as the grid, never exist. The reference is
``torch.nn.functional.cross_entropy`` after ``interpolate``.
"""

from typing import NamedTuple

import numpy as np
from numba import float32

from cocolvis.compiled import entry
from ess.kernels.coarse_cpu import axis
from ess.kernels.softmax_cpu import LN_2, fast, larger, probabilities, strict
from ess.kernels.threads import by_grid_rows

_PER_LN_2 = np.float32(1 / LN_2)


@fast
def _between(row, a, b, share):
    """row = a + share * (b - a)."""
    for c in range(len(row)):
        row[c] = a[c] + share * (b[c] - a[c])


@fast
def _logits(row, left, right, share):
    """Write the logits of a pixel for base 2, and return the largest: left + share * (right - left), divided by ln 2."""
    largest = float32(-np.inf)
    for c in range(len(row)):
        value = _PER_LN_2 * (left[c] + share * (right[c] - left[c]))
        row[c] = value
        largest = larger(largest, value)
    return largest


@fast
def _add_to_two(first, second, row, a, b):
    """first += a * row, second += b * row."""
    for c in range(len(row)):
        first[c] += a * row[c]
        second[c] += b * row[c]


@strict
def _run_row(above, below, down, starts, right, labels, ignore_index, losses, moves, scratch):
    """Write the losses (rows, W) of the pixels between two rows of the grid, (w, C) each, and add gradients to moves (2, w, C).

    down (rows,) and right (W,) say how far a pixel is from the grid point before it, in units of the grid. The columns of
    pixels after grid point i are starts[i]:starts[i + 1]. Without gradients, moves has length 0.
    """
    width = above.shape[0]
    row, at_left, at_right, to_left, to_right = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    for column in range(width):
        after = min(column + 1, width - 1)
        for y in range(len(down)):
            _between(at_left, above[column], below[column], down[y])
            _between(at_right, above[after], below[after], down[y])
            to_left[:], to_right[:] = 0, 0
            for x in range(starts[column], starts[column + 1]):
                if labels[y, x] == ignore_index:
                    continue
                best = _logits(row, at_left, at_right, right[x])
                losses[y, x], factor = probabilities(row, best, labels[y, x])
                if len(moves):
                    _add_to_two(to_left, to_right, row, factor * (float32(1) - right[x]), factor * right[x])
            if len(moves):
                _add_to_two(moves[0, column], moves[1, column], to_left, float32(1) - down[y], down[y])
                _add_to_two(moves[0, after], moves[1, after], to_right, float32(1) - down[y], down[y])


@entry(fastmath={"contract"}, error_model="numpy")
def _run(grid, row, tops, down, starts, right, labels, ignore_index, losses, moves, scratch):
    """:func:`_run_row` for the pixels after this row of a grid (h, w, C)."""
    first, end = tops[row], tops[row + 1]
    below = grid[min(row + 1, len(grid) - 1)]
    _run_row(
        grid[row],
        below,
        down[first:end],
        starts,
        right,
        labels[first:end],
        ignore_index,
        losses[first:end],
        moves,
        scratch,
    )


class Interpolated(NamedTuple):
    """The losses (B, H, W) float32, 0 where ignored, and the gradient (B, h, w, C) of their sum, None unless requested."""

    losses: np.ndarray
    grid: np.ndarray | None


def interpolated(
    grid: np.ndarray, labels: np.ndarray, full: tuple[int, int], *, ignore_index: int, gradient: bool, threads: int
) -> Interpolated:
    """The cross entropy of each pixel over the logits ``grid`` (B, h, w, C) float32, which cover ``full`` pixels.

    ``full`` is (height, width), and ``labels`` (B, H, W) int64 are those of the first H x W pixels. The logits are interpolated
    as by ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``. Equal inputs give equal bits on any number
    of threads.
    """
    grid, labels = np.require(grid, np.float32, ("C", "W")), np.require(labels, np.int64, ("C", "W"))
    (_, height, width, _), size = grid.shape, labels.shape[1:]
    (tops, down), (starts, right) = axis(height, full[0], size[0]), axis(width, full[1], size[1])
    losses = np.zeros(labels.shape, np.float32)
    total = np.zeros_like(grid) if gradient else None

    def compute(image: int, row: int, moves: np.ndarray, scratch: np.ndarray) -> None:
        _run(grid[image], row, tops, down, starts, right, labels[image], ignore_index, losses[image], moves, scratch)

    by_grid_rows(compute, grid.shape, total, scratch=5, threads=threads)
    return Interpolated(losses, total)
