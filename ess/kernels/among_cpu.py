"""Cross entropy of pixels over a few classes each, on the CPU: the first of a pixel's candidates is its target; by numba.

Going forward keeps nothing but its arguments; going backward computes the few logits again. The plain twin is the torch formula
in ``ess.losses.cross_entropy``.
"""

import math

import numpy as np

from cocolvis.compiled import entry, inner
from ess.kernels.distances import COSINE, EUCLIDEAN
from ess.kernels.threads import chunks, shared

_BLOCK = 16
"""Pixels whose embeddings are fetched together."""

_CHUNK = 8192
"""The fewest pixels whose class gradients are summed before they are added to those of all."""


@inner(fastmath={"contract", "reassoc"}, error_model="numpy")
def _score(pixel, other, distance):
    """The distance, its square, or the inner product."""
    score = np.float32(0)
    if distance == COSINE:
        for d in range(len(pixel)):
            score += pixel[d] * other[d]
        return score
    for d in range(len(pixel)):
        gap = pixel[d] - other[d]
        score += gap * gap
    return math.sqrt(score) if distance == EUCLIDEAN else score


@inner(error_model="numpy")
def _softmax(pixel, classes, candidates, slope, distance, scores, shares):
    """The loss of a pixel; fills ``scores``, and ``shares`` with the derivatives by the logits (p - 1 for the target)."""
    shift = -np.inf
    for j in range(len(candidates)):
        scores[j] = _score(pixel, classes[candidates[j]], distance)
        shares[j] = slope * scores[j]
        shift = max(shift, shares[j])
    own, others = shares[0] - shift, 0.0
    for j in range(1, len(candidates)):
        shares[j] = math.exp(shares[j] - shift)
        others += shares[j]
    whole = others + math.exp(own)
    for j in range(1, len(candidates)):
        shares[j] /= whole
    shares[0] = -others / whole
    return math.log1p(others) if own == 0 else math.log(whole) - own


@inner(error_model="numpy")
def _gather(embeddings, places, points):
    """Embeddings of some pixels, a dimension at a time: those of one pixel lie far apart, where the cache has one place."""
    size = embeddings.shape[2]
    for d in range(embeddings.shape[1]):
        for i in range(len(places)):
            points[i, d] = embeddings[places[i] // size, d, places[i] % size]


@inner(error_model="numpy")
def _scatter(moves, places, gradients):
    size = gradients.shape[2]
    for d in range(gradients.shape[1]):
        for i in range(len(places)):
            gradients[places[i] // size, d, places[i] % size] = moves[i, d]


@inner(error_model="numpy")
def _pull(pixel, other, weight, move, total):
    """Add weight * (pixel - other) to a pixel's gradient, and take it from that of a class."""
    for d in range(len(pixel)):
        gap = weight * (pixel[d] - other[d])
        move[d] += gap
        total[d] -= gap


@inner(error_model="numpy")
def _push(pixel, other, weight, move, total):
    """Add weight * other to a pixel's gradient, and weight * pixel to that of a class."""
    for d in range(len(pixel)):
        move[d] += weight * other[d]
        total[d] += weight * pixel[d]


@entry(error_model="numpy")
def _share(embeddings, places, classes, candidates, slope, distance, first, end, upstream, losses, gradients, totals):
    """The pixels first:end; their losses, or where ``upstream`` has any entry the gradients."""
    scores, shares = np.empty(candidates.shape[1], np.float32), np.empty(candidates.shape[1], np.float64)
    points, moves = np.empty((_BLOCK, classes.shape[1]), np.float32), np.empty((_BLOCK, classes.shape[1]), np.float32)
    for block in range(first, end, _BLOCK):
        here = places[block : min(block + _BLOCK, end)]
        _gather(embeddings, here, points)
        moves[:] = 0
        for i in range(len(here)):
            loss = _softmax(points[i], classes, candidates[block + i], slope, distance, scores, shares)
            if len(upstream) == 0:
                losses[block + i] = loss
                continue
            for j in range(candidates.shape[1]):
                other = candidates[block + i, j]
                weight = upstream[block + i] * shares[j] * slope
                if distance == COSINE:
                    _push(points[i], classes[other], weight, moves[i], totals[other])
                    continue
                if distance == EUCLIDEAN:
                    weight = weight / scores[j] if scores[j] > 0 else 0.0
                else:
                    weight *= 2
                _pull(points[i], classes[other], weight, moves[i], totals[other])
        if len(upstream):
            _scatter(moves, here, gradients)


def among(embeddings, places, classes, candidates, upstream, *, temperature: float, distance: int, threads: int):
    """The losses (P,) float32, or where ``upstream`` (P,) is given the gradients of sum(upstream * losses) by both embeddings.

    ``embeddings`` (B, D, N), ``classes`` (C, D) and ``upstream`` are float32; ``places`` (P,) int64 says which of all B * N the
    pixels are, and ``candidates`` (P, K) int32 lists their classes, the target first.
    """
    embeddings, classes = (np.require(x, np.float32, ("C", "W")) for x in (embeddings, classes))
    places, candidates = np.require(places, np.int64, ("C", "W")), np.require(candidates, np.int32, ("C", "W"))
    back = upstream is not None
    upstream = np.require(upstream if back else np.zeros(0), np.float32, ("C", "W"))
    losses = np.zeros(0 if back else len(places), np.float32)
    gradients = np.zeros(embeddings.shape if back else (0, 0, 0), np.float32)
    totals = np.zeros(classes.shape if back else (0, 0), np.float32)
    slope = float(temperature if distance == COSINE else -temperature)

    def worker():
        part = np.zeros_like(totals)

        def compute(first, end):
            rest = upstream, losses, gradients, part
            _share(embeddings, places, classes, candidates, slope, distance, first, end, *rest)

        def add():
            np.add(totals, part, out=totals)
            part[:] = 0

        return compute, add

    shared(worker, chunks(len(places), max(_CHUNK, len(classes))), threads)
    return (gradients, totals) if back else losses
