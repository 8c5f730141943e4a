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
from ess.kernels.threads import chunks, shared
from ess.kernels.tiles import tiles
from ess.neighbours import COSINE, EUCLIDEAN, SQUARED

_BLOCK = 16
"""The most pixels that meet the classes together: a multiple of 4."""

_ROWS = 1 << 19
"""Numbers in the rows of a block, which has fewer pixels where there are many classes."""

_CHUNK = 8192
"""Pixels whose class gradients are summed in float32 before they are added to those of all."""

_NEAR = np.float32(1e-2)
"""Distances below this take part with o - e itself in the gradient, where o * sum(w) - sum(w * e) would cancel."""

_TINY = np.float32(1e-37)
"""The least squared distance: its root has an inverse, which a pixel exactly on its class multiplies by 0."""

_STRICT = {"contract"}
_FAST = _STRICT | {"reassoc", "nsz", "arcp", "nnan"}
_strict = inner(fastmath=_STRICT, error_model="numpy")
_fast = inner(fastmath=_FAST, error_model="numpy")
_estimate = inner(fastmath=_FAST | {"afn", "ninf"}, error_model="numpy")


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

_LN_2 = math.log(2)
_ROUND = np.float32(1.5 * 2**23)
_LEAST = np.float32(-126)
_FIT = np.polynomial.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5]).convert(kind=np.polynomial.Polynomial).coef
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = _FIT.astype(np.float32)


@_strict
def _exp2(x):
    """2^x for x <= 0 within 2 units in the last place, 2^-126 below -126; float32, without branches.

    x = n + f with |f| <= 1/2: a polynomial in f, and n into the exponent's bits. Adding 1.5 * 2^23 rounds to an integer.
    """
    x = max(x, _LEAST)
    shifted = x + _ROUND
    f = x - (shifted - _ROUND)
    y = (((((_C6 * f + _C5) * f + _C4) * f + _C3) * f + _C2) * f + _C1) * f + _C0
    return _number(int32(_bits(y) + int32(_bits(shifted) << 23)))


# The loops below take whole arrays and the place in them: a slice costs as much as a hundred places of a row.


@_fast
def _add_squares(rows, i, at, table, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[at, d, c], table[at, d + 1, c], table[at, d + 2, c], table[at, d + 3, c]
        rows[i, at, c] += (x0 - e) * (x0 - e) + (x1 - f) * (x1 - f) + (x2 - g) * (x2 - g) + (x3 - h) * (x3 - h)
        rows[i + 1, at, c] += (y0 - e) * (y0 - e) + (y1 - f) * (y1 - f) + (y2 - g) * (y2 - g) + (y3 - h) * (y3 - h)


@_fast
def _add_products(rows, i, at, table, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[at, d, c], table[at, d + 1, c], table[at, d + 2, c], table[at, d + 3, c]
        rows[i, at, c] += x0 * e + x1 * f + x2 * g + x3 * h
        rows[i + 1, at, c] += y0 * e + y1 * f + y2 * g + y3 * h


@_fast
def _scores(rows, i, at, table, points, distance):
    """Squared distances, or inner products, of the pixels i, i + 1 of ``points`` (block, D') and the classes of a tile.

    Two, so that a class loaded serves twice; four dimensions at a time, so that a row is rarely loaded.
    """
    for c in range(table.shape[2]):
        rows[i, at, c] = 0
        rows[i + 1, at, c] = 0
    for d in range(0, points.shape[1], 4):
        x0, x1, x2, x3 = points[i, d], points[i, d + 1], points[i, d + 2], points[i, d + 3]
        y0, y1, y2, y3 = points[i + 1, d], points[i + 1, d + 1], points[i + 1, d + 2], points[i + 1, d + 3]
        if distance == COSINE:
            _add_products(rows, i, at, table, d, x0, x1, x2, x3, y0, y1, y2, y3)
        else:
            _add_squares(rows, i, at, table, d, x0, x1, x2, x3, y0, y1, y2, y3)


@_estimate
def _roots(row, inverses):
    """Square roots of a row, and one over them: the processor's estimate, and a step of Newton's. None is 0."""
    for c in range(len(row)):
        square = _larger(row[c], _TINY)
        inverse = float32(1) / math.sqrt(square)
        inverses[c] = inverse
        row[c] = square * inverse


@_fast
def _scale_and_add(row, slope, other):
    for c in range(len(row)):
        row[c] = slope * row[c] + other[c]


@_fast
def _multiply(row, other):
    """row *= other; the sum of it."""
    total = float32(0)
    for c in range(len(row)):
        value = row[c] * other[c]
        row[c] = value
        total += value
    return total


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
def _exponentials(row, slope, shift):
    """row = 2^(slope * row - shift); the sum of it."""
    total = float32(0)
    for c in range(len(row)):
        value = _exp2(slope * row[c] - shift)
        row[c] = value
        total += value
    return total


@_fast
def _dots(table, at, d, rows, i):
    """Inner products of two dimensions of a tile with four pixels' weights: two, so that each load serves twice."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = float32(0)
    for c in range(table.shape[2]):
        x, y = table[at, d, c], table[at, d + 1, c]
        w0, w1, w2, w3 = rows[i, at, c], rows[i + 1, at, c], rows[i + 2, at, c], rows[i + 3, at, c]
        a0 += x * w0
        a1 += x * w1
        a2 += x * w2
        a3 += x * w3
        b0 += y * w0
        b1 += y * w1
        b2 += y * w2
        b3 += y * w3
    return a0, a1, a2, a3, b0, b1, b2, b3


@_fast
def _add_outer(sums, at, d, rows, i, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(sums.shape[2]):
        w0, w1, w2, w3 = rows[i, at, c], rows[i + 1, at, c], rows[i + 2, at, c], rows[i + 3, at, c]
        sums[at, d, c] += w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        sums[at, d + 1, c] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3


@_fast
def _take_four(column, at, rows, i, x0, x1, x2, x3):
    for c in range(column.shape[1]):
        column[at, c] -= rows[i, at, c] * x0 + rows[i + 1, at, c] * x1 + rows[i + 2, at, c] * x2 + rows[i + 3, at, c] * x3


@_strict
def _gather(embeddings, labels, ignore_index, image, at, end, points, where):
    """Fill the block with the next pixels of an image that count: their number, and where the next search begins.

    A dimension at a time: the dimensions of one pixel lie a power of two apart, and would push each other out of the cache.
    """
    filled = 0
    while at < end and filled < len(points):
        if labels[image, at] != ignore_index:
            where[filled] = at
            filled += 1
        at += 1
    for d in range(embeddings.shape[1]):
        for i in range(filled):
            points[i, d] = embeddings[image, d, where[i]]
    return filled, at


@_strict
def _measure(rows, flat, inverses, points, filled, table, distance):
    """Distances, their squares or inner products of a block's pixels and all classes into rows; and one over distances."""
    for at in range(len(table)):
        for i in range(0, filled, 2):
            _scores(rows, i, at, table, points, distance)
    for i in range(filled if distance == EUCLIDEAN else 0):
        _roots(flat[i, : inverses.shape[1]], inverses[i])


@_strict
def _leave_out(row, mask, target, value):
    """Set what the mask leaves out, but never the target."""
    for c in range(len(row)):
        if not mask[c] and c != target:
            row[c] = value


@_strict
def _softmax(row, slope, target):
    """(loss, factor) of the logits slope * row in base 2; factor * row are then the derivatives by the logits, p_c - [c = t].

    The target is kept out of the sum over the others, so that a loss near 0 keeps all its digits.
    """
    own, shift = slope * row[target], slope * (_largest(row) if slope > 0 else _smallest(row))
    row[target] = -np.inf if slope > 0 else np.inf
    others = _exponentials(row, slope, shift)
    row[target] = -others
    whole = others + _exp2(own - shift)
    loss = math.log1p(others) if own == shift else math.log(whole) - _LN_2 * (own - shift)
    return loss, float32(1) / whole


@_strict
def _take_near(rows, i, inverses, factor, points, table, moves, sums):
    """Take the classes that nearly coincide with a pixel out of its weights, and add what they contribute exactly."""
    width = table.shape[2]
    for c in range(inverses.shape[1]):
        at, place = c // width, c % width
        if inverses[i, c] * _NEAR > 1:
            weight = factor * rows[i, at, place] * inverses[i, c]
            for d in range(points.shape[1]):
                gap = weight * (points[i, d] - table[at, d, place])
                moves[i, d] += gap
                sums[at, d, place] -= gap
            rows[i, at, place] = 0


@_strict
def _spread(rows, points, factors, filled, table, distance, moves, sums, column):
    """Add a block's weights times class embeddings to its pixels' gradients, and times pixels to those of the classes."""
    for at in range(len(table)):
        for i in range(0, filled, 4):
            j, k, m = i + 1, i + 2, i + 3
            f0, f1, f2, f3 = -factors[i], -factors[j], -factors[k], -factors[m]
            for d in range(0, points.shape[1], 2):
                e = d + 1
                a0, a1, a2, a3, b0, b1, b2, b3 = _dots(table, at, d, rows, i)
                moves[i, d] += f0 * a0
                moves[j, d] += f1 * a1
                moves[k, d] += f2 * a2
                moves[m, d] += f3 * a3
                moves[i, e] += f0 * b0
                moves[j, e] += f1 * b1
                moves[k, e] += f2 * b2
                moves[m, e] += f3 * b3
                x0, x1, x2, x3 = f0 * points[i, d], f1 * points[j, d], f2 * points[k, d], f3 * points[m, d]
                y0, y1, y2, y3 = f0 * points[i, e], f1 * points[j, e], f2 * points[k, e], f3 * points[m, e]
                _add_outer(sums, at, d, rows, i, x0, x1, x2, x3, y0, y1, y2, y3)
            if distance != COSINE:
                _take_four(column, at, rows, i, f0, f1, f2, f3)


@entry(fastmath=_STRICT, error_model="numpy")
def _share(
    embeddings,
    labels,
    weights,
    ignore_index,
    table,
    bias,
    mask,
    temperature,
    distance,
    image,
    first,
    end,
    rows,
    flat,
    inverses,
    losses,
    gradients,
    sums,
    column,
    slope,
):
    """The pixels first:end of an image; arguments as in :func:`exact`, the logits and the bias in base 2.

    ``table`` (T, D', n) are the classes in tiles. Scratch: ``rows`` (block, T, n), the same memory as ``flat`` (block, T * n),
    and ``inverses`` (block, C), filled with zeros and ones. What the class gradients are made of is added to ``sums``, like the
    table, ``column`` (T, n), and ``slope``, like the bias; without gradients these are empty.
    """
    block, count = inverses.shape
    channels = embeddings.shape[1]
    points, moves = np.zeros((block, table.shape[1]), np.float32), np.zeros((block, table.shape[1]), np.float32)
    factors, where, at = np.zeros(block, np.float32), np.empty(block, np.int64), first
    while at < end:
        filled, at = _gather(embeddings, labels, ignore_index, image, at, end, points, where)
        _measure(rows, flat, inverses, points, filled, table, distance)
        rows[filled:], factors[filled:], moves[:] = 0, 0, 0
        for i in range(filled):
            row, pixel = flat[i, :count], where[i]
            target, steep = labels[image, pixel], temperature if distance == COSINE else -temperature
            near = distance == EUCLIDEAN and _smallest(row) < _NEAR
            if len(bias):
                _scale_and_add(row, steep, bias)
                steep = float32(1)
            if len(mask):
                _leave_out(row, mask[image], target, -np.inf if steep > 0 else np.inf)
            losses[image, pixel], factor = _softmax(row, steep, target)
            if len(sums) == 0:
                continue
            if len(mask):
                _leave_out(row, mask[image], target, 0)
            factor *= weights[image, pixel]
            for c in range(len(slope)):
                slope[c] += factor * row[c]
            factor *= -temperature * _LN_2 * (2 if distance == SQUARED else 1)
            if near:
                _take_near(rows, i, inverses, factor, points, table, moves, sums)
            if distance == EUCLIDEAN:
                whole = factor * _multiply(row, inverses[i])
                for d in range(channels):
                    moves[i, d] += whole * points[i, d]
            factors[i] = factor
        if len(sums) == 0:
            continue
        rows[:, -1, count - (len(table) - 1) * table.shape[2] :] = 0  # no classes
        _spread(rows, points, factors, filled, table, distance, moves, sums, column)
        for d in range(channels):
            for i in range(filled):
                gradients[image, d, where[i]] = moves[i, d]


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
    (images, channels, size), count = embeddings.shape, len(classes)
    table = tiles(classes)
    losses = np.zeros((images, size), np.float32)
    moved = np.zeros(embeddings.shape if gradients else (0, 0, 0), np.float32)
    bias = np.zeros(0, np.float32) if bias is None else bias / np.float32(_LN_2)
    mask = np.zeros((0, 0), np.bool_) if mask is None else mask
    block = max(4, min(_BLOCK, _ROWS // count // 4 * 4))
    settings = (ignore_index, table, bias, mask, np.float32(temperature / _LN_2), distance)
    totals = [np.zeros(shape, np.float32) for shape in (table.shape, table[:, 0].shape, len(bias))]
    totals = totals if gradients else [total[:0] for total in totals]

    def worker():
        rows = np.zeros((block, *table[:, 0].shape), np.float32)
        flat = rows.reshape(block, -1)
        inverses = np.ones((block, count), np.float32)
        parts = [np.zeros_like(total) for total in totals]

        def compute(image, first, end):
            _share(embeddings, labels, weights, *settings, image, first, end, rows, flat, inverses, losses, moved, *parts)

        def add():
            for total, part in zip(totals, parts, strict=True):
                total += part
                part[:] = 0

        return compute, add

    shared(worker, [(image, *part) for image in range(images) for part in chunks(size, _CHUNK)], threads)
    if not gradients:
        return Exact(losses, None, None, None)
    sums, column, slope = totals
    if distance != COSINE:
        sums += column[:, None] * table
    return Exact(losses, moved, sums.transpose(0, 2, 1).reshape(-1, sums.shape[1])[:count, :channels], slope)
