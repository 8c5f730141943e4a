"""The compiled loops of ``ess.kernels.exact_cpu``: cross entropy over all classes, value and gradients.

The steps for one block of pixels, in the order of this file from bottom to top:

1. :func:`_gather` copies the embeddings of the next pixels that count.
2. :func:`_forward` computes squared distances (or inner products), logits and exponentials in place, in one row per pixel, and
   from them the losses -log softmax(z)_t.
3. :func:`_backward` turns the exponentials into the weights w_pc of the gradients, dL_p/do_p = sum over c of w_pc (o_p - e_c)
   and dL_p/de_c = -w_pc (o_p - e_c), or for inner products w_pc e_c and w_pc o_p, and adds the products up.

The rows stay in the cache throughout. Logits are in base 2, exp z = 2^(z / ln 2): temperature and bias were divided by ln 2.
The loops take whole arrays and indices, because making a slice costs as much as a hundred entries of a row.

The axes of arrays are those listed in ``ess.kernels``.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import float32

from cocolvis.compiled import entry, inlined
from ess.kernels.distances import COSINE, EUCLIDEAN, SQUARED
from ess.kernels.softmax_cpu import FAST, LN_2, STRICT, exp2, exponentials, fast, larger, loss, smaller, strict
from ess.kernels.tiles import score_pair

_NEAR = np.float32(1e-2)
"""Below this distance the gradient uses o - e itself, because o * sum(w) - sum(w * e) would cancel."""

_TINY = np.float32(1e-37)
"""The smallest squared distance. Its root has a finite inverse, which is multiplied by o - e = 0 if a pixel is on its class."""

_estimate = inlined(fastmath=(FAST - {"nnan"}) | {"afn", "ninf"}, error_model="numpy")
"""May replace a reciprocal root by the processor's estimate and one Newton step."""


@_estimate
def _roots(row, inverses, i):
    """Replace squared distances by distances, and write their inverses to inverses[i]; all are positive."""
    for c in range(len(row)):
        square = _TINY if row[c] < _TINY else row[c]  # written so that NaN stays NaN
        inverse = float32(1) / math.sqrt(square)
        inverses[i, c] = inverse
        row[c] = square * inverse


@fast
def _scale_and_add(row, slope, bias, start):
    """row = slope * row + bias[start:]."""
    for c in range(len(row)):
        row[c] = slope * row[c] + bias[start + c]


@fast
def _multiply(row, inverses, i):
    """row *= inverses[i]; returns the sum."""
    total = float32(0)
    for c in range(len(row)):
        value = row[c] * inverses[i, c]
        row[c] = value
        total += value
    return total


@fast
def _near(inverses, i, count):
    """Whether any of the pixel's first ``count`` distances is below _NEAR."""
    largest = float32(0)
    for c in range(count):
        largest = larger(largest, inverses[i, c])
    return largest * _NEAR > 1


@fast
def _largest(row):
    largest = row[0]
    for c in range(len(row)):
        largest = larger(largest, row[c])
    return largest


@fast
def _smallest(row):
    smallest = row[0]
    for c in range(len(row)):
        smallest = smaller(smallest, row[c])
    return smallest


@fast
def _dots(table, tile, d, rows, at, i):
    """Sums over the classes of a tile of weight times coordinate, for four pixels and the dimensions d and d + 1."""
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


@fast
def _add_outer(sums, tile, d, rows, at, i, x0, x1, x2, x3, y0, y1, y2, y3):
    """Add the weights of four pixels times their coordinates x (dimension d) and y (d + 1) to the sums of the classes."""
    for c in range(sums.shape[2]):
        w0, w1, w2, w3 = rows[i, at, c], rows[i + 1, at, c], rows[i + 2, at, c], rows[i + 3, at, c]
        sums[tile, d, c] += w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3
        sums[tile, d + 1, c] += w0 * y0 + w1 * y1 + w2 * y2 + w3 * y3


@fast
def _subtract_weights(column, tile, rows, at, i, x0, x1, x2, x3):
    """Subtract the weights of four pixels, each times a factor, from the sums of the classes."""
    for c in range(column.shape[1]):
        column[tile, c] -= rows[i, at, c] * x0 + rows[i + 1, at, c] * x1 + rows[i + 2, at, c] * x2 + rows[i + 3, at, c] * x3


class Problem(NamedTuple):
    """What all threads read: the arguments of ``ess.kernels.exact_cpu.exact``, with temperature and bias for base 2.

    ``table`` (T, D, N) contains the embeddings of the ``classes`` classes in tiles, D padded to a multiple of 4. ``bias`` and
    ``mask`` are empty if there are none.
    """

    embeddings: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    table: np.ndarray
    bias: np.ndarray
    mask: np.ndarray
    ignore_index: int
    temperature: np.float32
    distance: int
    classes: int


class Block(NamedTuple):
    """The scratch memory of a thread, for P pixels that meet the classes together; float32 except ``where``.

    ``rows`` (P, G, N) are the pixels' rows for a group of G tiles, and ``flat`` (P, G * N) is the same memory. ``inverses``
    (P, G * N) are 1 / distance. ``points`` and ``moves`` (P, D) are embeddings and their gradients. The rest is (P,): ``where``
    the pixels are in the image (int64), the logit of their ``own`` class, the ``best`` logit, the sum of 2^(logit - best) over
    the ``others``, and the ``factors`` that turn rows of exponentials into weights * (s_pc - [c = t]).
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


class Sums(NamedTuple):
    """What the class gradients consist of: weights times pixels (T, D, N), weights (T, N), and for the bias (C,); or empty."""

    products: np.ndarray
    weights: np.ndarray
    slopes: np.ndarray


@strict
def _gather(problem, image, at, end, block):
    """Fill the block with the next pixels at:end of an image that count; returns (their number, where to continue).

    One dimension at a time: the dimensions of one pixel are often a power of two apart and evict each other from the cache.
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


@strict
def _leave_out(row, mask, image, start, target, value):
    """Set the entries of classes that the mask excludes from an image, except the target's."""
    for c in range(len(row)):
        if not mask[image, start + c] and c != target:
            row[c] = value


@strict
def _logits(problem, image, block, filled, tile, start, stop):
    """Fill the rows for the classes start:stop; returns the slope for which slope * row are the logits."""
    table, distance, bias, mask = problem.table, problem.distance, problem.bias, problem.mask
    rows, flat, inverses, points = block.rows, block.flat, block.inverses, block.points
    for at in range(min(rows.shape[1], len(table) - tile)):
        for i in range(0, filled, 2):
            score_pair(rows, i, at, table, tile + at, points, distance)
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


@strict
def _join(row, slope, target, own, best, others):
    """Add a group of classes to a pixel's online softmax; returns the new (own, best, others). row = 2^(slope * row - best).

    The target does not enter the sum over the others, so that a loss near 0 keeps all its digits.
    """
    before, best = best, max(best, slope * (_largest(row) if slope > 0 else _smallest(row)))
    if 0 <= target < len(row):
        own = slope * row[target]
        row[target] = -np.inf if slope > 0 else np.inf
    return own, best, others * exp2(before - best) + exponentials(row, slope, best)


@strict
def _take_near(table, tile, row, inverses, factor, points, moves, i, sums):
    """Add the gradients of classes that nearly coincide with a pixel from o - e, and set their weights to 0."""
    width = table.shape[2]
    for c in range(len(row)):
        if inverses[i, c] * _NEAR > 1:
            at, place, weight = tile + c // width, c % width, factor * row[c] * inverses[i, c]
            for d in range(points.shape[1]):
                gap = weight * (points[i, d] - table[at, d, place])
                moves[i, d] += gap
                sums[at, d, place] -= gap
            row[c] = 0


@strict
def _weigh(problem, image, block, filled, tile, start, stop, steep, sums):
    """Turn rows of exponentials into the weights w_c of the gradient, sum of w_c (o - e_c), up to a factor of each row."""
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


@strict
def _spread(problem, block, filled, tile, steep, sums):
    """Add weights times class embeddings to the gradients of the block's pixels, and weights times pixels to the classes'."""
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
                _subtract_weights(sums.weights, tile + at, rows, at, i, f0, f1, f2, f3)


@strict
def _forward(problem, image, block, filled, losses):
    """Write the losses of a block and leave the last group's exponentials in the rows; returns the slope of :func:`_logits`."""
    width, flat, where, labels, weights = problem.table.shape[2], block.flat, block.where, problem.labels, problem.weights
    own, best, others, factors = block.own, block.best, block.others, block.factors
    slope = float32(0)
    best[:], others[:] = -np.inf, 0
    for tile in range(0, len(problem.table), block.rows.shape[1]):
        start, stop = tile * width, min(tile * width + flat.shape[1], problem.classes)
        slope = _logits(problem, image, block, filled, tile, start, stop)
        for i in range(filled):
            target = labels[image, where[i]] - start
            own[i], best[i], others[i] = _join(flat[i, : stop - start], slope, target, own[i], best[i], others[i])
    for i in range(filled):
        losses[image, where[i]], factor = loss(own[i], best[i], others[i])
        factors[i] = factor * weights[image, where[i]]
    return slope


@strict
def _backward(problem, image, block, filled, slope, gradients, sums):
    """Write the gradients of a block after :func:`_forward`. Several groups of classes are each computed a second time."""
    width, flat, where, best, moves = problem.table.shape[2], block.flat, block.where, block.best, block.moves
    steep = -problem.temperature * float32(2 * LN_2 if problem.distance == SQUARED else LN_2)
    moves[:] = 0
    for tile in range(0, len(problem.table), block.rows.shape[1]):
        start, stop = tile * width, min(tile * width + flat.shape[1], problem.classes)
        if flat.shape[1] < problem.classes:
            _logits(problem, image, block, filled, tile, start, stop)
            for i in range(filled):
                exponentials(flat[i, : stop - start], slope, best[i])
        _weigh(problem, image, block, filled, tile, start, stop, steep, sums)
        _spread(problem, block, filled, tile, steep, sums)
    for d in range(gradients.shape[1]):
        for i in range(filled):
            gradients[image, d, where[i]] = moves[i, d]


@entry(fastmath=STRICT, error_model="numpy")
def run_chunk(problem, image, first, end, block, losses, gradients, sums):
    """Write losses[image, first:end], and unless ``gradients`` (B, D, N) is empty also the gradients, adding to ``sums``."""
    at = first
    while at < end:
        filled, at = _gather(problem, image, at, end, block)
        slope = _forward(problem, image, block, filled, losses)
        if len(gradients):
            _backward(problem, image, block, filled, slope, gradients, sums)
