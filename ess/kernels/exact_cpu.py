"""Cross entropy over all classes on the CPU, value and gradients in one pass over the pixels; compiled by numba.

A block of pixels meets all classes while its rows lie in the cache: squared distances, logits, exponentials and the weights
of the gradients overwrite one another there, and no pixels x classes array exists. The plain twin is the torch formula in
``ess.losses``.
"""

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, int32
from numba.extending import intrinsic

from cocolvis.compiled import entry, inner
from ess.kernels.threads import shared
from ess.kernels.tiles import tiles
from ess.neighbours import COSINE, EUCLIDEAN, SQUARED

_BLOCK = 16
"""Pixels that meet the classes together: a multiple of 4."""

_SPAN = 1536
"""Classes at a time when gradients are spread, so that the weights of four pixels stay in the first cache."""

_FLUSH = 128
"""Blocks whose class gradients are summed in float32 before they are added to those in float64."""

_NEAR = np.float32(1e-2)
"""Distances below this take part with o - e itself in the gradient, where o * sum(w) - sum(w * e) would cancel."""

_STRICT = {"contract"}
_FAST = _STRICT | {"reassoc", "nsz", "arcp", "nnan"}
_strict = inner(fastmath=_STRICT, error_model="numpy")
_fast = inner(fastmath=_FAST, error_model="numpy")


@intrinsic
def _bits(context, number):
    return int32(float32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.IntType(32))


@intrinsic
def _number(context, bits):
    return float32(int32), lambda context, builder, signature, values: builder.bitcast(values[0], ir.FloatType())


def _extreme(name):
    """LLVM's own maximum or minimum: of a comparison it does not see that the order in which a row is read is free."""

    def call(context, builder, signature, values):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        function = builder.module.declare_intrinsic(name, [ir.FloatType()], kind)
        return builder.call(function, values, fastmath=("nnan", "nsz", "reassoc"))

    return intrinsic(lambda context, a, b: (float32(float32, float32), call))


_larger, _smaller = _extreme("llvm.maxnum"), _extreme("llvm.minnum")

_LOG2_E = np.float32(1.44269504088896341)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(1.5 * 2**23)
_LEAST = np.float32(-87)
_C = [np.float32(1 / math.factorial(n)) for n in range(8)]
_C2, _C3, _C4, _C5, _C6, _C7 = _C[2:]


@_strict
def _exp(x):
    """exp(x) for x <= 0 within 2 units in the last place, exp(-87) below -87; float32, without branches.

    x = n ln 2 + r: a Taylor polynomial in r, and n into the exponent's bits. Adding 1.5 * 2^23 rounds to an integer n.
    """
    x = max(x, _LEAST)
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    y = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    y = y * r * r + r + float32(1)
    return _number(int32(_bits(y) + int32(_bits(shifted) << 23)))


@_fast
def _add_squares(row, tile, d, x0, x1, x2, x3):
    for c in range(len(row)):
        a, b, f, g = x0 - tile[d, c], x1 - tile[d + 1, c], x2 - tile[d + 2, c], x3 - tile[d + 3, c]
        row[c] += a * a + b * b + f * f + g * g


@_fast
def _add_products(row, tile, d, x0, x1, x2, x3):
    for c in range(len(row)):
        row[c] += x0 * tile[d, c] + x1 * tile[d + 1, c] + x2 * tile[d + 2, c] + x3 * tile[d + 3, c]


@_fast
def _scores(row, tile, x, distance):
    """Squared distances, or inner products, of one pixel x (D,) and the classes of a tile (D, n) into row (n,)."""
    row[:] = 0
    for d in range(0, len(x), 4):
        if distance == COSINE:
            _add_products(row, tile, d, x[d], x[d + 1], x[d + 2], x[d + 3])
        else:
            _add_squares(row, tile, d, x[d], x[d + 1], x[d + 2], x[d + 3])


@_fast
def _roots(row, distances, temperature):
    for c in range(len(row)):
        root = math.sqrt(row[c])
        distances[c] = root
        row[c] = -temperature * root


@_fast
def _scale(row, factor):
    for c in range(len(row)):
        row[c] *= factor


@_fast
def _divide(row, divisors):
    for c in range(len(row)):
        row[c] /= divisors[c]


@_fast
def _add(row, other):
    for c in range(len(row)):
        row[c] += other[c]


@_fast
def _largest(row):
    found = row[0]
    for c in range(len(row)):
        found = _larger(found, row[c])
    return found


@_fast
def _smallest(row):
    found = row[0]
    for c in range(len(row)):
        found = _smaller(found, row[c])
    return found


@_fast
def _exponentials(row, shift):
    total = float32(0)
    for c in range(len(row)):
        value = _exp(row[c] - shift)
        row[c] = value
        total += value
    return total


@_fast
def _sum(row):
    total = float32(0)
    for c in range(len(row)):
        total += row[c]
    return total


@_fast
def _dots(e, f, w0, w1, w2, w3):
    """The inner products of two dimensions of the classes with four pixels' weights: two, so that each load serves twice."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = float32(0)
    for c in range(len(e)):
        x, y = e[c], f[c]
        a0 += x * w0[c]
        a1 += x * w1[c]
        a2 += x * w2[c]
        a3 += x * w3[c]
        b0 += y * w0[c]
        b1 += y * w1[c]
        b2 += y * w2[c]
        b3 += y * w3[c]
    return a0, a1, a2, a3, b0, b1, b2, b3


@_fast
def _add_outer(sums, more, w0, w1, w2, w3, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(len(sums)):
        v0, v1, v2, v3 = w0[c], w1[c], w2[c], w3[c]
        sums[c] += v0 * x0 + v1 * x1 + v2 * x2 + v3 * x3
        more[c] += v0 * y0 + v1 * y1 + v2 * y2 + v3 * y3


@_fast
def _add_four(column, w0, w1, w2, w3):
    for c in range(len(column)):
        column[c] += w0[c] + w1[c] + w2[c] + w3[c]


@_strict
def _gather(embeddings, labels, ignore_index, at, end, points, where):
    """Fill the block with the next pixels that count: their number, and where the next search begins."""
    channels, size = embeddings.shape[1:]
    filled = 0
    while at < end and filled < _BLOCK:
        image, pixel = at // size, at % size
        if labels[image, pixel] != ignore_index:
            where[filled] = at
            for d in range(channels):
                points[filled, d] = embeddings[image, d, pixel]
            filled += 1
        at += 1
    return filled, at


@_strict
def _logits(rows, distances, points, filled, table, temperature, distance):
    """Logits of a block's pixels for all classes into rows, and their distances where those are what counts."""
    width, count = table.shape[2], distances.shape[1]
    for at in range(len(table)):
        tile = table[at]
        for i in range(filled):
            _scores(rows[i, at * width : (at + 1) * width], tile, points[i], distance)
    for i in range(filled):
        if distance == EUCLIDEAN:
            _roots(rows[i, :count], distances[i], temperature)
        else:
            _scale(rows[i, :count], temperature if distance == COSINE else -temperature)


@_strict
def _leave_out(row, mask, target, value):
    """Set what the mask leaves out, but never the target."""
    for c in range(len(row)):
        if not mask[c] and c != target:
            row[c] = value


@_strict
def _softmax(row, target):
    """(loss, factor) of a row of logits; factor * row are then the loss's derivatives by the logits, p_c - [c = t].

    The target is kept out of the sum over the others, so that a loss near 0 keeps all its digits.
    """
    own, shift = row[target], _largest(row)
    _exponentials(row, shift)
    mine = row[target]
    row[target] = 0
    others = _sum(row)
    row[target] = -others
    loss = math.log1p(others) if own == shift else math.log(others + mine) - (own - shift)
    return loss, float32(1) / (others + mine)


@_strict
def _near(row, distances, point, classes, gradient, sums):
    """Take the classes that nearly coincide with a pixel out of its weights, and add what they contribute exactly."""
    if _smallest(distances) >= _NEAR:
        return
    for c in range(len(row)):
        if distances[c] < _NEAR:
            weight = row[c] / distances[c] if distances[c] > 0 else float32(0)
            for d in range(len(point)):
                gap = weight * (point[d] - classes[d, c])
                gradient[d] += gap
                sums[d, c] -= gap
            row[c] = 0
            distances[c] = 1


@_strict
def _weigh(row, distances, factor, point, classes, temperature, distance, gradient, sums):
    """Turn derivatives by logits into the weights w_c of the gradient: sum of w_c (o - e_c), or of -w_c e_c (cosine)."""
    _scale(row, -temperature * factor * (2 if distance == SQUARED else 1))
    if distance == EUCLIDEAN:
        _near(row, distances, point, classes, gradient, sums)
        _divide(row, distances)
    if distance != COSINE:
        whole = _sum(row)
        for d in range(len(point)):
            gradient[d] += whole * point[d]


@_strict
def _spread(rows, points, filled, classes, channels, moves, sums, column):
    """Add a block's weights times class embeddings to its pixels' gradients, and times pixels to those of the classes."""
    count = classes.shape[1]
    for start in range(0, count, _SPAN):
        stop = min(start + _SPAN, count)
        for i in range(0, filled, 4):
            w0, w1, w2, w3 = rows[i, start:stop], rows[i + 1, start:stop], rows[i + 2, start:stop], rows[i + 3, start:stop]
            x0, x1, x2, x3 = points[i], points[i + 1], points[i + 2], points[i + 3]
            for d in range(0, channels, 2):
                found = _dots(classes[d, start:stop], classes[d + 1, start:stop], w0, w1, w2, w3)
                for n in range(4):
                    moves[i + n, d] -= found[n]
                    moves[i + n, d + 1] -= found[4 + n]
                own, next_own = sums[d, start:stop], sums[d + 1, start:stop]
                f = d + 1
                _add_outer(own, next_own, w0, w1, w2, w3, -x0[d], -x1[d], -x2[d], -x3[d], -x0[f], -x1[f], -x2[f], -x3[f])
            _add_four(column[start:stop], w0, w1, w2, w3)


@_strict
def _flush(classes, sums, column, slope, distance, totals):
    """Add the class gradients so far to those in float64: totals[d] of dimension d, totals[-1] of the bias."""
    for d in range(len(sums)):
        for c in range(len(column)):
            totals[d, c] += sums[d, c] + (column[c] * classes[d, c] if distance != COSINE else float32(0))
    for c in range(len(slope)):
        totals[-1, c] += slope[c]
    sums[:] = 0
    column[:] = 0
    slope[:] = 0


@entry(fastmath=_STRICT, error_model="numpy")
def _share(
    embeddings,
    labels,
    weights,
    ignore_index,
    classes,
    table,
    bias,
    mask,
    temperature,
    distance,
    bounds,
    losses,
    gradients,
    totals,
):
    """What one thread does: the pixels bounds[0]:bounds[1] of all B * N; arguments as in :func:`exact`.

    ``classes`` is (D', C), D' a multiple of 4, and ``table`` the same in tiles; rows have as many places as these.
    """
    padded, count = classes.shape
    channels, size = embeddings.shape[1:]
    rows = np.zeros((_BLOCK, table.shape[0] * table.shape[2]), np.float32)
    distances = np.ones((_BLOCK, count), np.float32)
    points, moves = np.zeros((_BLOCK, padded), np.float32), np.zeros((_BLOCK, padded), np.float32)
    sums, column, slope = np.zeros((padded, count), np.float32), np.zeros(count, np.float32), np.zeros(len(bias), np.float32)
    where, at, blocks = np.empty(_BLOCK, np.int64), bounds[0], 0
    while at < bounds[1]:
        filled, at = _gather(embeddings, labels, ignore_index, at, bounds[1], points, where)
        _logits(rows, distances, points, filled, table, temperature, distance)
        rows[filled:] = 0
        moves[:] = 0
        for i in range(filled):
            row, image, pixel = rows[i, :count], where[i] // size, where[i] % size
            target = labels[image, pixel]
            if len(bias):
                _add(row, bias)
            if len(mask):
                _leave_out(row, mask[image], target, -np.inf)
            loss, factor = _softmax(row, target)
            losses[image, pixel] = loss
            if len(totals) == 0:
                continue
            if len(mask):
                _leave_out(row, mask[image], target, 0)
            factor *= weights[image, pixel]
            if len(bias):
                _scale(row, factor)
                _add(slope, row)
                factor = float32(1)
            _weigh(row, distances[i], factor, points[i], classes, temperature, distance, moves[i], sums)
        if len(totals) == 0:
            continue
        _spread(rows, points, filled, classes, channels, moves, sums, column)
        for i in range(filled):
            for d in range(channels):
                gradients[where[i] // size, d, where[i] % size] = moves[i, d]
        blocks += 1
        if blocks % _FLUSH == 0:
            _flush(classes, sums, column, slope, distance, totals)
    if len(totals):
        _flush(classes, sums, column, slope, distance, totals)


class Exact(NamedTuple):
    """What :func:`exact` found; the gradients are those of the weighted sum of the losses, None unless asked for."""

    losses: np.ndarray
    embeddings: np.ndarray | None
    classes: np.ndarray | None
    bias: np.ndarray | None


def exact(
    embeddings, labels, weights, classes, bias, mask, *, ignore_index, temperature, distance, gradients, threads
) -> Exact:
    """The loss of each pixel, (B, N) float32 and 0 where ignored, and the gradients of sum(weights * losses).

    ``embeddings`` (B, D, N) float32 of any strides, ``labels`` (B, N) int64, ``weights`` (B, N) float32, ``classes`` (C, D)
    float32, ``bias`` (C,) float32 or None, ``mask`` (B, C) bool or None, ``distance`` EUCLIDEAN, SQUARED or COSINE.
    """
    embeddings, labels, weights = map(np.ascontiguousarray, (embeddings, labels, weights))
    images, channels, size = embeddings.shape
    count, pixels = len(classes), images * size
    padded = np.zeros((-(-channels // 4) * 4, count), np.float32)
    padded[:channels] = classes.T
    table = tiles(classes)
    losses = np.zeros((images, size), np.float32)
    moved = np.zeros(embeddings.shape if gradients else (0, 0, 0), np.float32)
    bias = np.zeros(0, np.float32) if bias is None else bias
    mask = np.zeros((0, 0), np.bool_) if mask is None else mask

    def work(bounds):
        total = np.zeros((len(padded) + 1, count) if gradients else (0, 0))
        settings = (padded, table, bias, mask, np.float32(temperature), distance)
        _share(embeddings, labels, weights, ignore_index, *settings, bounds, losses, moved, total)
        return total

    totals = shared(work, pixels, threads)
    if not gradients:
        return Exact(losses, None, None, None)
    total = sum(totals)
    return Exact(losses, moved, total[:channels].T.astype(np.float32), total[-1].astype(np.float32))
