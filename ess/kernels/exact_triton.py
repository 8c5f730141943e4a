"""Cross entropy over all classes on a GPU, value and gradients without a pixels x classes array; by Triton.

Two kernels walk the same pairs. :func:`_by_pixel` holds a block of pixels and meets all classes with a running maximum: losses,
and gradients of the embeddings, which need no second look since what a pixel's classes share is divided out at the end.
:func:`_by_class` holds a block of classes and meets the pixels, whose sums are known by then: gradients of the classes, summed
in registers. In both, a pair's weight in the gradient is the left factor of the next product and stays in registers; nothing
is added atomically, so that equal inputs give equal bits.

Special functions of a pair, 16 a clock and multiprocessor of NVIDIA's: exp2, and where the distance is Euclidean rsqrt, which
serves the distance d2 * rsqrt(d2) and the derivative 1 / d; no division lies in a loop. That makes 4 (Euclidean) or 2 for value
and gradients, and half of it for the value alone. Beside them come 2 times about 17 or 9 other instructions, 128 a clock, and
4 products of D numbers on the tensor cores. 132 multiprocessors of 1.75 GHz so need at least 2.9 or 1.5 ms for the special
functions of 2.1 million pixels and 1284 classes, and 3.5 or 2 ms to issue all instructions.

Squared distances are |o|^2 - 2 <o, e> + |e|^2. Where that cancels in any pair of a tile, the tile is computed from differences,
and so is its part of the gradients: a uniform branch. The plain twin is the torch formula in ``ess.losses.cross_entropy``.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from ess.kernels.distances import COSINE, EUCLIDEAN, SQUARED

_WORKSPACE = 64 << 20
"""Bytes for sums of class gradients that are not added up yet."""

_PROGRAMS = 2048
"""So many programs keep any GPU busy."""

_LOG2_E = math.log2(math.e)

_COSINE, _EUCLIDEAN = tl.constexpr(COSINE), tl.constexpr(EUCLIDEAN)
_LN_2 = tl.constexpr(math.log(2))
_FAR = tl.constexpr(1e30)
"""A squared distance, or with a minus a logit, that leaves nothing of an exponential."""
_TINY = tl.constexpr(1e-30)
"""Less than any squared distance that counts as more than 0."""


class Exact(NamedTuple):
    """What :func:`exact` found; the gradients are those of the weighted sum of the losses, None unless asked for."""

    losses: torch.Tensor
    embeddings: torch.Tensor | None
    classes: torch.Tensor | None
    bias: torch.Tensor | None


class Blocks(NamedTuple):
    """How many pixels and classes meet at once, powers of two >= 16; warps of a program; tiles on their way to it."""

    pixels: int
    classes: int
    warps: int
    stages: int


def _blocks(channels: int, half: bool) -> Blocks:
    """What registers and shared memory hold: 64 pairs a thread where points are small, and less for other points.

    With 64 x 128 the compiler (Triton 3.9, sm_90, 12 bfloat16 channels, Euclidean) makes 17 and 20 instructions a pair of value
    and class gradients, two special ones each; 64 x 64 needs 24 and 33, most of them for what pixels and classes have alone.
    """
    width = channels if half else 2 * channels
    if width <= 32:
        return Blocks(64, 128, 4, 2)
    if width <= 64:
        return Blocks(64, 64, 4, 2)
    return Blocks(64, 64, 8, 1) if half or channels <= 64 else Blocks(64, 32, 8, 1)


@triton.jit
def _squares(rows, row_step, row_kept, columns, column_step, column_kept, CHANNELS, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Squared distances (ROWS, COLUMNS) from differences; ``rows`` and ``columns`` point at first coordinates."""
    total = tl.full((ROWS, COLUMNS), _TINY, tl.float32)
    for d in range(CHANNELS):
        row = tl.load(rows + d * row_step, mask=row_kept, other=0.0).to(tl.float32)
        column = tl.load(columns + d * column_step, mask=column_kept, other=0.0).to(tl.float32)
        gap = row[:, None] - column[None, :]
        total += gap * gap
    return total


@triton.jit
def _pulls(weights, rows, row_step, row_kept, columns, column_step, column_kept, dims, CHANNELS):
    """The sums over the columns of weights * (row - column), (ROWS, WIDTH)."""
    total = tl.zeros((weights.shape[0], dims.shape[0]), tl.float32)
    for d in range(CHANNELS):
        row = tl.load(rows + d * row_step, mask=row_kept, other=0.0).to(tl.float32)
        column = tl.load(columns + d * column_step, mask=column_kept, other=0.0).to(tl.float32)
        pull = tl.sum(weights * (row[:, None] - column[None, :]), 1)
        total += tl.where(dims[None, :] == d, pull[:, None], 0.0)
    return total


@triton.jit
def _logits(scores, extra, temperature, DISTANCE: tl.constexpr):
    """Logits in base 2 of inner products or squared distances > 0, and the factor of a difference in their derivative."""
    if DISTANCE == _COSINE:
        logits, slopes = scores * temperature + extra, 1.0
    elif DISTANCE == _EUCLIDEAN:
        slopes = tl.rsqrt(scores)
        logits = extra - scores * slopes * temperature
    else:
        logits, slopes = extra - scores * temperature, 1.0
    return logits, slopes


@triton.jit
def _join(logits, slopes, top, others, whole, sums):
    """Another tile's logits (PIXELS, CLASSES) joined to the maximum and the sums so far; and their exponentials by slopes."""
    higher = tl.maximum(top, tl.max(logits, 1))
    fade = tl.exp2(top - higher)
    shares = tl.exp2(logits - higher[:, None])
    return higher, others * fade + tl.sum(shares, 1), whole * fade, sums * fade[:, None], shares * slopes


@triton.jit
def _whole(whole, sums, dims, CHANNELS):
    """The sums of weights: where points are padded they were multiplied by one in the first column too many."""
    return whole - tl.sum(tl.where(dims[None, :] == CHANNELS, sums, 0.0), 1)


@triton.jit
def _by_pixel(
    embeddings,
    labels,
    weights,
    classes,
    norms,
    extra,
    logsums,
    misses,
    image_step,
    channel_step,
    pixel_step,
    labels_image_step,
    labels_step,
    weights_image_step,
    weights_step,
    extra_step,
    size,
    count,
    temperature,
    factor,
    bias,
    unit,
    losses,
    moves,
    moves_image_step,
    moves_channel_step,
    moves_step,
    ignore_index,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
    DISTANCE: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    GRADIENTS: tl.constexpr,
):
    """Losses (B, N) of a block of pixels of one image, and with GRADIENTS moves and what :func:`_by_class` wants to know.

    Pairs whose squared distance is below NEAR * |o|^2, there NEAR * |e|^2, count as near.
    """
    image = tl.program_id(1).to(tl.int64)
    places = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = places < size
    dims = tl.arange(0, WIDTH)
    channels = dims < CHANNELS
    label = tl.load(labels + image * labels_image_step + places * labels_step, mask=inside)
    counted = inside & (label != ignore_index)
    target = tl.where(counted, label, 0).to(tl.int32)

    points = embeddings + image * image_step + places * pixel_step
    kept = counted[:, None] & channels[None, :]
    o = tl.load(points[:, None] + dims[None, :] * channel_step, mask=kept, other=0.0).to(classes.dtype.element_ty)
    point = o.to(tl.float32)
    own = tl.load(classes + target[:, None] * WIDTH + dims[None, :], mask=kept, other=0.0).to(tl.float32)
    gap = -own if DISTANCE == _COSINE else point - own
    score = tl.sum(point * own, 1) if DISTANCE == _COSINE else tl.maximum(tl.sum(gap * gap, 1), _TINY)
    own_logit, own_slope = _logits(score, tl.load(bias + target), temperature, DISTANCE)
    sizes = tl.sum(point * point, 1)
    limits = tl.maximum(NEAR * sizes, _TINY)

    top = tl.full((PIXELS,), -1e38, tl.float32)
    others = tl.zeros((PIXELS,), tl.float32)
    whole = tl.zeros((PIXELS,), tl.float32)
    sums = tl.zeros((PIXELS, WIDTH), tl.float32)
    stop = tl.where(tl.max(counted.to(tl.int32), 0) > 0, count, 0)
    for start in range(0, stop, CLASSES):
        ids = start + tl.arange(0, CLASSES)
        known = ids < count
        lines = classes + ids * WIDTH
        e = tl.load(lines[:, None] + dims[None, :], mask=known[:, None], other=0.0)
        more = tl.load(extra + image * extra_step + ids, mask=known, other=-_FAR)[None, :]
        mine = ids[None, :] == target[:, None]
        scores = tl.dot(o, tl.trans(e), input_precision=PRECISION)
        if DISTANCE == _COSINE:
            near = False
            scores = tl.where(mine, -_FAR, scores)
        else:
            norm = tl.load(norms + ids, mask=known, other=_FAR)
            scores = tl.where(mine, _FAR, norm[None, :] - 2 * scores + sizes[:, None])
            near = tl.min(tl.min(scores, 1) - limits, 0) <= 0
        if near:
            scores = _squares(points, channel_step, counted, lines, 1, known, CHANNELS, PIXELS, CLASSES)
            logits, slopes = _logits(tl.where(mine, _FAR, scores), more, temperature, DISTANCE)
            top, others, whole, sums, pulls = _join(logits, slopes, top, others, whole, sums)
            if GRADIENTS:
                sums += _pulls(pulls, points, channel_step, counted, lines, 1, known, dims, CHANNELS)
        else:
            logits, slopes = _logits(scores, more, temperature, DISTANCE)
            top, others, whole, sums, pulls = _join(logits, slopes, top, others, whole, sums)
            if GRADIENTS:
                rounded = pulls.to(e.dtype)
                if CHANNELS == WIDTH:
                    whole += tl.sum(rounded.to(tl.float32), 1)
                # Not +=, which would become a sum inside the tensor cores, and they truncate it at every step.
                sums -= tl.dot(rounded, e, input_precision=PRECISION)

    highest = tl.maximum(top, own_logit)
    scale = tl.exp2(top - highest)
    rest = others * scale
    total = rest + tl.exp2(own_logit - highest)
    t = rest / (2 + rest)  # ln(1 + r) = 2 artanh(r / (2 + r)), for losses near 0
    s = t * t
    small = 2 * t * (1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9)))))
    loss = tl.where((own_logit >= top) & (rest < 0.5), small, _LN_2 * (highest - own_logit + tl.log2(total)))
    at = image * size + places
    tl.store(losses + at, tl.where(counted, loss, 0.0), mask=inside)
    if GRADIENTS:
        weight = tl.load(weights + image * weights_image_step + places * weights_step, mask=counted, other=0.0)
        part = tl.abs(weight) / tl.load(unit)
        miss = rest / total
        tl.store(logsums + at, tl.where(part > 0, highest + tl.log2(total) - tl.log2(part), float("inf")), mask=inside)
        tl.store(misses + at, miss * part, mask=inside)
        if DISTANCE != _COSINE:
            sums += point * _whole(whole, sums, dims, CHANNELS)[:, None]
        move = (scale / total)[:, None] * sums - (miss * own_slope)[:, None] * gap
        move = tl.where(counted[:, None], (factor * weight)[:, None] * move, 0.0)
        lines = moves + image * moves_image_step + places * moves_step
        kept = inside[:, None] & channels[None, :]
        tl.store(lines[:, None] + dims[None, :] * moves_channel_step, move.to(moves.dtype.element_ty), mask=kept)


@triton.jit
def _by_class(
    embeddings,
    labels,
    weights,
    classes,
    norms,
    extra,
    logsums,
    misses,
    image_step,
    channel_step,
    pixel_step,
    labels_image_step,
    labels_step,
    weights_image_step,
    weights_step,
    extra_step,
    size,
    count,
    temperature,
    factor,
    totals,
    bias_totals,
    blocks,
    per_image,
    share,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
    PIXELS: tl.constexpr,
    CLASSES: tl.constexpr,
    DISTANCE: tl.constexpr,
    NEAR: tl.constexpr,
    PRECISION: tl.constexpr,
    BIAS: tl.constexpr,
):
    """Gradients of a block of classes, summed over ``share`` of all blocks of pixels: totals (parts, C, D)."""
    ids = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    known = ids < count
    dims = tl.arange(0, WIDTH)
    lines = classes + ids * WIDTH
    e = tl.load(lines[:, None] + dims[None, :], mask=known[:, None] & (dims != CHANNELS)[None, :], other=0.0)
    norm = tl.load(norms + ids, mask=known, other=_FAR)
    limits = tl.maximum(NEAR * norm, _TINY)
    sums = tl.zeros((CLASSES, WIDTH), tl.float32)
    whole = tl.zeros((CLASSES,), tl.float32)
    slope = tl.zeros((CLASSES,), tl.float32)
    first = tl.program_id(1) * share
    for block in range(first, tl.minimum(first + share, blocks)):
        image = (block // per_image).to(tl.int64)
        places = block % per_image * PIXELS + tl.arange(0, PIXELS)
        inside = places < size
        at = image * size + places
        logsum = tl.load(logsums + at, mask=inside, other=float("inf"))
        counted = logsum < float("inf")
        miss = tl.load(misses + at, mask=inside, other=0.0)
        label = tl.load(labels + image * labels_image_step + places * labels_step, mask=counted, other=0).to(tl.int32)
        weight = tl.load(weights + image * weights_image_step + places * weights_step, mask=counted, other=0.0)
        sign = tl.where(weight < 0, -1.0, 1.0)
        more = tl.load(extra + image * extra_step + ids, mask=known, other=-_FAR)[:, None]
        points = embeddings + image * image_step + places * pixel_step
        kept = (dims < CHANNELS)[:, None] & counted[None, :]
        o = tl.load(points[None, :] + dims[:, None] * channel_step, mask=kept, other=0.0).to(e.dtype)
        scores = tl.dot(e, o, input_precision=PRECISION)
        if DISTANCE == _COSINE:
            near = False
        else:
            point = o.to(tl.float32)
            scores = norm[:, None] - 2 * scores + tl.sum(point * point, 0)[None, :]
            near = tl.min(tl.min(scores, 1) - limits, 0) <= 0
        if near:
            scores = _squares(lines, 1, known, points, channel_step, counted, CHANNELS, CLASSES, PIXELS)
            logits, slopes = _logits(scores, more, temperature, DISTANCE)
            shares = tl.where(ids[:, None] == label[None, :], -miss[None, :], tl.exp2(logits - logsum[None, :]))
            pulls = shares * slopes * sign[None, :]
            sums += _pulls(pulls, lines, 1, known, points, channel_step, counted, dims, CHANNELS)
        else:
            logits, slopes = _logits(scores, more, temperature, DISTANCE)
            shares = tl.where(ids[:, None] == label[None, :], -miss[None, :], tl.exp2(logits - logsum[None, :]))
            signed = (tl.where(dims[:, None] == CHANNELS, 1.0, o.to(tl.float32)) * sign[None, :]).to(e.dtype)
            rounded = (shares * slopes).to(e.dtype)
            if CHANNELS == WIDTH:
                whole += tl.sum(rounded.to(tl.float32) * sign[None, :], 1)
            sums -= tl.dot(rounded, tl.trans(signed), input_precision=PRECISION)
        if BIAS:
            slope += tl.sum(shares * sign[None, :], 1)

    if DISTANCE != _COSINE:
        sums += e.to(tl.float32) * _whole(whole, sums, dims, CHANNELS)[:, None]
    part = tl.program_id(1) * count + ids
    kept = known[:, None] & (dims < CHANNELS)[None, :]
    tl.store(totals + part[:, None] * CHANNELS + dims[None, :], factor * sums, mask=kept)
    if BIAS:
        tl.store(bias_totals + part, slope, mask=known)


def exact(
    embeddings: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    classes: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    *,
    ignore_index: int,
    temperature: float,
    distance: int,
    gradients: bool,
) -> Exact:
    """The loss of each pixel, (B, N) float32 and 0 where ignored, and the gradients of sum(weights * losses).

    Pixel p and class c have the logit -T * ||o_p - e_c|| + b_c (``distance`` EUCLIDEAN), -T * ||o_p - e_c||^2 + b_c (SQUARED)
    or T * <o_p, e_c> + b_c (COSINE). ``embeddings`` (B, D, N), D <= 256, and ``classes`` (C, D) are float32, bfloat16 or
    float16, multiplied in what torch promotes them to and summed in float32; of float32 no digit is dropped. ``labels`` (B, N)
    are of any integer type, ``weights`` (B, N) float32, ``bias`` (C,) floating or None, ``mask`` (B, C) bool or None, False
    where a class takes no part in an image unless it is the target. Any strides do, and of pixels nothing is copied.

    The gradient of the embeddings comes in their type, but for float16 in float32, where small numbers do not vanish; those of
    the classes and of the bias in float32. In the products of float16, shares below 6e-8 do vanish: bfloat16 keeps them.
    """
    (images, channels, size), count = embeddings.shape, len(classes)
    classes = classes.to(torch.promote_types(embeddings.dtype, classes.dtype))
    half = classes.dtype != torch.float32
    width = max(16, triton.next_power_of_2(channels + (channels == 16)))  # sums by a column too many cost less than others
    table = classes.new_zeros(count, width)
    table[:, :channels], table[:, channels : channels + 1] = classes, 1
    norms = classes.float().square().sum(1)
    biased = bias is not None
    bias = bias.float() * _LOG2_E if biased else torch.zeros_like(norms)
    extra = bias.expand(images, count)
    extra = extra if mask is None else extra.masked_fill(~mask, -_FAR.value)
    losses = norms.new_empty(images, size)
    logsums, misses = (torch.empty_like(losses) if gradients else losses for _ in range(2))
    kept = torch.float32 if embeddings.dtype == torch.float16 else embeddings.dtype
    moves = torch.empty_like(embeddings, dtype=kept) if gradients else losses[:, None]
    unit = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)  # float16 has no room for 1 / pixels

    blocks = _blocks(channels, half)
    per_image, tiles = triton.cdiv(size, blocks.pixels), triton.cdiv(count, blocks.classes)
    shared = (
        *(embeddings, labels, weights, table, norms, extra, logsums, misses),
        *(*embeddings.stride(), *labels.stride(), *weights.stride(), extra.stride(0)),
        *(size, count, temperature * _LOG2_E, temperature * (-2.0 if distance == SQUARED else -1.0)),
    )
    settings = {
        "CHANNELS": channels,
        "WIDTH": width,
        "PIXELS": blocks.pixels,
        "CLASSES": blocks.classes,
        "DISTANCE": distance,
        "PRECISION": "tf32x3",
        "num_warps": blocks.warps,
        "num_stages": blocks.stages,
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(embeddings):
        _by_pixel[per_image, images](
            *(*shared, bias, unit, losses, moves, *moves.stride(), ignore_index),
            NEAR=0.002 if half else 0.25,
            GRADIENTS=gradients,
            **settings,
        )
        if not gradients:
            return Exact(losses, None, None, None)
        every = images * per_image
        parts = max(1, min(_PROGRAMS // tiles, _WORKSPACE // (4 * count * (channels + 1)), every))
        share = triton.cdiv(every, parts)
        parts = triton.cdiv(every, share)
        totals, slopes = norms.new_empty(parts, count, channels), norms.new_empty(parts, count if biased else 0)
        near = (
            0.002 if half else 0.02
        )  # pixels are often near their class, and gradients are asked for fewer digits than the value
        _by_class[tiles, parts](*shared, totals, slopes, every, per_image, share, NEAR=near, BIAS=biased, **settings)
    return Exact(losses, moves, totals.sum(0) * unit, slopes.sum(0) * unit if biased else None)
