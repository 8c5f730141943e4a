"""Cross entropy over all classes on the CPU, value and gradients in one pass over the pixels; compiled by numba.

A block of pixels is compared with all classes while its logits are in the cache, so a pixels x classes array never exists. This
module divides the pixels among threads; the loops are in ``ess.kernels.exact_cpu_loops``. The reference is the torch formula in
``ess.losses.cross_entropy``.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ess.kernels.distances import COSINE
from ess.kernels.exact_cpu_loops import Block, Problem, Sums, run_chunk
from ess.kernels.threads import chunks, parallel_for
from ess.kernels.tiles import tiles, zeros

_BLOCK = 16
"""How many pixels are compared with all classes together, a multiple of 4."""

_ONCE = 1 << 16
"""The most classes with which a block is compared at once; more are taken one tile at a time, and again for the gradients."""

_LARGE_BLOCK = 32
"""How many pixels are compared with one tile at a time, a multiple of 4."""

_LN_2 = math.log(2)

_CHUNK = 8192
"""How many pixels' class gradients are summed in float32 before they are added to the total."""


class Exact(NamedTuple):
    """The result of :func:`exact`. The gradients are those of the weighted sum of the losses, None unless requested."""

    losses: np.ndarray
    embeddings: np.ndarray | None
    classes: np.ndarray | None
    bias: np.ndarray | None


def exact(
    embeddings: np.ndarray,
    labels: np.ndarray,
    weights: np.ndarray,
    classes: np.ndarray,
    bias: np.ndarray | None,
    mask: np.ndarray | None,
    *,
    ignore_index: int,
    temperature: float,
    distance: int,
    gradients: bool,
    threads: int,
) -> Exact:
    """The loss of each pixel, (B, N) float32 and 0 where ignored, and the gradients of sum(weights * losses).

    Pixel p and class c have the logit -T * ||o_p - e_c|| + b_c (``distance`` EUCLIDEAN), -T * ||o_p - e_c||^2 + b_c (SQUARED)
    or T * <o_p, e_c> + b_c (COSINE). ``embeddings`` (B, D, N) float32 of any strides, ``labels`` (B, N) int64, ``weights`` (B,
    N) float32, ``classes`` (C, D) float32, ``bias`` (C,) float32 or None. ``mask`` (B, C) bool or None is False for the classes
    that are left out of the softmax of an image; targets never are. Equal inputs give equal bits on any number of threads.
    """
    embeddings, labels, weights = map(np.ascontiguousarray, (embeddings, labels, weights))
    (images, channels, size), count = embeddings.shape, len(classes)
    problem = Problem(
        embeddings,
        labels,
        weights,
        table=tiles(classes),
        bias=np.zeros(0, np.float32) if bias is None else bias / np.float32(_LN_2),
        mask=np.zeros((0, 0), np.bool_) if mask is None else mask,
        ignore_index=ignore_index,
        temperature=np.float32(temperature / _LN_2),
        distance=distance,
        classes=count,
    )
    losses = np.zeros((images, size), np.float32)
    moves = np.zeros(embeddings.shape if gradients else (0, 0, 0), np.float32)
    total = _sums(problem, gradients)
    parts = [(image, *chunk) for image in range(images) for chunk in chunks(size, _CHUNK)]
    parallel_for(lambda: _worker(problem, losses, moves, total), parts, threads)
    if not gradients:
        return Exact(losses, None, None, None)
    sums = total.products if distance == COSINE else total.products + total.weights[:, None] * problem.table
    return Exact(losses, moves, sums.transpose(0, 2, 1).reshape(-1, sums.shape[1])[:count, :channels], total.slopes)


def _worker(
    problem: Problem, losses: np.ndarray, moves: np.ndarray, total: Sums
) -> tuple[Callable[[int, int, int], None], Callable[[], None]]:
    """(compute, add) of one thread: run a chunk with sums of its own, and add these to the total."""
    block, own = _block(problem.table), Sums(*(zeros(*array.shape) for array in total))

    def compute(image: int, first: int, end: int) -> None:
        run_chunk(problem, image, first, end, block, losses, moves, own)

    def add() -> None:
        for whole, part in zip(total, own, strict=True):
            whole += part
            part[:] = 0

    return compute, add


def _sums(problem: Problem, gradients: bool) -> Sums:
    """Zeros for the sums of class gradients; arrays of length 0 without ``gradients``."""
    number, channels, width = problem.table.shape
    number, biases = (number, len(problem.bias)) if gradients else (0, 0)
    return Sums(products=zeros(number, channels, width), weights=zeros(number, width), slopes=zeros(biases))


def _block(table: np.ndarray) -> Block:
    """Scratch for a thread: few pixels and all classes, or more pixels and one tile, so that the rows stay in the cache."""
    number, channels, width = table.shape
    pixels, group = (_BLOCK, number) if number * width <= _ONCE else (_LARGE_BLOCK, 1)
    rows = zeros(pixels, group, width)
    own, best, others, factors = (zeros(pixels) for _ in range(4))
    return Block(
        rows=rows,
        flat=rows.reshape(pixels, -1),
        inverses=zeros(pixels, group * width),
        points=zeros(pixels, channels),
        moves=zeros(pixels, channels),
        where=np.zeros(pixels, np.int64),
        own=own,
        best=best,
        others=others,
        factors=factors,
    )
