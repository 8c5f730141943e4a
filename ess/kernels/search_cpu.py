"""The k nearest classes of each pixel on the CPU, without a pixels x classes array; compiled by numba.

The scores of a pixel for all classes, the smaller the nearer, stay in the cache. They are viewed as a table of 16 lines. One
pass of vector instructions finds the minimum of each column, and only the columns that can contain one of the k smallest scores
are searched. The reference is ``ess.losses.neighbours._torch``.
"""

import numpy as np

from cocolvis.compiled import entry, inlined
from ess.kernels.distances import COSINE, SQUARED
from ess.kernels.threads import chunks, parallel_for
from ess.kernels.tiles import LINES, score_pair, tiles

_BLOCK = 16
"""How many pixels are compared with the classes together."""

_CHUNK = 8192
"""How many pixels a thread takes at a time."""

_strict = inlined(error_model="numpy")


@_strict
def _subtract(bias, row, roots):
    """Subtract bias (C,) from the scores of a pixel, or with ``roots`` from their square roots."""
    if roots:
        for c in range(len(bias)):
            row[c] = np.sqrt(row[c]) - bias[c]
    else:
        for c in range(len(bias)):
            row[c] -= bias[c]


@inlined(fastmath={"nnan", "nsz"}, error_model="numpy")
def _columns(row, least):
    """The minimum of each column of a row viewed as a table of 16 lines; a conditional expression, which LLVM vectorises."""
    columns = len(least)
    for c in range(columns):
        smallest = row[c]
        for line in range(1, LINES):
            other = row[line * columns + c]
            smallest = smallest if smallest < other else other
        least[c] = smallest


@_strict
def _insert(score, class_id, scores, ids):
    """Insert a class into the k best so far, ascending by score and then by id, and drop the last of them."""
    at = len(scores) - 1
    if score > scores[at] or (score == scores[at] and class_id > ids[at]):
        return
    while at > 0 and (score < scores[at - 1] or (score == scores[at - 1] and class_id < ids[at - 1])):
        scores[at], ids[at] = scores[at - 1], ids[at - 1]
        at -= 1
    scores[at], ids[at] = score, class_id


@_strict
def _bound(least, scores):
    """The k-th smallest of the columns' minima, which at least k classes do not exceed. ``scores`` (k,) is scratch."""
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
    """Write the k classes with the smallest scores to ids (k,). row (16 * columns,) is infinite from ``count`` on."""
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
def _run_chunk(queries, table, count, products, bias, roots, first, end, nearest):
    """Write nearest[first:end], the ids nearest to these queries. ``table`` (T, D, N) are the tiles of ``count`` classes.

    ``bias`` is that of :func:`search`, with length 0 for none.
    """
    (number, channels, width), k = table.shape, nearest.shape[1]
    flat, least = np.empty((_BLOCK, number * width), np.float32), np.empty(number * width // LINES, np.float32)
    rows = flat.reshape(_BLOCK, number, width)
    points = np.zeros((_BLOCK, channels), np.float32)
    scores, ids = np.empty(k, np.float32), np.empty(k, np.int64)
    for block in range(first, end, _BLOCK):
        filled = min(_BLOCK, end - block)
        for i in range(filled):
            for d in range(queries.shape[1]):
                points[i, d] = -queries[block + i, d] if products else queries[block + i, d]
        for at in range(number):
            for i in range(0, filled, 2):
                score_pair(rows, i, at, table, at, points, COSINE if products else SQUARED)
        for i in range(filled):
            _subtract(bias, flat[i], roots)
            flat[i, count:] = np.inf
            _select(flat[i], count, least, scores, ids)
            for j in range(k):
                nearest[block + i, j] = min(ids[j], count - 1)


def search(
    queries: np.ndarray,
    classes: np.ndarray,
    k: int,
    *,
    products: bool,
    threads: int,
    bias: np.ndarray | None = None,
    roots: bool = False,
) -> np.ndarray:
    """(P, k) int64: the classes nearest to each query, the nearest first; ties go to the lower id.

    ``queries`` (P, D) and ``classes`` (C, D) are float32 and compared by Euclidean distance, or with ``products`` by inner
    product, the largest first. ``bias`` (C,) is subtracted from the squared distances, from their ``roots``, or from the
    negative products. A query with a NaN gets arbitrary classes.
    """
    queries = np.require(queries, np.float32, ("C", "W"))
    subtracted = np.require(() if bias is None else bias, np.float32, ("C", "W"))
    nearest = np.empty((len(queries), k), np.int64)
    table = tiles(classes)

    def compute(first: int, end: int) -> None:
        _run_chunk(queries, table, len(classes), products, subtracted, roots, first, end, nearest)

    parallel_for(lambda: (compute, lambda: None), chunks(len(queries), _CHUNK), threads)
    return nearest
