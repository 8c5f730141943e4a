"""Cross entropy over all classes on the CPU, value and gradients in one pass over the pixels; compiled by numba.

A block of pixels meets all classes while its rows lie in the cache: squared distances, logits, exponentials and the weights
of the gradients overwrite one another there, and no pixels x classes array exists. The plain twin is the torch formula in
``ess.losses.cross_entropy``.
"""

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, int32
from numba.extending import intrinsic

from cocolvis.compiled import entry, inner
from ess.kernels.distances import COSINE, EUCLIDEAN, SQUARED
from ess.kernels.threads import chunks, shared
from ess.kernels.tiles import tiles, zeros

_BLOCK = 16
"""Pixels that meet all classes together: a multiple of 4."""

_ONCE = 1 << 16
"""Up to this many classes, a block meets all of them once; of more, it meets a tile at a time, and again for the gradients."""

_LARGE_BLOCK = 32
"""Pixels of a block that meets a tile at a time: a multiple of 4."""

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
_estimate = inner(fastmath=(_FAST - {"nnan"}) | {"afn", "ninf"}, error_model="numpy")


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
def _add_squares(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[tile, d, c], table[tile, d + 1, c], table[tile, d + 2, c], table[tile, d + 3, c]
        rows[i, at, c] += (x0 - e) * (x0 - e) + (x1 - f) * (x1 - f) + (x2 - g) * (x2 - g) + (x3 - h) * (x3 - h)
        rows[i + 1, at, c] += (y0 - e) * (y0 - e) + (y1 - f) * (y1 - f) + (y2 - g) * (y2 - g) + (y3 - h) * (y3 - h)


@_fast
def _add_products(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(table.shape[2]):
        e, f, g, h = table[tile, d, c], table[tile, d + 1, c], table[tile, d + 2, c], table[tile, d + 3, c]
        rows[i, at, c] += x0 * e + x1 * f + x2 * g + x3 * h
        rows[i + 1, at, c] += y0 * e + y1 * f + y2 * g + y3 * h


@_fast
def _scores(rows, i, at, table, tile, points, distance):
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
            _add_products(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3)
        else:
            _add_squares(rows, i, at, table, tile, d, x0, x1, x2, x3, y0, y1, y2, y3)


@_estimate
def _roots(row, inverses, i):
    """Square roots of a row, and one over them: the processor's estimate, and a step of Newton's. None is 0."""
    for c in range(len(row)):
        square = _TINY if row[c] < _TINY else row[c]  # NaN stays NaN
        inverse = float32(1) / math.sqrt(square)
        inverses[i, c] = inverse
        row[c] = square * inverse


@_fast
def _scale_and_add(row, slope, bias, start):
    for c in range(len(row)):
        row[c] = slope * row[c] + bias[start + c]


@_fast
def _multiply(row, inverses, i):
    """row *= inverses[i]; the sum of it."""
    total = float32(0)
    for c in range(len(row)):
        value = row[c] * inverses[i, c]
        row[c] = value
        total += value
    return total


@_fast
def _near(inverses, i, count):
    """Whether any of a pixel's distances is below _NEAR."""
    found = float32(0)
    for c in range(count):
        found = _larger(found, inverses[i, c])
    return found * _NEAR > 1


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
def _dots(table, tile, d, rows, at, i):
    """Inner products of two dimensions of a tile with four pixels' weights: two, so that each load serves twice."""
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = float32(0)
    for c in range(table.shape[2]):
        x, y = table[tile, d, c], table[tile, d + 1, c]
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
def _add_outer(sums, tile, d, rows, at, i, x0, x1, x2, x3, y0, y1, y2, y3):
    for c in range(sums.shape[2]):
        w0, w1, w2, w3 = rows[i, at, c], rows[i + 1, at, c], rows[i + 2, at, c], rows[i + 3, at, c]
        sums[tile, d, c] += w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        sums[tile, d + 1, c] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3


@_fast
def _take_four(column, tile, rows, at, i, x0, x1, x2, x3):
    for c in range(column.shape[1]):
        column[tile, c] -= rows[i, at, c] * x0 + rows[i + 1, at, c] * x1 + rows[i + 2, at, c] * x2 + rows[i + 3, at, c] * x3


class _Problem(NamedTuple):
    """What a thread reads: the arguments of :func:`exact`, with the classes in tiles (T, D', n), logits and bias in base 2."""

    embeddings: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    ignore_index: int
    temperature: np.float32
    distance: int
    count: int


class _Block(NamedTuple):
    """Pixels that meet the classes together, and what is known of them: a thread's scratch.

    ``rows`` (pixels, G, n) are their rows for a group of G tiles, ``flat`` (pixels, G * n) the same memory, ``inverses`` like
    it one over distances. ``points``, ``moves`` (pixels, D') are embeddings and gradients. ``where`` they are in the image,
    their ``own`` logits, the ``best`` of all, the sum of 2^(logit - best) over the ``others``, and the ``factors`` of the row.
    """

    rows: np.ndarray
    flat: np.ndarray
    inverses: np.ndarray
    points: np.ndarray
    moves: np.ndarray
    where: np.ndarray
    own: np.ndarray
    best: np.ndarray
    others: np.ndarray
    factors: np.ndarray


class _Sums(NamedTuple):
    """What class gradients are made of, or nothing: weights times pixels (T, D', n), weights (T, n), and for the bias (C,)."""

    products: np.ndarray
    weights: np.ndarray
    slopes: np.ndarray


@_strict
def _gather(problem, image, at, end, block):
    """Fill the block with the next pixels of an image that count: their number, and where the next search begins.

    A dimension at a time: the dimensions of one pixel lie a power of two apart, and would push each other out of the cache.
    """
    embeddings, labels, where, points = problem.embeddings, problem.labels, block.where, block.points
    filled = 0
    while at < end and filled < len(where):
        if labels[image, at] != problem.ignore_index:
            where[filled] = at
            filled += 1
        at += 1
    for d in range(embeddings.shape[1]):
        for i in range(filled):
            points[i, d] = embeddings[image, d, where[i]]
    return filled, at


@_strict
def _leave_out(row, mask, image, start, target, value):
    """Set what the mask leaves out of an image, but never the target."""
    for c in range(len(row)):
        if not mask[image, start + c] and c != target:
            row[c] = value


@_strict
def _logits(problem, image, block, filled, tile, start, stop):
    """Rows such that slope * row are the logits of the block's pixels for the classes start:stop; the slope."""
    table, distance, bias, mask = problem.table, problem.distance, problem.bias, problem.mask
    rows, flat, inverses, points = block.rows, block.flat, block.inverses, block.points
    for at in range(min(rows.shape[1], len(table) - tile)):
        for i in range(0, filled, 2):
            _scores(rows, i, at, table, tile + at, points, distance)
    slope = problem.temperature if distance == COSINE else -problem.temperature
    steep = float32(1) if len(bias) else slope
    for i in range(filled):
        row = flat[i, : stop - start]
        if distance == EUCLIDEAN:
            _roots(row, inverses, i)
        if len(bias):
            _scale_and_add(row, slope, bias, start)
        if len(mask):
            target = problem.labels[image, block.where[i]] - start
            _leave_out(row, mask, image, start, target, -np.inf if steep > 0 else np.inf)
    return steep


@_strict
def _join(row, slope, target, own, best, others):
    """Add a group of classes to the softmax of a pixel, and make its row 2^(slope * row - best): the new own, best and others.

    The target is kept out of the sum over the others, so that a loss near 0 keeps all its digits.
    """
    before, best = best, max(best, slope * (_largest(row) if slope > 0 else _smallest(row)))
    if 0 <= target < len(row):
        own = slope * row[target]
        row[target] = -np.inf if slope > 0 else np.inf
    return own, best, others * _exp2(before - best) + _exponentials(row, slope, best)


@_strict
def _loss(own, best, others):
    """The loss of a pixel; and the factor that makes of a row of exponentials the derivatives by the logits, p_c - [c = t]."""
    whole = others + _exp2(own - best)
    return math.log1p(others) if own == best else math.log(whole) - _LN_2 * (own - best), float32(1) / whole


@_strict
def _take_near(table, tile, row, inverses, factor, points, moves, i, sums):
    """Take the classes that nearly coincide with a pixel out of its weights, and add what they contribute exactly."""
    width = table.shape[2]
    for c in range(len(row)):
        if inverses[i, c] * _NEAR > 1:
            at, place, weight = tile + c // width, c % width, factor * row[c] * inverses[i, c]
            for d in range(points.shape[1]):
                gap = weight * (points[i, d] - table[at, d, place])
                moves[i, d] += gap
                sums[at, d, place] -= gap
            row[c] = 0


@_strict
def _weigh(problem, image, block, filled, tile, start, stop, steep, sums):
    """Turn rows of exponentials into the weights w_c of the gradient, sum of w_c (o - e_c), but for a factor of each row."""
    labels, mask, table, distance = problem.labels, problem.mask, problem.table, problem.distance
    flat, inverses, points, moves, where = block.flat, block.inverses, block.points, block.moves, block.where
    others, factors, products, slopes = block.others, block.factors, sums.products, sums.slopes
    for i in range(filled):
        row, target = flat[i, : stop - start], labels[image, where[i]] - start
        if 0 <= target < len(row):
            row[target] = -others[i]
        if len(mask):
            _leave_out(row, mask, image, start, target, 0)
        for c in range(len(row) if len(slopes) else 0):
            slopes[start + c] += factors[i] * row[c]
        if distance == EUCLIDEAN:
            factor = steep * factors[i]
            if _near(inverses, i, len(row)):
                _take_near(table, tile, row, inverses, factor, points, moves, i, products)
            whole = factor * _multiply(row, inverses, i)
            for d in range(points.shape[1]):
                moves[i, d] += whole * points[i, d]


@_strict
def _spread(problem, block, filled, tile, steep, sums):
    """Add a block's weights times class embeddings to its pixels' gradients, and times pixels to those of the classes."""
    table, rows, points, moves, factors = problem.table, block.rows, block.points, block.moves, block.factors
    factors[filled:] = 0
    for at in range(min(rows.shape[1], len(table) - tile)):
        for i in range(0, filled, 4):
            j, k, m = i + 1, i + 2, i + 3
            f0, f1, f2, f3 = -steep * factors[i], -steep * factors[j], -steep * factors[k], -steep * factors[m]
            for d in range(0, points.shape[1], 2):
                e = d + 1
                a0, a1, a2, a3, b0, b1, b2, b3 = _dots(table, tile + at, d, rows, at, i)
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
                _add_outer(sums.products, tile + at, d, rows, at, i, x0, x1, x2, x3, y0, y1, y2, y3)
            if problem.distance != COSINE:
                _take_four(sums.weights, tile + at, rows, at, i, f0, f1, f2, f3)


@_strict
def _forward(problem, image, block, filled, losses):
    """The losses of a block; rows of exponentials remain of the last group. The slope, as :func:`_logits` has it."""
    width, flat, where, labels, weights = problem.table.shape[2], block.flat, block.where, problem.labels, problem.weights
    own, best, others, factors = block.own, block.best, block.others, block.factors
    slope = float32(0)
    best[:], others[:] = -np.inf, 0
    for tile in range(0, len(problem.table), block.rows.shape[1]):
        start, stop = tile * width, min(tile * width + flat.shape[1], problem.count)
        slope = _logits(problem, image, block, filled, tile, start, stop)
        for i in range(filled):
            target = labels[image, where[i]] - start
            own[i], best[i], others[i] = _join(flat[i, : stop - start], slope, target, own[i], best[i], others[i])
    for i in range(filled):
        losses[image, where[i]], factor = _loss(own[i], best[i], others[i])
        factors[i] = factor * weights[image, where[i]]
    return slope


@_strict
def _backward(problem, image, block, filled, slope, gradients, sums):
    """The gradients of a block after :func:`_forward`; where classes are more than one group, each comes once more."""
    width, flat, where, best, moves = problem.table.shape[2], block.flat, block.where, block.best, block.moves
    steep = -problem.temperature * float32(2 * _LN_2 if problem.distance == SQUARED else _LN_2)
    moves[:] = 0
    for tile in range(0, len(problem.table), block.rows.shape[1]):
        start, stop = tile * width, min(tile * width + flat.shape[1], problem.count)
        if flat.shape[1] < problem.count:
            _logits(problem, image, block, filled, tile, start, stop)
            for i in range(filled):
                _exponentials(flat[i, : stop - start], slope, best[i])
        _weigh(problem, image, block, filled, tile, start, stop, steep, sums)
        _spread(problem, block, filled, tile, steep, sums)
    for d in range(gradients.shape[1]):
        for i in range(filled):
            gradients[image, d, where[i]] = moves[i, d]


@entry(fastmath=_STRICT, error_model="numpy")
def _share(problem, image, first, end, block, losses, gradients, sums):
    """The pixels first:end of an image: their losses, and the gradients unless the arrays for these are empty."""
    at = first
    while at < end:
        filled, at = _gather(problem, image, at, end, block)
        slope = _forward(problem, image, block, filled, losses)
        if len(gradients):
            _backward(problem, image, block, filled, slope, gradients, sums)


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
    numbers = np.float32(temperature / _LN_2), distance, count
    problem = _Problem(embeddings, labels, weights, table, bias, mask, ignore_index, *numbers)
    total = _Sums(zeros(*table.shape), zeros(*table[:, 0].shape), zeros(len(bias)))
    total = total if gradients else _Sums(*(array[:0] for array in total))

    def worker():
        block, part = _block(table), _Sums(*(zeros(*array.shape) for array in total))

        def compute(image, first, end):
            _share(problem, image, first, end, block, losses, moved, part)

        def add():
            for whole, own in zip(total, part, strict=True):
                whole += own
                own[:] = 0

        return compute, add

    shared(worker, [(image, *part) for image in range(images) for part in chunks(size, _CHUNK)], threads)
    if not gradients:
        return Exact(losses, None, None, None)
    sums = total.products if distance == COSINE else total.products + total.weights[:, None] * table
    return Exact(losses, moved, sums.transpose(0, 2, 1).reshape(-1, sums.shape[1])[:count, :channels], total.slopes)


def _block(table: np.ndarray) -> _Block:
    """Scratch of a thread: few pixels and all classes, or more pixels and a tile, so that their rows stay in the cache."""
    number, channels, width = table.shape
    pixels, group = (_BLOCK, number) if number * width <= _ONCE else (_LARGE_BLOCK, 1)
    rows, inverses = zeros(pixels, group, width), zeros(pixels, group * width)
    points, moves = zeros(pixels, channels), zeros(pixels, channels)
    own, best, others, factors = (zeros(pixels) for _ in range(4))
    where = np.zeros(pixels, np.int64)
    return _Block(rows, rows.reshape(pixels, -1), inverses, points, moves, where, own, best, others, factors)
