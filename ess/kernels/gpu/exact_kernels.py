"""The Triton kernels of ``ess.kernels.gpu.exact``: cross entropy over all classes, value and gradients.

Two kernels visit each pair of a pixel and a class once:

- :func:`by_pixel` holds a block of pixels and loops over the classes with an online softmax. It writes the losses and the
  gradients of the embeddings, which need no second pass: the factor that a pixel's classes share is applied at the end.
- :func:`by_class` holds a block of classes and loops over the pixels, whose softmax sums are known by then. It writes the
  gradients of the class embeddings, which it sums in registers.

In both, the weights of the pairs in the gradient are the left factor of the next product and stay in registers. There are no
atomic additions, so equal inputs give equal bits.

Squared distances are |o|^2 - 2 <o, e> + |e|^2, by tensor cores. The pairs of a tile for which this cancels are taken out of it
and computed from differences o - e, one pair of each pixel at a time. With s_pc = softmax(z)_pc, the
gradients are dL_p/do_p = sum over c of (s_pc - [c = t]) dz_pc/do_p with dz/do = -T (o - e) / d, -2 T (o - e) or T e.

Suffixes of names are axes, as listed in ``ess.kernels``.
"""

import math

import triton
import triton.language as tl

from ess.kernels.distances import COSINE, EUCLIDEAN

_COSINE, _EUCLIDEAN = tl.constexpr(COSINE), tl.constexpr(EUCLIDEAN)
_LN_2 = tl.constexpr(math.log(2))
FAR = tl.constexpr(1e30)
"""A squared distance, or negated a logit, whose exponential is 0."""
_TINY = tl.constexpr(1e-30)
"""Smaller than any squared distance that counts as positive."""


@triton.jit
def place(size, AT_ONCE: tl.constexpr):
    """(image, first pixel) of this program in a grid that visits ``size`` pixels of each image, ``AT_ONCE`` at a time.

    The grid has one dimension, because CUDA allows at most 65,535 programs in the others.
    """
    blocks = tl.cdiv(size, AT_ONCE)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * AT_ONCE


@triton.jit
def _logits(scores, bias, temperature, DISTANCE: tl.constexpr):
    """(logits in base 2, slopes) of inner products or of squared distances > 0.

    A slope is the factor of the logit's derivative by the embedding besides the difference (or class) and a constant.
    """
    if DISTANCE == _COSINE:
        logits, slopes = scores * temperature + bias, 1.0
    elif DISTANCE == _EUCLIDEAN:
        slopes = tl.rsqrt(scores)
        logits = bias - scores * slopes * temperature
    else:
        logits, slopes = bias - scores * temperature, 1.0
    return logits, slopes


@triton.jit
def own_logits(o_PD, e_PD, bias_P, temperature, DISTANCE: tl.constexpr):
    """(logits, slopes) of one class embedding ``e_PD`` of each pixel, see :func:`_logits`, and the differences (P, D)."""
    if DISTANCE == _COSINE:
        gap_PD = -e_PD
        score_P = tl.sum(o_PD * e_PD, 1)
    else:
        gap_PD = o_PD - e_PD
        score_P = tl.maximum(tl.sum(gap_PD * gap_PD, 1), _TINY)
    logit_P, slope_P = _logits(score_P, bias_P, temperature, DISTANCE)
    return logit_P, slope_P, gap_PD


@triton.jit
def _limit(norms, NEAR: tl.constexpr):
    """The squared distances up to which a pair counts as close; less than FAR, which marks those that were taken out."""
    return tl.minimum(tl.maximum(NEAR * norms, _TINY), 0.5 * FAR)


@triton.jit
def _join(scores_PC, bias_C, temperature, top_P, others_P, weight_P, sums_PD, DISTANCE: tl.constexpr):
    """One step of the online softmax: all sums rescaled to the new maximum, and the weights (P, C) of this tile's pairs."""
    logits_PC, slopes = _logits(scores_PC, bias_C, temperature, DISTANCE)
    higher_P = tl.maximum(top_P, tl.max(logits_PC, 1))
    fade_P = tl.exp2(top_P - higher_P)
    shares_PC = tl.exp2(logits_PC - higher_P[:, None])
    others_P = others_P * fade_P + tl.sum(shares_PC, 1)
    return higher_P, others_P, weight_P * fade_P, sums_PD * fade_P[:, None], shares_PC * slopes


@triton.jit
def softmax(own_P, top_P, others_P):
    """(losses, log2 of the sums of all exponentials, 1 - p_t, factors of the sums over the other classes), each (P,).

    ``own_P`` are the targets' logits in base 2. The other classes have sums of exponentials ``others_P`` * 2^``top_P``.
    """
    highest = tl.maximum(top_P, own_P)
    scale = tl.exp2(top_P - highest)
    rest = others_P * scale
    total = rest + tl.exp2(own_P - highest)
    t = rest / (2 + rest)  # ln(1 + r) = 2 artanh(r / (2 + r)), which keeps the digits of losses near 0
    s = t * t
    small = 2 * t * (1 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9)))))
    losses = tl.where((own_P >= top_P) & (rest < 0.5), small, _LN_2 * (highest - own_P + tl.log2(total)))
    return losses, highest + tl.log2(total), rest / total, scale / total


@triton.jit
def _sum_of_weights(weight, sums, dims, CHANNELS):
    """The sums of weights (R,): ``weight``, or if points are padded, minus the product with the column of ones at CHANNELS."""
    return weight - tl.sum(tl.where(dims[None, :] == CHANNELS, sums, 0.0), 1)


# fmt: off
@triton.jit
def by_pixel(
    embeddings, labels, weights, classes, norms, bias, masked_bias, unit,  # inputs
    losses, logsums, misses, grad_embeddings,  # outputs
    image_step, channel_step, pixel_step, grad_image_step, grad_channel_step, grad_pixel_step,  # strides
    labels_image_step, labels_pixel_step, weights_image_step, weights_pixel_step, bias_image_step,
    size, count, temperature, factor, ignore_index,  # pixels per image, classes, and settings
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, DISTANCE: tl.constexpr,
    NEAR: tl.constexpr, PRECISION: tl.constexpr, GRADIENTS: tl.constexpr,
):
    # fmt: on
    """Losses (B, N) of a block of pixels; with GRADIENTS also their gradients (B, D, N) and the inputs of by_class."""
    image, first = place(size, PIXELS)
    at_P = first + tl.arange(0, PIXELS)
    inside_P = at_P < size
    dims_D = tl.arange(0, WIDTH)
    label_P = tl.load(labels + image * labels_image_step + at_P * labels_pixel_step, mask=inside_P)
    counted_P = inside_P & (label_P != ignore_index)
    target_P = tl.where(counted_P, label_P, 0).to(tl.int32)

    points_P = embeddings + image * image_step + at_P * pixel_step
    kept_PD = counted_P[:, None] & (dims_D < CHANNELS)[None, :]
    o_PD = tl.load(points_P[:, None] + dims_D[None, :] * channel_step, mask=kept_PD, other=0.0).to(classes.dtype.element_ty)
    wide_PD = o_PD.to(tl.float32)
    own_PD = tl.load(classes + target_P[:, None] * WIDTH + dims_D[None, :], mask=kept_PD, other=0.0).to(tl.float32)
    own_logit_P, _, _ = own_logits(wide_PD, own_PD, tl.load(bias + target_P), temperature, DISTANCE)
    norm_P = tl.sum(wide_PD * wide_PD, 1)
    limit_P = _limit(norm_P, NEAR)

    top_P = tl.full((PIXELS,), -1e38, tl.float32)
    others_P = tl.zeros((PIXELS,), tl.float32)
    weight_P = tl.zeros((PIXELS,), tl.float32)
    sums_PD = tl.zeros((PIXELS, WIDTH), tl.float32)
    stop = tl.where(tl.max(counted_P.to(tl.int32), 0) > 0, count, 0)
    for start in range(0, stop, CLASSES):
        ids_C = start + tl.arange(0, CLASSES)
        known_C = ids_C < count
        lines_C = classes + ids_C * WIDTH
        e_CD = tl.load(lines_C[:, None] + dims_D[None, :], mask=known_C[:, None], other=0.0)
        bias_C = tl.load(masked_bias + image * bias_image_step + ids_C, mask=known_C, other=-FAR)[None, :]
        own_PC = ids_C[None, :] == target_P[:, None]
        scores_PC = tl.dot(o_PD, tl.trans(e_CD), input_precision=PRECISION)
        if DISTANCE == _COSINE:
            scores_PC = tl.where(own_PC, -FAR, scores_PC)
        else:
            norm_C = tl.load(norms + ids_C, mask=known_C, other=FAR)
            scores_PC = tl.where(own_PC, FAR, norm_C[None, :] - 2 * scores_PC + norm_P[:, None])
            while tl.min(tl.min(scores_PC, 1) - limit_P, 0) <= 0:
                close_P = tl.min(tl.where(scores_PC <= limit_P[:, None], ids_C[None, :], count), 1)
                found_P = close_P < count
                scores_PC = tl.where(ids_C[None, :] == close_P[:, None], FAR, scores_PC)
                e_PD = tl.load(
                    classes + close_P[:, None] * WIDTH + dims_D[None, :],
                    mask=found_P[:, None] & (dims_D < CHANNELS)[None, :],
                    other=0.0,
                ).to(tl.float32)
                bias_P = tl.load(masked_bias + image * bias_image_step + close_P, mask=found_P, other=0.0)
                logit_P, slope_P, difference_PD = own_logits(wide_PD, e_PD, bias_P, temperature, DISTANCE)
                logit_P = tl.where(found_P, logit_P, -FAR)
                higher_P = tl.maximum(top_P, logit_P)
                fade_P, share_P = tl.exp2(top_P - higher_P), tl.exp2(logit_P - higher_P)
                top_P, others_P, weight_P = higher_P, others_P * fade_P + share_P, weight_P * fade_P
                if GRADIENTS:
                    sums_PD = sums_PD * fade_P[:, None] + (share_P * slope_P)[:, None] * difference_PD
        top_P, others_P, weight_P, sums_PD, pulls_PC = _join(
            scores_PC, bias_C, temperature, top_P, others_P, weight_P, sums_PD, DISTANCE
        )
        if GRADIENTS:
            rounded_PC = pulls_PC.to(e_CD.dtype)
            if CHANNELS == WIDTH:
                weight_P += tl.sum(rounded_PC.to(tl.float32), 1)
            # Not +=, which would become a sum inside the tensor cores, and they truncate it at every step.
            sums_PD -= tl.dot(rounded_PC, e_CD, input_precision=PRECISION)

    loss_P, logsum_P, miss_P, scale_P = softmax(own_logit_P, top_P, others_P)
    index_P = image * size + at_P
    tl.store(losses + index_P, tl.where(counted_P, loss_P, 0.0), mask=inside_P)
    if GRADIENTS:
        upstream_P = tl.load(weights + image * weights_image_step + at_P * weights_pixel_step, mask=counted_P, other=0.0)
        part_P = tl.abs(upstream_P) / tl.load(unit)
        tl.store(logsums + index_P, tl.where(part_P > 0, logsum_P - tl.log2(part_P), float("inf")), mask=inside_P)
        tl.store(misses + index_P, miss_P * part_P, mask=inside_P)
        if DISTANCE != _COSINE:
            sums_PD += wide_PD * _sum_of_weights(weight_P, sums_PD, dims_D, CHANNELS)[:, None]
        # Compared again: kept through the loop, the differences would take registers that it needs.
        own_PD = tl.load(classes + target_P[:, None] * WIDTH + dims_D[None, :], mask=kept_PD, other=0.0).to(tl.float32)
        _, own_slope_P, gap_PD = own_logits(wide_PD, own_PD, 0.0, temperature, DISTANCE)
        grad_PD = scale_P[:, None] * sums_PD - (miss_P * own_slope_P)[:, None] * gap_PD
        grad_PD = tl.where(counted_P[:, None], (factor * upstream_P)[:, None] * grad_PD, 0.0)
        lines_P = grad_embeddings + image * grad_image_step + at_P * grad_pixel_step
        inside_PD = inside_P[:, None] & (dims_D < CHANNELS)[None, :]
        grad_PD = grad_PD.to(grad_embeddings.dtype.element_ty)
        tl.store(lines_P[:, None] + dims_D[None, :] * grad_channel_step, grad_PD, mask=inside_PD)


@triton.jit
def _shares(scores_CP, bias_C, temperature, ids_C, label_P, miss_P, logsum_P, DISTANCE: tl.constexpr):
    """(shares, slopes): |weight| / unit * (s_pc - [c = t]) of each pair, (C, P), and the slopes of :func:`_logits`."""
    logits_CP, slopes = _logits(scores_CP, bias_C, temperature, DISTANCE)
    own_CP = (ids_C[:, None] == label_P[None, :]) & (scores_CP < FAR)
    return tl.where(own_CP, -miss_P[None, :], tl.exp2(logits_CP - logsum_P[None, :])), slopes


# fmt: off
@triton.jit
def by_class(
    embeddings, labels, weights, classes, norms, masked_bias, logsums, misses,  # inputs
    grad_classes, grad_bias,  # outputs
    image_step, channel_step, pixel_step,  # strides
    labels_image_step, labels_pixel_step, weights_image_step, weights_pixel_step, bias_image_step,
    size, count, temperature, factor, blocks, per_image, share,  # pixels per image, classes, settings, blocks of pixels
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, DISTANCE: tl.constexpr,
    NEAR: tl.constexpr, PRECISION: tl.constexpr, BIAS: tl.constexpr,
):
    # fmt: on
    """Gradients of a block of classes, summed over ``share`` of all ``blocks`` of pixels: (parts, C, D), and (parts, C)."""
    ids_C = tl.program_id(0) * CLASSES + tl.arange(0, CLASSES)
    known_C = ids_C < count
    dims_D = tl.arange(0, WIDTH)
    lines_C = classes + ids_C * WIDTH
    e_CD = tl.load(lines_C[:, None] + dims_D[None, :], mask=known_C[:, None] & (dims_D != CHANNELS)[None, :], other=0.0)
    norm_C = tl.load(norms + ids_C, mask=known_C, other=FAR)
    limit_C = _limit(norm_C, NEAR)
    sums_CD = tl.zeros((CLASSES, WIDTH), tl.float32)
    weight_C = tl.zeros((CLASSES,), tl.float32)
    slope_C = tl.zeros((CLASSES,), tl.float32)
    first = tl.program_id(1) * share
    for block in range(first, tl.minimum(first + share, blocks)):
        image = (block // per_image).to(tl.int64)
        at_P = block % per_image * PIXELS + tl.arange(0, PIXELS)
        inside_P = at_P < size
        index_P = image * size + at_P
        logsum_P = tl.load(logsums + index_P, mask=inside_P, other=float("inf"))
        counted_P = logsum_P < float("inf")
        miss_P = tl.load(misses + index_P, mask=inside_P, other=0.0)
        label_P = tl.load(labels + image * labels_image_step + at_P * labels_pixel_step, mask=counted_P, other=0).to(tl.int32)
        upstream_P = tl.load(weights + image * weights_image_step + at_P * weights_pixel_step, mask=counted_P, other=0.0)
        sign_P = tl.where(upstream_P < 0, -1.0, 1.0)
        bias_C = tl.load(masked_bias + image * bias_image_step + ids_C, mask=known_C, other=-FAR)[:, None]
        points_P = embeddings + image * image_step + at_P * pixel_step
        kept_DP = (dims_D < CHANNELS)[:, None] & counted_P[None, :]
        o_DP = tl.load(points_P[None, :] + dims_D[:, None] * channel_step, mask=kept_DP, other=0.0).to(e_CD.dtype)
        scores_CP = tl.dot(e_CD, o_DP, input_precision=PRECISION)
        if DISTANCE != _COSINE:
            wide_DP = o_DP.to(tl.float32)
            scores_CP = norm_C[:, None] - 2 * scores_CP + tl.sum(wide_DP * wide_DP, 0)[None, :]
            while tl.min(tl.min(scores_CP, 1) - limit_C, 0) <= 0:
                close_P = tl.min(tl.where(scores_CP <= limit_C[:, None], ids_C[:, None], count), 0)
                found_P = close_P < count
                close_CP = ids_C[:, None] == close_P[None, :]
                scores_CP = tl.where(close_CP, FAR, scores_CP)
                e_DP = tl.load(
                    classes + close_P[None, :] * WIDTH + dims_D[:, None],
                    mask=found_P[None, :] & (dims_D < CHANNELS)[:, None],
                    other=0.0,
                )
                difference_DP = e_DP.to(tl.float32) - wide_DP
                score_P = tl.maximum(tl.sum(difference_DP * difference_DP, 0), _TINY)
                own_bias_P = tl.load(masked_bias + image * bias_image_step + close_P, mask=found_P, other=0.0)
                logit_P, slope_P = _logits(score_P, own_bias_P, temperature, DISTANCE)
                share_P = tl.where(close_P == label_P, -miss_P, tl.exp2(logit_P - logsum_P)) * sign_P
                share_P = tl.where(found_P, share_P, 0.0)
                pulls_DP = (share_P * slope_P)[None, :] * difference_DP
                sums_CD += tl.dot(close_CP.to(tl.float32), tl.trans(pulls_DP), input_precision=PRECISION)
                if BIAS:
                    slope_C += tl.sum(tl.where(close_CP, share_P[None, :], 0.0), 1)
        shares_CP, slopes = _shares(scores_CP, bias_C, temperature, ids_C, label_P, miss_P, logsum_P, DISTANCE)
        signed_DP = tl.where(dims_D[:, None] == CHANNELS, 1.0, o_DP.to(tl.float32)) * sign_P[None, :]
        rounded_CP = (shares_CP * slopes).to(e_CD.dtype)
        if CHANNELS == WIDTH:
            weight_C += tl.sum(rounded_CP.to(tl.float32) * sign_P[None, :], 1)
        sums_CD -= tl.dot(rounded_CP, tl.trans(signed_DP.to(e_CD.dtype)), input_precision=PRECISION)
        if BIAS:
            slope_C += tl.sum(shares_CP * sign_P[None, :], 1)

    if DISTANCE != _COSINE:
        sums_CD += e_CD.to(tl.float32) * _sum_of_weights(weight_C, sums_CD, dims_D, CHANNELS)[:, None]
    part_C = tl.program_id(1) * count + ids_C
    kept_CD = known_C[:, None] & (dims_D < CHANNELS)[None, :]
    tl.store(grad_classes + part_C[:, None] * CHANNELS + dims_D[None, :], factor * sums_CD, mask=kept_CD)
    if BIAS:
        tl.store(grad_bias + part_C, slope_C, mask=known_C)
