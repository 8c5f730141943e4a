"""Cross entropy of pixels over a few classes each, on the CPU: the first of a pixel's candidates is its target; by numba.

Going forward keeps nothing but its arguments; going backward computes the few logits again. The plain twin is the torch formula
in ``ess.losses``.
"""

import math

import numpy as np

from cocolvis.compiled import entry, inner
from ess.kernels.threads import chunks, shared
from ess.neighbours import COSINE, EUCLIDEAN

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


@entry(error_model="numpy")
def _share(pixels, classes, candidates, slope, distance, first, end, upstream, losses, moves, totals):
    """The pixels first:end; their losses, or where ``upstream`` has any entry the gradients."""
    scores, shares = np.empty(candidates.shape[1], np.float32), np.empty(candidates.shape[1], np.float64)
    for p in range(first, end):
        loss = _softmax(pixels[p], classes, candidates[p], slope, distance, scores, shares)
        if len(upstream) == 0:
            losses[p] = loss
            continue
        for j in range(candidates.shape[1]):
            other = candidates[p, j]
            weight = upstream[p] * shares[j] * slope
            if distance == COSINE:
                for d in range(pixels.shape[1]):
                    moves[p, d] += weight * classes[other, d]
                    totals[other, d] += weight * pixels[p, d]
                continue
            if distance == EUCLIDEAN:
                weight = weight / scores[j] if scores[j] > 0 else 0.0
            else:
                weight *= 2
            for d in range(pixels.shape[1]):
                gap = weight * (pixels[p, d] - classes[other, d])
                moves[p, d] += gap
                totals[other, d] -= gap


def among(pixels, classes, candidates, upstream, *, temperature: float, distance: int, threads: int):
    """The losses (P,) float32, or where ``upstream`` (P,) is given the gradients of sum(upstream * losses) by both embeddings.

    ``pixels`` (P, D), ``classes`` (C, D) and ``upstream`` are float32, ``candidates`` (P, K) int64, the target first.
    """
    pixels, classes = (np.require(x, np.float32, ("C", "W")) for x in (pixels, classes))
    candidates = np.require(candidates, np.int64, ("C", "W"))
    back = upstream is not None
    upstream = np.require(upstream if back else np.zeros(0), np.float32, ("C", "W"))
    count = len(pixels)
    losses, moves = np.zeros(0 if back else count, np.float32), np.zeros(pixels.shape if back else (0, 0), np.float32)
    slope = temperature if distance == COSINE else -temperature

    totals = np.zeros(classes.shape if back else (0, 0), np.float32)

    def worker():
        part = np.zeros_like(totals)

        def compute(first, end):
            _share(pixels, classes, candidates, float(slope), distance, first, end, upstream, losses, moves, part)

        def add():
            np.add(totals, part, out=totals)
            part[:] = 0

        return compute, add

    shared(worker, chunks(count, max(_CHUNK, len(classes))), threads)
    return (moves, totals) if back else losses
