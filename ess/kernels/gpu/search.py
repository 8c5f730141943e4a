"""The k nearest classes of each pixel on a GPU, without a pixels x classes array; in Triton.

A program holds a block of queries, loops over tiles of classes, and keeps the best k keys of each query. A key is an integer
that sorts like (score, id): the bits of the float32 score, flipped if it is negative, above the id. Keys are taken from a tile
only while it contains a better one. Scores are computed from differences, 2 instructions per dimension, which avoids
cancellation. The reference is ``ess.losses.neighbours._torch``.
"""

import torch
import triton
import triton.language as tl

_LAST = tl.constexpr(2**63 - 1)
"""A key that sorts after every other."""


def _blocks(k: int) -> tuple[int, int]:
    """(queries, classes) that are compared at once, powers of two: 32 keys per thread, and fewer if many are kept."""
    return (64, 64) if k <= 16 else (32, 64)


@triton.jit
def _keys(
    queries,
    table,
    bias,
    kept,
    ids,
    count,
    PRODUCTS: tl.constexpr,
    ROOTS: tl.constexpr,
    BIASED: tl.constexpr,
    CHANNELS,
    QUERIES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """The keys of a block of queries and a tile of classes, (QUERIES, CLASSES) int64; the smaller, the nearer."""
    known = ids < count
    scores = tl.zeros((QUERIES, CLASSES), tl.float32)
    for d in range(CHANNELS):
        query = tl.load(queries + d, mask=kept, other=0.0)[:, None]
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
    return tl.where(known[None, :], (bits.to(tl.int64) << 32) | ids[None, :], _LAST)


@triton.jit
def _nearest(
    queries,
    table,
    bias,
    nearest,
    size,
    count,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    PRODUCTS: tl.constexpr,
    ROOTS: tl.constexpr,
    BIASED: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUERIES: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Writes the ids of the nearest classes, ``nearest`` (P, K) int64, of a block of queries (P, D); ``table`` is (D, C)."""
    places = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    kept = places < size
    lines = queries + places.to(tl.int64) * CHANNELS
    slots = tl.arange(0, SLOTS)[None, :].to(tl.int64)
    best = tl.zeros((QUERIES, SLOTS), tl.int64) + tl.where(slots < K, _LAST - 1 - slots, -_LAST)  # all differ
    worst = tl.max(best, 1)
    for start in range(0, count, CLASSES):
        ids = start + tl.arange(0, CLASSES)
        keys = _keys(lines, table, bias, kept, ids, count, PRODUCTS, ROOTS, BIASED, CHANNELS, QUERIES, CLASSES)
        least = tl.min(keys, 1)
        while tl.max((least < worst).to(tl.int32), 0) > 0:
            best = tl.where((best == worst[:, None]) & (least < worst)[:, None], least[:, None], best)
            worst = tl.max(best, 1)
            keys = tl.where(keys == least[:, None], _LAST, keys)
            least = tl.min(keys, 1)
    best = tl.where(slots < K, best, _LAST)
    for rank in range(K):
        least = tl.min(best, 1)
        tl.store(nearest + places.to(tl.int64) * K + rank, least & 0xFFFFFFFF, mask=kept)
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
    """(P, k) int64, k <= 64: the classes nearest to each query, the nearest first; ties go to the lower id.

    ``queries`` (P, D) and ``classes`` (C, D) are compared in float32, by Euclidean distance, or with ``products`` by inner
    product, the largest first. ``bias`` (C,) is subtracted from the squared distances, from their ``roots``, or from the
    negative products. A query with a NaN gets arbitrary classes.
    """
    queries, table = queries.float().contiguous(), classes.float().T.contiguous()
    size, channels = queries.shape
    nearest = queries.new_empty(size, k, dtype=torch.int64)
    at_once, width = _blocks(k)
    with torch.cuda.device_of(queries):
        _nearest[triton.cdiv(size, at_once),](
            queries=queries,
            table=table,
            bias=table if bias is None else bias.float().contiguous(),
            nearest=nearest,
            size=size,
            count=len(classes),
            K=k,
            SLOTS=max(2, triton.next_power_of_2(k)),
            PRODUCTS=products,
            ROOTS=roots,
            BIASED=bias is not None,
            CHANNELS=channels,
            QUERIES=at_once,
            CLASSES=width,
            enable_fp_fusion=True,
        )
    return nearest
