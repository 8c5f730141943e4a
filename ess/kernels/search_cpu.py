"""The k nearest classes of each pixel on the CPU, without a pixels x classes array; compiled by numba.

A pixel's scores for all classes, smaller is nearer, lie in the cache. They are looked at as a table of 16 lines, whose smallest
entry in each column takes one pass of wide comparisons; only the columns that can hold one of the k smallest are looked into.
The plain twin is ``ess.neighbours._torch``.
"""

import numpy as np

from cocolvis.compiled import entry, inner
from ess.kernels.threads import shared
from ess.kernels.tiles import LINES, tiles

_BLOCK = 16
"""Pixels that meet the classes together."""

_fast = inner(fastmath={"contract", "reassoc", "nsz", "arcp"}, error_model="numpy")
_strict = inner(error_model="numpy")


# Also in exact_cpu: numba's cache of what is compiled from one file does not notice when another one changes.
@_fast
def _add_squares(row, tile, d, x0, x1, x2, x3):
    for c in range(len(row)):
        a, b, f, g = x0 - tile[d, c], x1 - tile[d + 1, c], x2 - tile[d + 2, c], x3 - tile[d + 3, c]
        row[c] += a * a + b * b + f * f + g * g


@_fast
def _take_products(row, tile, d, x0, x1, x2, x3):
    for c in range(len(row)):
        row[c] -= x0 * tile[d, c] + x1 * tile[d + 1, c] + x2 * tile[d + 2, c] + x3 * tile[d + 3, c]


@_strict
def _scores(row, tile, x, products):
    """Squared distances, or negative inner products, of one pixel x (D,) and the classes of a tile (D, n) into row (n,)."""
    row[:] = 0
    for d in range(0, len(x), 4):
        if products:
            _take_products(row, tile, d, x[d], x[d + 1], x[d + 2], x[d + 3])
        else:
            _add_squares(row, tile, d, x[d], x[d + 1], x[d + 2], x[d + 3])


@inner(fastmath={"nnan", "nsz"}, error_model="numpy")
def _columns(row, least):
    """The smallest of each column, of a row seen as a table of 16 lines: in one expression, which LLVM makes wide."""
    columns = len(least)
    for c in range(columns):
        found = row[c]
        for line in range(1, LINES):
            other = row[line * columns + c]
            found = found if found < other else other
        least[c] = found


@_strict
def _insert(score, class_id, scores, ids):
    """Put a class among the k best so far, ascending by score and then by id; the last one falls out."""
    at = len(scores) - 1
    if score > scores[at] or (score == scores[at] and class_id > ids[at]):
        return
    while at > 0 and (score < scores[at - 1] or (score == scores[at - 1] and class_id < ids[at - 1])):
        scores[at], ids[at] = scores[at - 1], ids[at - 1]
        at -= 1
    scores[at], ids[at] = score, class_id


@_strict
def _bound(least, scores):
    """A score that at least k classes do not exceed: the k-th smallest of the columns' smallest."""
    scores[:] = np.inf
    for c in range(len(least)):
        score = least[c]
        if score < scores[-1]:
            at = len(scores) - 1
            while at > 0 and score < scores[at - 1]:
                scores[at] = scores[at - 1]
                at -= 1
            scores[at] = score
    return scores[-1]


@_strict
def _select(row, count, least, scores, ids):
    """The k classes with the smallest scores of row (16 * columns,), infinite from ``count`` on, into ids (k,)."""
    columns = len(least)
    _columns(row, least)
    bound = _bound(least, scores)
    scores[:], ids[:] = np.inf, count
    for column in range(columns):
        if least[column] <= bound:
            for c in range(column, count, columns):
                if row[c] <= bound:
                    _insert(row[c], c, scores, ids)


@entry(error_model="numpy")
def _share(queries, table, count, products, bounds, found):
    """What one thread does: the queries bounds[0]:bounds[1]; ``table`` (T, D, n) are the tiles of ``count`` classes."""
    (number, channels, width), k = table.shape, found.shape[1]
    rows, least = np.empty((_BLOCK, number * width), np.float32), np.empty(number * width // LINES, np.float32)
    points = np.zeros((_BLOCK, channels), np.float32)
    scores, ids = np.empty(k, np.float32), np.empty(k, np.int64)
    for block in range(bounds[0], bounds[1], _BLOCK):
        filled = min(_BLOCK, bounds[1] - block)
        points[:filled, : queries.shape[1]] = queries[block : block + filled]
        for at in range(number):
            tile = table[at]
            for i in range(filled):
                _scores(rows[i, at * width : (at + 1) * width], tile, points[i], products)
        for i in range(filled):
            rows[i, count:] = np.inf
            _select(rows[i], count, least, scores, ids)
            for j in range(k):
                found[block + i, j] = min(ids[j], count - 1)


def search(queries: np.ndarray, classes: np.ndarray, k: int, *, products: bool, threads: int) -> np.ndarray:
    """(P, k) int64: the classes nearest to each query, the nearest first, the lower id first among equals.

    ``queries`` (P, D) and ``classes`` (C, D) float32; near is a small distance, or with ``products`` a large inner product. A
    query with a NaN gets arbitrary classes.
    """
    queries = np.require(queries, np.float32, ("C", "W"))
    found = np.empty((len(queries), k), np.int64)
    table = tiles(classes)
    shared(lambda bounds: _share(queries, table, len(classes), products, bounds, found), len(queries), threads)
    return found
