"""The k nearest classes of each pixel on a GPU, without a pixels x classes array; in Triton.

A program holds a block of queries, loops over tiles of classes, and keeps the best keys of each query. A key is an integer
that sorts like (score, id): the bits of the float32 score, flipped if it is negative, above the id. A tile is looked at only
while it contains a score better than the worst key.

Scores are squared distances |o|^2 - 2 <o, e> + |e|^2 or negative inner products, with products made by tensor cores as in
``ess.kernels.gpu.exact_kernels``; their layout also makes the comparisons cheap. One class more than requested is kept. If the
scores of two successive classes of a query differ by less than the error of such a product, the program starts again, with
scores computed from differences, which avoid cancellation. That is rare, so the result is that of the second method at the
cost of the first. With a bias, only the second one is used. The reference is ``ess.losses.neighbours._torch``.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ess.kernels.gpu.exact_kernels import part_of, place, product, scale_of
from ess.kernels.gpu.tables import REGISTERS, halves, padded

_LAST = tl.constexpr(2**63 - 1)
"""A key that sorts after every other."""
_MOST = tl.constexpr(3e38)
"""What a score counts as that is larger or no number, so that its class still sorts before those that are not eligible."""
_ERROR = tl.constexpr(2.0**-20)
"""The error of a score, as a share of the norms of both embeddings."""


def _blocks(k: int, channels: int) -> tuple[int, int]:
    """(queries, classes) that are compared at once, powers of two; fewer if many are kept, or of long embeddings."""
    return (64, 64) if k <= 16 and channels <= 64 else (32, 64)


@triton.jit
def _key(scores, ids):
    """int64 keys of float32 scores, which are never -0, and int32 ids."""
    bits = scores.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (bits.to(tl.int64) << 32) | ids


@triton.jit
def _score(keys):
    """The scores of keys; that of the last key and those near it are NaN, which is not better than any score."""
    bits = (keys >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def _join(scores, ids, best, count):
    """``best`` keys (Q, SLOTS), joined by those of a tile with ``scores`` (Q, C), infinite where a class is not eligible."""
    worst = tl.max(best, 1)
    least = tl.min(scores, 1)
    better = (least < float("inf")) & (_key(least, count) < worst)
    while tl.max(better.to(tl.int32), 0) > 0:
        id = tl.min(tl.where(scores == least[:, None], ids[None, :], count), 1)
        best = tl.where((best == worst[:, None]) & better[:, None], _key(least, id)[:, None], best)
        worst = tl.max(best, 1)
        scores = tl.where(ids[None, :] == id[:, None], float("inf"), scores)
        least = tl.min(scores, 1)
        better = (least < float("inf")) & (_key(least, count) < worst)
    return best


# fmt: off
@triton.jit
def _compared(
    queries, query_step, table, bias, kept, ids, count,
    PRODUCTS: tl.constexpr, ROOTS: tl.constexpr, BIASED: tl.constexpr, CHANNELS, WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, CLASSES: tl.constexpr,
):
    # fmt: on
    """The scores (QUERIES, CLASSES) of a block of queries and a tile of classes, from differences."""
    known = ids < count
    scores = tl.zeros((QUERIES, CLASSES), tl.float32)
    for d in range(CHANNELS):
        query = tl.load(queries + d * query_step, mask=kept, other=0.0).to(tl.float32)[:, None]
        point = tl.load(table + ids * WIDTH + d, mask=known, other=0.0)[None, :]
        if PRODUCTS:
            scores -= query * point
        else:
            scores += (query - point) * (query - point)
    if BIASED:
        scores = tl.sqrt_rn(scores) if ROOTS else scores
        scores -= tl.load(bias + ids, mask=known, other=0.0)[None, :]
    return scores


# fmt: off
@triton.jit
def _nearest(
    queries, targets, table, high, low, norms, largest, bias,  # inputs
    nearest,  # output
    image_step, query_step, channel_step, row_step, size, count,  # strides, queries per image, classes
    K: tl.constexpr, SLOTS: tl.constexpr,
    PRODUCTS: tl.constexpr, ROOTS: tl.constexpr, BIASED: tl.constexpr, EXCLUDES: tl.constexpr, SPLIT: tl.constexpr,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, CLASSES: tl.constexpr,
):
    # fmt: on
    """Writes the ids of the nearest classes, ``nearest`` (B, N, K), of a block of queries; K is less than SLOTS.

    If it EXCLUDES the ``targets`` (B, N), a query whose target is negative gets arbitrary ids.
    """
    image, first = place(size, QUERIES)
    places = first + tl.arange(0, QUERIES)
    inside = places < size
    rows = image * size + places
    lines = queries + image * image_step + places.to(tl.int64) * query_step
    kept, target = inside, places
    if EXCLUDES:
        target = tl.load(targets + rows, mask=inside, other=-1).to(tl.int32)
        kept = target >= 0
    stop = tl.where(tl.max(kept.to(tl.int32), 0) > 0, count, 0)
    slots = tl.arange(0, SLOTS)[None, :].to(tl.int64)
    empty = tl.zeros((QUERIES, SLOTS), tl.int64) + tl.where(slots <= K, _LAST - 1 - slots, -_LAST)  # all differ
    best = empty
    unsure = kept
    if not BIASED:
        dims = tl.arange(0, WIDTH)
        points = tl.load(
            lines[:, None] + dims[None, :] * channel_step, mask=kept[:, None] & (dims < CHANNELS)[None, :], other=0.0
        ).to(tl.float32)
        norm = tl.sum(points * points, 1)
        most = tl.load(largest)
        scale = scale_of(norm, most)
        points_high, points_low = part_of(points / scale[:, None])
        back = -most * scale if PRODUCTS else -2 * most * scale
        for start in range(0, stop, CLASSES):
            ids = start + tl.arange(0, CLASSES)
            known = ids < count
            at = ids[:, None] * WIDTH + dims[None, :]
            classes_high = tl.load(high + at, mask=known[:, None], other=0.0)
            classes_low = tl.load(low + at, mask=known[:, None], other=0.0)
            scores = product(points_high, points_low, tl.trans(classes_high), tl.trans(classes_low), SPLIT) * back[:, None]
            if not PRODUCTS:
                scores += tl.load(norms + ids, mask=known, other=0.0)[None, :] + norm[:, None]
            scores = tl.where(known[None, :], scores + 0.0, float("inf"))  # never -0
            if EXCLUDES:
                scores = tl.where(ids[None, :] == target[:, None], float("inf"), scores)
            best = _join(scores, ids, best, count)
        left = tl.where(slots <= K, best, _LAST)
        last = tl.min(left, 1)
        unsure = tl.zeros((QUERIES,), tl.int32) > 0
        for _ in range(K):
            left = tl.where(left == last[:, None], _LAST, left)
            next = tl.min(left, 1)
            sure = _score(next) - _score(last) > most * scale * (2 * _ERROR)  # not if one of them is missing or no number
            unsure = unsure | (sure == 0)
            last = next
        unsure = unsure & kept
    if tl.max(unsure.to(tl.int32), 0) > 0:
        best = empty
        for start in range(0, stop, CLASSES):
            ids = start + tl.arange(0, CLASSES)
            scores = _compared(
                lines, channel_step, table, bias, kept, ids, count, PRODUCTS, ROOTS, BIASED, CHANNELS, WIDTH, QUERIES, CLASSES
            )
            scores = tl.where(scores < _MOST, scores, _MOST)
            scores = tl.where((ids < count)[None, :], scores, float("inf"))
            if EXCLUDES:
                scores = tl.where(ids[None, :] == target[:, None], float("inf"), scores)
            best = _join(scores, ids, best, count)
    left = tl.where(slots <= K, best, _LAST)
    for rank in range(K):
        least = tl.min(left, 1)
        tl.store(nearest + rows * row_step + rank, (least & 0xFFFFFFFF).to(nearest.dtype.element_ty), mask=inside)
        left = tl.where(left == least[:, None], _LAST, left)


def search(
    queries: torch.Tensor,
    classes: torch.Tensor,
    k: int,
    *,
    products: bool,
    bias: torch.Tensor | None = None,
    roots: bool = False,
) -> torch.Tensor:
    """(P, k) int64, k <= 65: the classes nearest to each query, the nearest first; ties go to the lower id.

    ``queries`` (P, D) and ``classes`` (C, D) are compared in float32, by Euclidean distance, or with ``products`` by inner
    product, the largest first. ``bias`` (C,) is subtracted from the squared distances, from their ``roots``, or from the
    negative products. A query with a NaN gets arbitrary classes.
    """
    nearest = torch.empty(len(queries), k, dtype=torch.int64, device=queries.device)
    _launch(queries.T[None], None, classes, nearest, products, bias, roots)
    return nearest


def candidates(
    embeddings: torch.Tensor, targets: torch.Tensor, classes: torch.Tensor, k: int, *, products: bool
) -> torch.Tensor:
    """(B * N, 1 + k) int32, k <= 64: the target of each pixel, then the k nearest other classes as in :func:`search`.

    ``embeddings`` (B, D, N) are of any floating type and any strides, ``targets`` (B, N) integer, negative where a pixel is
    ignored; such a pixel gets arbitrary numbers after its target. k is at most C - 1.
    """
    found = torch.empty(targets.numel(), 1 + k, dtype=torch.int32, device=embeddings.device)
    found[:, 0] = targets.flatten()
    _launch(embeddings, targets.contiguous(), classes, found[:, 1:], products, None, False)
    return found


def _launch(
    queries: torch.Tensor,
    targets: torch.Tensor | None,
    classes: torch.Tensor,
    nearest: torch.Tensor,
    products: bool,
    bias: torch.Tensor | None,
    roots: bool,
) -> None:
    """Write ``nearest`` (B * N, K) for ``queries`` (B, D, N)."""
    (images, channels, size), k = queries.shape, nearest.shape[1]
    table = padded(classes.float())
    norms, largest, high, low = halves(table, channels)
    at_once, width = _blocks(k, channels)
    inputs: dict[str, Any] = {"queries": queries, "table": table, "high": high, "low": low, "norms": norms, "largest": largest}
    inputs["targets"] = table if targets is None else targets
    inputs["bias"] = table if bias is None else bias.float().contiguous()
    with torch.cuda.device_of(queries):
        _nearest[(triton.cdiv(size, at_once) * images,)](
            **inputs,
            nearest=nearest,
            image_step=queries.stride(0),
            query_step=queries.stride(2),
            channel_step=queries.stride(1),
            row_step=nearest.stride(0),
            size=size,
            count=len(classes),
            K=k,
            SLOTS=triton.next_power_of_2(k + 1),
            PRODUCTS=products,
            ROOTS=roots,
            BIASED=bias is not None,
            EXCLUDES=targets is not None,
            SPLIT=torch.float32 in (queries.dtype, classes.dtype),
            CHANNELS=channels,
            WIDTH=table.shape[1],
            QUERIES=at_once,
            CLASSES=width,
            enable_fp_fusion=True,
            maxnreg=REGISTERS,
        )
