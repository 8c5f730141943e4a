"""The k nearest classes of each pixel on a GPU, without a pixels x classes array; in Triton.

A program holds a block of queries, loops over tiles of classes, and keeps the best k keys of each query. A key is an integer
that sorts like (score, id): the bits of the float32 score, flipped if it is negative, above the id. Keys are taken from a tile
only while it contains a better one. Scores are computed from differences, 2 instructions per dimension, which avoids
cancellation. The reference is ``ess.losses.neighbours._torch``.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from ess.kernels.gpu.exact_kernels import place

_LAST = tl.constexpr(2**63 - 1)
"""A key that sorts after every other."""


def _blocks(k: int) -> tuple[int, int]:
    """(queries, classes) that are compared at once, powers of two: 32 keys per thread, and fewer if many are kept."""
    return (64, 64) if k <= 16 else (32, 64)


# fmt: off
@triton.jit
def _keys(
    queries, query_step, table, bias, kept, target, ids, count,
    PRODUCTS: tl.constexpr, ROOTS: tl.constexpr, BIASED: tl.constexpr, EXCLUDES: tl.constexpr, CHANNELS,
    QUERIES: tl.constexpr, CLASSES: tl.constexpr,
):
    # fmt: on
    """The keys of a block of queries and a tile of classes, (QUERIES, CLASSES) int64; the smaller, the nearer."""
    known = ids < count
    scores = tl.zeros((QUERIES, CLASSES), tl.float32)
    for d in range(CHANNELS):
        query = tl.load(queries + d * query_step, mask=kept, other=0.0).to(tl.float32)[:, None]
        point = tl.load(table + d * count + ids, mask=known, other=0.0)[None, :]
        if PRODUCTS:
            scores -= query * point
        else:
            scores += (query - point) * (query - point)
    if BIASED:
        scores = tl.sqrt_rn(scores) if ROOTS else scores
        scores -= tl.load(bias + ids, mask=known, other=0.0)[None, :]
    bits = scores.to(tl.int32, bitcast=True)  # never -0: sums start at 0, and a difference of equal numbers is 0
    bits = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    eligible = known[None, :] & (ids[None, :] != target[:, None]) if EXCLUDES else known[None, :]
    return tl.where(eligible, (bits.to(tl.int64) << 32) | ids[None, :], _LAST)


# fmt: off
@triton.jit
def _nearest(
    queries, targets, table, bias,  # inputs
    nearest,  # output
    image_step, query_step, channel_step, row_step, size, count,  # strides, queries per image, classes
    K: tl.constexpr, SLOTS: tl.constexpr,
    PRODUCTS: tl.constexpr, ROOTS: tl.constexpr, BIASED: tl.constexpr, EXCLUDES: tl.constexpr, CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr, CLASSES: tl.constexpr,
):
    # fmt: on
    """Writes the ids of the nearest classes, ``nearest`` (B, N, K), of a block of queries; ``table`` is (D, C).

    If it EXCLUDES the ``targets`` (B, N), a query whose target is negative gets arbitrary ids.
    """
    image, first = place(size, QUERIES)
    places = first + tl.arange(0, QUERIES)
    inside = places < size
    rows = image * size + places
    lines = queries + image * image_step + places.to(tl.int64) * query_step
    kept, target = inside, places
    if EXCLUDES:
        target = tl.load(targets + rows, mask=inside, other=-1)
        kept = target >= 0
    slots = tl.arange(0, SLOTS)[None, :].to(tl.int64)
    best = tl.zeros((QUERIES, SLOTS), tl.int64) + tl.where(slots < K, _LAST - 1 - slots, -_LAST)  # all differ
    worst = tl.max(best, 1)
    stop = tl.where(tl.max(kept.to(tl.int32), 0) > 0, count, 0)
    for start in range(0, stop, CLASSES):
        ids = start + tl.arange(0, CLASSES)
        keys = _keys(
            lines, channel_step, table, bias, kept, target, ids, count, PRODUCTS, ROOTS, BIASED, EXCLUDES, CHANNELS, QUERIES,
            CLASSES,
        )  # fmt: skip
        least = tl.min(keys, 1)
        while tl.max((least < worst).to(tl.int32), 0) > 0:
            best = tl.where((best == worst[:, None]) & (least < worst)[:, None], least[:, None], best)
            worst = tl.max(best, 1)
            keys = tl.where(keys == least[:, None], _LAST, keys)
            least = tl.min(keys, 1)
    best = tl.where(slots < K, best, _LAST)
    for rank in range(K):
        least = tl.min(best, 1)
        tl.store(nearest + rows * row_step + rank, (least & 0xFFFFFFFF).to(nearest.dtype.element_ty), mask=inside)
        best = tl.where(best == least[:, None], _LAST, best)


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
    table = classes.float().T.contiguous()
    at_once, width = _blocks(k)
    inputs: dict[str, Any] = {"queries": queries, "table": table}
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
            SLOTS=max(2, triton.next_power_of_2(k)),
            PRODUCTS=products,
            ROOTS=roots,
            BIASED=bias is not None,
            EXCLUDES=targets is not None,
            CHANNELS=channels,
            QUERIES=at_once,
            CLASSES=width,
            enable_fp_fusion=True,
        )
