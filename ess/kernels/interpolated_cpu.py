"""Cross entropy over bilinearly interpolated logits on the CPU, value and gradient in one pass; compiled by numba.

The logits lie on a grid that is coarser than the pixels. Those of a pixel are weighted sums of the four grid points around it;
they are computed in one row per pixel, turned into probabilities there, and added to the gradients of the four grid points. So
the logits of all pixels, which need hundreds of times as much memory as the grid, never exist. The reference is
``torch.nn.functional.cross_entropy`` after ``interpolate``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, int32
from numba.extending import intrinsic

from cocolvis.compiled import entry, inlined
from ess.kernels.coarse_cpu import axis
from ess.kernels.threads import parallel_for
from ess.kernels.tiles import zeros

_strict = inlined(fastmath={"contract"}, error_model="numpy")
_fast = inlined(fastmath={"contract", "reassoc", "nsz", "arcp", "nnan"}, error_model="numpy")

_LN_2 = np.float32(math.log(2))
_PER_LN_2 = np.float32(1 / math.log(2))


# The next functions resemble those of exact_cpu_loops. They cannot be shared, because numba's cache of what is compiled from
# this file would not notice a change in another one.


@intrinsic
def _bits(context, number):
    """The bits of a float32 as int32."""
    return int32(float32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.IntType(32))


@intrinsic
def _number(context, bits):
    """The float32 with these bits, given as int32."""
    return float32(int32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.FloatType())


@intrinsic
def _larger(context, a, b):
    """LLVM's own maximum of two float32, which it vectorises over a row."""

    def call(context, builder, signature, values):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        function = builder.module.declare_intrinsic("llvm.maxnum", [ir.FloatType()], kind)
        return builder.call(function, values, fastmath=("nnan", "nsz", "reassoc"))

    return float32(float32, float32), call


_ROUND = np.float32(1.5 * 2**23)
"""Adding this to a small float32 rounds it to an integer, which is then in the lowest bits."""
_LEAST = np.float32(-126)
"""The smallest exponent of a normal float32."""
_FIT = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _FIT.astype(np.float32)


@_strict
def _exp2(x):
    """2^x for x <= 0, float32 within 2 units in the last place, and 2^-126 for x < -126. Free of branches."""
    x = max(x, _LEAST)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    y = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    return _number(int32(_bits(y) + int32(_bits(shifted) << 23)))  # type: ignore[call-arg]  # numba adds the context


@_fast
def _between(row, a, b, share):
    """row = a + share * (b - a)."""
    for c in range(len(row)):
        row[c] = a[c] + share * (b[c] - a[c])


@_fast
def _logits(row, left, right, share):
    """Write the logits of a pixel for base 2, and return the largest: left + share * (right - left), divided by ln 2."""
    largest = float32(-np.inf)
    for c in range(len(row)):
        value = _PER_LN_2 * (left[c] + share * (right[c] - left[c]))
        row[c] = value
        largest = _larger(largest, value)  # type: ignore[call-arg]  # numba adds the context
    return largest


@_fast
def _exponentials(row, best):
    """row = 2^(row - best); returns the sum."""
    total = float32(0)
    for c in range(len(row)):
        value = _exp2(row[c] - best)
        row[c] = value
        total += value
    return total


@_fast
def _add_to_two(first, second, row, a, b):
    """first += a * row, second += b * row."""
    for c in range(len(row)):
        first[c] += a * row[c]
        second[c] += b * row[c]


@_strict
def _pixel(row, best, target):
    """Turn the logits of a pixel into its probabilities, less 1 for the target and up to a factor; returns (loss, factor).

    The target does not enter the sum over the others, so that a loss near 0 keeps all its digits.
    """
    own = row[target]
    row[target] = -np.inf
    others = _exponentials(row, best)
    whole = others + _exp2(own - best)
    row[target] = -others
    loss = math.log1p(others) if own == best else math.log(whole) - _LN_2 * (own - best)
    return loss, float32(1) / whole


@_strict
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
                losses[y, x], factor = _pixel(row, best, labels[y, x])
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
    (images, height, width, classes), size = grid.shape, labels.shape[1:]
    (tops, down), (starts, right) = axis(height, full[0], size[0]), axis(width, full[1], size[1])
    losses = np.zeros(labels.shape, np.float32)
    total = np.zeros_like(grid) if gradient else None

    def worker() -> tuple[Callable[[int, int], None], Callable[[], None]]:
        moves, scratch = zeros(2 if gradient else 0, width, classes), zeros(5, classes)
        place = [0, 0]

        def compute(image: int, row: int) -> None:
            place[:] = image, row
            _run(grid[image], row, tops, down, starts, right, labels[image], ignore_index, losses[image], moves, scratch)

        def add() -> None:
            if total is not None:
                image, row = place
                total[image, row] += moves[0]
                total[image, min(row + 1, height - 1)] += moves[1]
                moves[:] = 0

        return compute, add

    parallel_for(worker, [(image, row) for image in range(images) for row in range(height)], threads)
    return Interpolated(losses, total)
