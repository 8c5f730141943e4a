"""Cross entropy of pixels over a few candidate classes each, on the CPU; compiled by numba.

The first candidate of a pixel is its target. The forward pass stores nothing but its arguments, and the backward pass computes
the few logits again. The reference is the torch formula in ``ess.losses.cross_entropy``.
"""

import math

import numpy as np

from cocolvis.compiled import entry, inlined
from ess.kernels.distances import COSINE, EUCLIDEAN
from ess.kernels.threads import Worker, chunks, parallel_for

_BLOCK = 16
"""How many pixels are gathered at a time."""

_CHUNK = 8192
"""The fewest pixels whose class gradients are summed before they are added to the total."""


@inlined(fastmath={"contract", "reassoc"}, error_model="numpy")
def _score(pixel, other, distance):
    """The distance, squared distance or inner product of two embeddings (D,)."""
    score = np.float32(0)
    if distance == COSINE:
        for d in range(len(pixel)):
            score += pixel[d] * other[d]
        return score
    for d in range(len(pixel)):
        gap = pixel[d] - other[d]
        score += gap * gap
    return math.sqrt(score) if distance == EUCLIDEAN else score


@inlined(error_model="numpy")
def _softmax(pixel, classes, candidates, slope, distance, scores, shares):
    """The loss of a pixel. Fills ``scores`` (K,), and ``shares`` (K,) with the derivatives by the logits, s_j - [j = 0]."""
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


@inlined(error_model="numpy")
def _gather(embeddings, places, points):
    """Copy the embeddings of the pixels at ``places`` to ``points`` (P, D).

    One dimension at a time: the dimensions of one pixel are often a power of two apart and evict each other from the cache.
    """
    size = embeddings.shape[2]
    for d in range(embeddings.shape[1]):
        for i in range(len(places)):
            points[i, d] = embeddings[places[i] // size, d, places[i] % size]


@inlined(error_model="numpy")
def _scatter(moves, places, gradients):
    """The inverse of :func:`_gather`: copy ``moves`` (P, D) to the pixels at ``places``."""
    size = gradients.shape[2]
    for d in range(gradients.shape[1]):
        for i in range(len(places)):
            gradients[places[i] // size, d, places[i] % size] = moves[i, d]


@inlined(error_model="numpy")
def _pull(pixel, other, weight, move, total):
    """Add weight * (pixel - other) to the gradient of the pixel, and subtract it from that of the class."""
    for d in range(len(pixel)):
        gap = weight * (pixel[d] - other[d])
        move[d] += gap
        total[d] -= gap


@inlined(error_model="numpy")
def _push(pixel, other, weight, move, total):
    """Add weight * other to the gradient of the pixel, and weight * pixel to that of the class."""
    for d in range(len(pixel)):
        move[d] += weight * other[d]
        total[d] += weight * pixel[d]


@inlined(error_model="numpy")
def _add_gradients(pixel, classes, candidates, upstream, slope, distance, scores, shares, move, totals):
    """Add the gradients of one pixel's loss times ``upstream`` by its embedding and by its candidates'."""
    for j in range(len(candidates)):
        other = candidates[j]
        weight = upstream * shares[j] * slope
        if distance == COSINE:
            _push(pixel, classes[other], weight, move, totals[other])
            continue
        if distance == EUCLIDEAN:
            weight = weight / scores[j] if scores[j] > 0 else 0.0
        else:
            weight *= 2
        _pull(pixel, classes[other], weight, move, totals[other])


@entry(error_model="numpy")
def _run_chunk(embeddings, places, classes, candidates, slope, distance, first, end, upstream, losses, gradients, totals):
    """Write the losses of the pixels first:end or, unless ``upstream`` is empty, their gradients, adding to ``totals``."""
    scores, shares = np.empty(candidates.shape[1], np.float32), np.empty(candidates.shape[1], np.float64)
    points, moves = np.empty((_BLOCK, classes.shape[1]), np.float32), np.empty((_BLOCK, classes.shape[1]), np.float32)
    for block in range(first, end, _BLOCK):
        here = places[block : min(block + _BLOCK, end)]
        _gather(embeddings, here, points)
        moves[:] = 0
        for i in range(len(here)):
            p = block + i
            loss = _softmax(points[i], classes, candidates[p], slope, distance, scores, shares)
            if len(upstream) == 0:
                losses[p] = loss
                continue
            _add_gradients(points[i], classes, candidates[p], upstream[p], slope, distance, scores, shares, moves[i], totals)
        if len(upstream):
            _scatter(moves, here, gradients)


def losses(
    embeddings: np.ndarray,
    places: np.ndarray,
    classes: np.ndarray,
    candidates: np.ndarray,
    *,
    temperature: float,
    distance: int,
    threads: int,
) -> np.ndarray:
    """The losses (P,) float32 of the pixels at ``places``, of all B * N, over their ``candidates``, the target first.

    ``embeddings`` (B, D, N) and ``classes`` (C, D) float32, ``places`` (P,) int64, ``candidates`` (P, K) int32. The logits are
    those of ``ess.kernels.exact_cpu.exact`` without bias.
    """
    found, _, _ = _run(embeddings, places, classes, candidates, None, temperature, distance, threads)
    return found


def gradients(
    embeddings: np.ndarray,
    places: np.ndarray,
    classes: np.ndarray,
    candidates: np.ndarray,
    upstream: np.ndarray,
    *,
    temperature: float,
    distance: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradients of sum(upstream * losses) by the embeddings (B, D, N) and the classes (C, D), float32.

    ``upstream`` is (P,) float32, and everything else as in :func:`losses`.
    """
    _, moves, totals = _run(embeddings, places, classes, candidates, upstream, temperature, distance, threads)
    return moves, totals


def _run(
    embeddings: np.ndarray,
    places: np.ndarray,
    classes: np.ndarray,
    candidates: np.ndarray,
    upstream: np.ndarray | None,
    temperature: float,
    distance: int,
    threads: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(losses, gradients of the embeddings, gradients of the classes), of which those that are not requested are empty."""
    embeddings, classes = (np.require(x, np.float32, ("C", "W")) for x in (embeddings, classes))
    places, candidates = np.require(places, np.int64, ("C", "W")), np.require(candidates, np.int32, ("C", "W"))
    back = upstream is not None
    weights = np.require(upstream if upstream is not None else np.zeros(0), np.float32, ("C", "W"))
    found = np.zeros(0 if back else len(places), np.float32)
    moves = np.zeros(embeddings.shape if back else (0, 0, 0), np.float32)
    totals = np.zeros(classes.shape if back else (0, 0), np.float32)
    slope = float(temperature if distance == COSINE else -temperature)

    def worker() -> Worker:
        own = np.zeros_like(totals)

        def compute(first: int, end: int) -> None:
            _run_chunk(embeddings, places, classes, candidates, slope, distance, first, end, weights, found, moves, own)

        def add() -> None:
            np.add(totals, own, out=totals)
            own[:] = 0

        return compute, add

    parallel_for(worker, chunks(len(places), max(_CHUNK, len(classes))), threads)
    return found, moves, totals
