"""The Triton kernels of ``ess.kernels.gpu.exact``: cross entropy over all classes, value and gradients.

Two kernels visit each pair of a pixel and a class once:

- :func:`by_pixel` holds a block of pixels and loops over the classes with an online softmax. It writes the losses and the
  gradients of the embeddings, which need no second pass: the factor that a pixel's classes share is applied at the end.
- :func:`by_class` holds a block of classes and loops over the pixels, whose softmax sums are known by then. It writes the
  gradients of the class embeddings, which it sums in registers.

Products are made by tensor cores, of float16 numbers. An embedding of float32 is the sum of a ``high`` and a ``low`` one, which
keep 22 of its 24 bits if it is first divided by a power of two near its norm; a product of two takes three. Shorter types
need no low part. Squared distances are |o|^2 - 2 <o, e> + |e|^2. The pairs for which this cancels are near; they are taken
out of their tile and computed from differences o - e, one pair of each pixel at a time. This takes long, but happens in few
tiles, because the target is not among them: it is always compared by differences, and left out of the sums over the other
classes, so that small losses keep their digits.

What targets and near pairs add to the gradients of classes is added by integers, whose sum does not depend on the order, as in
``ess.kernels.gpu.sums``. So equal inputs give equal bits.

The weights of the pairs in the gradient are rounded to float16 and are the left factor of the next product. As both terms of
the sum of w (o - e) = o (sum of w) - (sum of w e) get the same rounded weights, what remains is a relative error of at most
2^-11 in each weight. They are multiplied by a power of two near the norm of what the program holds, to fit into float16.

With s_pc = softmax(z)_pc, the gradients are dL_p/do_p = sum over c of (s_pc - [c = t]) dz_pc/do_p with dz/do = -T (o - e) / d,
-2 T (o - e) or T e.

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
_NEAR = tl.constexpr(0.005)
"""The share of a squared norm below which a squared distance is computed from differences: 1e-4 of it would be noise."""
_BOOST = tl.constexpr(2.0**11)
"""A factor of weights; without it, those of pairs that are not near are at most 1 / sqrt(0.005)."""
_SMALL = tl.constexpr(2.0**-8)
"""A norm counts as at least this share of the largest one on the other side."""


@triton.jit
def place(size, AT_ONCE: tl.constexpr):
    """(image, first pixel) of this program in a grid that visits ``size`` pixels of each image, ``AT_ONCE`` at a time.

    The grid has one dimension, because CUDA allows at most 65,535 programs in the others.
    """
    blocks = tl.cdiv(size, AT_ONCE)
    return (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * AT_ONCE


@triton.jit
def scale_of(squared_norms, other):
    """The powers of two just below norms, or below a small share of ``other``, the largest norm on the other side."""
    norms = tl.maximum(tl.maximum(tl.sqrt(squared_norms), other * _SMALL), _TINY)
    return (norms.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _limit(scale):
    """The squared distances up to which a pair counts as near; less than FAR, which marks those that were taken out."""
    return tl.minimum(tl.maximum(scale * scale * _NEAR, _TINY), 0.5 * FAR)


@triton.jit
def part_of(numbers):
    """(high, low): float16 numbers whose sum has 22 bits of float32 ``numbers`` of about 1."""
    high = numbers.to(tl.float16)
    return high, (numbers - high.to(tl.float32)).to(tl.float16)


@triton.jit
def product(left_high, left_low, right_high, right_low, SPLIT: tl.constexpr):
    """The product of two matrices, small terms first; that of the low parts would be lost in rounding."""
    if SPLIT:
        found = tl.dot(left_low, right_high, tl.dot(left_high, right_low))
        found = tl.dot(left_high, right_high, found)
    else:
        found = tl.dot(left_high, right_high)
    return found


@triton.jit
def _weighted(weights, high, low, SPLIT: tl.constexpr):
    """The product of float16 ``weights`` and embeddings.

    It is added to earlier ones by its caller, not by the tensor cores, which would truncate the sum at every step.
    """
    return tl.dot(weights, high, tl.dot(weights, low)) if SPLIT else tl.dot(weights, high)


@triton.jit
def _logits(scores, temperature, DISTANCE: tl.constexpr):
    """(logits in base 2, slopes) of negative inner products or of squared distances > 0.

    A slope is the factor of the logit's derivative by the embedding besides the difference (or class) and a constant.
    """
    if DISTANCE == _EUCLIDEAN:
        slopes = tl.rsqrt(scores)
        logits = -scores * slopes * temperature
    else:
        logits, slopes = -scores * temperature, 1.0
    return logits, slopes


@triton.jit
def own_logits(o_PD, e_PD, bias_P, temperature, DISTANCE: tl.constexpr):
    """(logits, slopes) of one class embedding ``e_PD`` of each pixel, see :func:`_logits`, and the differences (P, D)."""
    if DISTANCE == _COSINE:
        gap_PD = -e_PD
        score_P = tl.sum(o_PD * gap_PD, 1)
    else:
        gap_PD = o_PD - e_PD
        score_P = tl.maximum(tl.sum(gap_PD * gap_PD, 1), _TINY)
    logit_P, slope_P = _logits(score_P, temperature, DISTANCE)
    return logit_P + bias_P, slope_P, gap_PD


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


# fmt: off
@triton.jit
def add(sums, moves_PD, id_P, kept_PD, dims_D, steps, COLUMNS: tl.constexpr):
    # fmt: on
    """Add ``moves_PD`` * ``steps``, as integers, to the ``sums`` (C, COLUMNS) of the classes ``id_P``."""
    places_PD = sums + id_P[:, None] * COLUMNS + dims_D[None, :]
    tl.atomic_add(places_PD, (moves_PD * steps).to(tl.int64), mask=kept_PD, sem="relaxed")


@triton.jit
def _column(sums, dims, CHANNELS):
    """The column CHANNELS of ``sums`` (R, D), in which ones were summed."""
    return tl.sum(tl.where(dims[None, :] == CHANNELS, sums, 0.0), 1)


# fmt: off
@triton.jit
def by_pixel(
    embeddings, labels, weights, classes, high, low, norms, largest, bias, masked_bias, unit, steps,  # inputs
    losses, logsums, grad_embeddings, sums, largest_pixel,  # outputs
    image_step, channel_step, pixel_step, grad_image_step, grad_channel_step, grad_pixel_step,  # strides
    labels_image_step, labels_pixel_step, weights_image_step, weights_pixel_step, bias_image_step,
    size, count, temperature, factor, ignore_index, copies,  # pixels per image, classes, settings, copies of the sums
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, DISTANCE: tl.constexpr,
    SPLIT: tl.constexpr, BIASED: tl.constexpr, BIAS: tl.constexpr, GRADIENTS: tl.constexpr,
):
    # fmt: on
    """Losses (B, N) of a block of pixels; with GRADIENTS also their gradients (B, D, N) and the inputs of by_class."""
    image, first = place(size, PIXELS)
    at_P = first + tl.arange(0, PIXELS)
    inside_P = at_P < size
    dims_D = tl.arange(0, WIDTH)
    label_P = tl.load(labels + image * labels_image_step + at_P * labels_pixel_step, mask=inside_P)
    counted_P = inside_P & (label_P != ignore_index)
    target_P = tl.where(counted_P, label_P.to(tl.int32), -1)
    highest_target = tl.max(target_P, 0)
    lowest_target = tl.min(tl.where(counted_P, target_P, count), 0)

    places_PD = embeddings + image * image_step + at_P[:, None] * pixel_step + dims_D[None, :] * channel_step
    kept_PD = counted_P[:, None] & (dims_D < CHANNELS)[None, :]
    own_places_PD = classes + target_P[:, None] * WIDTH + dims_D[None, :]
    o_PD = tl.load(places_PD, mask=kept_PD, other=0.0).to(tl.float32)
    own_PD = tl.load(own_places_PD, mask=kept_PD, other=0.0)
    own_bias_P = tl.load(bias + target_P, mask=counted_P, other=0.0)
    own_logit_P, _, _ = own_logits(o_PD, own_PD, own_bias_P, temperature, DISTANCE)
    norm_P = tl.sum(o_PD * o_PD, 1)
    most = tl.load(largest)
    scale_P = scale_of(norm_P, most)
    high_PD, low_PD = part_of(o_PD / scale_P[:, None])
    back_P = most * scale_P * (-1.0 if DISTANCE == _COSINE else -2.0)
    limit_P = _limit(scale_P)
    base_P = tl.where(counted_P, norm_P, FAR)  # an ignored pixel is not near any class
    unit_P = (scale_P if DISTANCE == _EUCLIDEAN else tl.full((PIXELS,), 1.0, tl.float32)) * _BOOST

    top_P = tl.full((PIXELS,), -1e38, tl.float32)
    others_P = tl.zeros((PIXELS,), tl.float32)
    weight_P = tl.zeros((PIXELS,), tl.float32)
    sums_PD = tl.zeros((PIXELS, WIDTH), tl.float32)
    stop = tl.where(highest_target >= 0, count, 0)
    for start in range(0, stop, CLASSES):
        ids_C = start + tl.arange(0, CLASSES)
        known_C = ids_C < count
        places_CD = ids_C[:, None] * WIDTH + dims_D[None, :]
        high_CD = tl.load(high + places_CD, mask=known_C[:, None], other=0.0)
        low_CD = tl.load(low + places_CD, mask=known_C[:, None], other=0.0)
        product_PC = product(high_PD, low_PD, tl.trans(high_CD), tl.trans(low_CD), SPLIT)
        if DISTANCE == _COSINE:
            scores_PC = product_PC * back_P[:, None]
            scores_PC = tl.where(known_C[None, :], scores_PC, FAR)
        else:
            norm_C = tl.load(norms + ids_C, mask=known_C, other=FAR)
            scores_PC = product_PC * back_P[:, None] + (norm_C[None, :] + base_P[:, None])
        if (start <= highest_target) & (lowest_target < start + CLASSES):
            scores_PC = tl.where(ids_C[None, :] == target_P[:, None], FAR, scores_PC)
        if DISTANCE != _COSINE:
            while tl.min(tl.min(scores_PC, 1) - limit_P, 0) <= 0:
                id_P = tl.min(tl.where(scores_PC <= limit_P[:, None], ids_C[None, :], count), 1)
                scores_PC = tl.where(ids_C[None, :] == id_P[:, None], FAR, scores_PC)
                found_P = id_P < count
                found_PD = found_P[:, None] & (dims_D < CHANNELS)[None, :]
                point_PD = tl.load(places_PD, mask=found_PD, other=0.0).to(tl.float32)
                e_PD = tl.load(classes + id_P[:, None] * WIDTH + dims_D[None, :], mask=found_PD, other=0.0)
                bias_P = tl.load(masked_bias + image * bias_image_step + id_P, mask=found_P, other=0.0)
                logit_P, slope_P, gap_PD = own_logits(point_PD, e_PD, bias_P, temperature, DISTANCE)
                logit_P = tl.where(found_P, logit_P, -FAR)
                higher_P = tl.maximum(top_P, logit_P)
                fade_P, share_P = tl.exp2(top_P - higher_P), tl.exp2(logit_P - higher_P)
                top_P, others_P, weight_P = higher_P, others_P * fade_P + share_P, weight_P * fade_P
                if GRADIENTS:
                    sums_PD = sums_PD * fade_P[:, None] - (share_P * slope_P * unit_P / most)[:, None] * gap_PD
        logits_PC, slopes = _logits(scores_PC, temperature, DISTANCE)
        if BIASED:
            logits_PC += tl.load(masked_bias + image * bias_image_step + ids_C, mask=known_C, other=-FAR)[None, :]
            higher_P = tl.maximum(top_P, tl.max(logits_PC, 1))
        else:
            nearest_logit_P = _logits(tl.min(scores_PC, 1), temperature, DISTANCE)[0]
            higher_P = tl.maximum(top_P, nearest_logit_P)
        fade_P = tl.exp2(top_P - higher_P)
        shares_PC = tl.exp2(logits_PC - higher_P[:, None])
        others_P = others_P * fade_P + tl.sum(shares_PC, 1)
        top_P = higher_P
        if GRADIENTS:
            rounded_PC = (shares_PC * (slopes * unit_P[:, None])).to(tl.float16)
            if CHANNELS == WIDTH:
                weight_P = weight_P * fade_P + tl.sum(rounded_PC.to(tl.float32), 1)
            sums_PD *= fade_P[:, None]
            sums_PD += _weighted(rounded_PC, high_CD, low_CD, SPLIT)

    loss_P, logsum_P, miss_P, share_P = softmax(own_logit_P, top_P, others_P)
    index_P = image * size + at_P
    tl.store(losses + index_P, tl.where(counted_P, loss_P, 0.0), mask=inside_P)
    if GRADIENTS:
        upstream_P = tl.load(weights + image * weights_image_step + at_P * weights_pixel_step, mask=counted_P, other=0.0)
        part_P = tl.abs(upstream_P) / tl.load(unit)
        # Loaded and compared again: kept through the loop, they would take registers that it needs.
        o_PD = tl.load(places_PD, mask=kept_PD, other=0.0).to(tl.float32)
        own_PD = tl.load(own_places_PD, mask=kept_PD, other=0.0)
        _, own_slope_P, gap_PD = own_logits(o_PD, own_PD, 0.0, temperature, DISTANCE)
        pull_P = miss_P * own_slope_P
        tl.store(logsums + index_P, tl.where(part_P > 0, logsum_P - tl.log2(part_P), float("inf")), mask=inside_P)
        tl.atomic_max(largest_pixel, tl.max(norm_P, 0).to(tl.int32, bitcast=True), sem="relaxed")

        sign_P = tl.where(upstream_P < 0, -part_P, part_P)
        moves_PD = (sign_P * pull_P)[:, None] * (o_PD if DISTANCE == _COSINE else gap_PD)
        moves_PD = tl.where(counted_P[:, None], moves_PD, 0.0)
        step = tl.load(steps)
        sums += (tl.program_id(0) % copies).to(tl.int64) * count * (CHANNELS + BIAS)
        if lowest_target == highest_target:
            moved_D = (tl.sum(moves_PD, 0) * step).to(tl.int64)
            places_D = sums + highest_target * (CHANNELS + BIAS) + dims_D
            tl.atomic_add(places_D, moved_D, mask=dims_D < CHANNELS, sem="relaxed")
        else:
            add(sums, moves_PD, target_P, kept_PD, dims_D, step, CHANNELS + BIAS)
        if BIAS:
            places_P = sums + target_P * (CHANNELS + BIAS) + CHANNELS
            tl.atomic_add(places_P, (-sign_P * miss_P * step).to(tl.int64), mask=counted_P, sem="relaxed")

        grad_PD = -most * sums_PD
        if DISTANCE != _COSINE:
            if CHANNELS != WIDTH:
                weight_P = _column(sums_PD, dims_D, CHANNELS)
            grad_PD += o_PD * weight_P[:, None]
        grad_PD = (share_P / unit_P)[:, None] * grad_PD - pull_P[:, None] * gap_PD
        grad_PD = tl.where(counted_P[:, None], (factor * upstream_P)[:, None] * grad_PD, 0.0)
        lines_P = grad_embeddings + image * grad_image_step + at_P * grad_pixel_step
        inside_PD = inside_P[:, None] & (dims_D < CHANNELS)[None, :]
        grad_PD = grad_PD.to(grad_embeddings.dtype.element_ty)
        tl.store(lines_P[:, None] + dims_D[None, :] * grad_channel_step, grad_PD, mask=inside_PD)


# fmt: off
@triton.jit
def by_class(
    embeddings, labels, weights, classes, high, low, norms, largest, masked_bias, logsums, largest_pixel, steps,  # inputs
    grad_classes, grad_bias, sums,  # outputs
    image_step, channel_step, pixel_step,  # strides
    labels_image_step, labels_pixel_step, weights_image_step, weights_pixel_step, bias_image_step,
    size, count, temperature, blocks, per_image, share, copies,  # pixels per image, classes, blocks of pixels, copies of sums
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, CLASSES: tl.constexpr, DISTANCE: tl.constexpr,
    SPLIT: tl.constexpr, BIASED: tl.constexpr, BIAS: tl.constexpr,
):
    # fmt: on
    """Gradients of a block of classes, summed over ``share`` of all ``blocks`` of pixels: (parts, C, D), and (parts, C)."""
    first_id = tl.program_id(0) * CLASSES
    ids_C = first_id + tl.arange(0, CLASSES)
    known_C = ids_C < count
    dims_D = tl.arange(0, WIDTH)
    places_CD = ids_C[:, None] * WIDTH + dims_D[None, :]
    kept_CD = known_C[:, None] & (dims_D < CHANNELS)[None, :]
    high_CD = tl.load(high + places_CD, mask=kept_CD, other=0.0)
    low_CD = tl.load(low + places_CD, mask=kept_CD, other=0.0)
    norm_C = tl.load(norms + ids_C, mask=known_C, other=FAR)
    most = tl.load(largest)
    scale = scale_of(tl.load(largest_pixel).to(tl.float32, bitcast=True), 0.0)  # of all pixels
    scale_C = scale_of(tl.where(known_C, norm_C, 0.0), scale)
    limit_C = _limit(scale_C)
    unit_C = (scale_C if DISTANCE == _EUCLIDEAN else tl.full((CLASSES,), 1.0, tl.float32)) * _BOOST
    sums_CD = tl.zeros((CLASSES, WIDTH), tl.float32)
    weight_C = tl.zeros((CLASSES,), tl.float32)
    slope_C = tl.zeros((CLASSES,), tl.float32)
    step = tl.load(steps)
    copy = (tl.program_id(1) % copies).to(tl.int64) * count * (CHANNELS + BIAS)
    first = tl.program_id(1) * share
    for block in range(first, tl.minimum(first + share, blocks)):
        image = (block // per_image).to(tl.int64)
        at_P = block % per_image * PIXELS + tl.arange(0, PIXELS)
        inside_P = at_P < size
        index_P = image * size + at_P
        logsum_P = tl.load(logsums + index_P, mask=inside_P, other=float("inf"))
        counted_P = logsum_P < float("inf")
        label_P = tl.load(labels + image * labels_image_step + at_P * labels_pixel_step, mask=counted_P, other=0)
        label_P = tl.where(counted_P, label_P.to(tl.int32), -1)
        upstream_P = tl.load(weights + image * weights_image_step + at_P * weights_pixel_step, mask=counted_P, other=0.0)
        points_P = embeddings + image * image_step + at_P * pixel_step
        places_DP = points_P[None, :] + dims_D[:, None] * channel_step
        kept_DP = (dims_D < CHANNELS)[:, None] & counted_P[None, :]
        o_DP = tl.load(places_DP, mask=kept_DP, other=0.0).to(tl.float32)
        base_P = tl.where(counted_P, tl.sum(o_DP * o_DP, 0), FAR)  # an ignored pixel is not near any class
        high_DP, low_DP = part_of(tl.where(dims_D[:, None] == CHANNELS, 1.0, o_DP / scale))
        product_CP = product(high_CD, low_CD, high_DP, low_DP, SPLIT)
        if DISTANCE == _COSINE:
            scores_CP = -most * scale * product_CP
        else:
            scores_CP = -2 * most * scale * product_CP + (norm_C[:, None] + base_P[None, :])
        targets = tl.max(((label_P >= first_id) & (label_P < first_id + CLASSES)).to(tl.int32), 0) > 0
        if targets:
            scores_CP = tl.where(ids_C[:, None] == label_P[None, :], FAR, scores_CP)
        sign_P = tl.where(upstream_P < 0, -1.0, 1.0)
        if DISTANCE != _COSINE:
            while tl.min(tl.min(scores_CP, 1) - limit_C, 0) <= 0:
                id_P = tl.min(tl.where(scores_CP <= limit_C[:, None], ids_C[:, None], count), 0)
                scores_CP = tl.where(ids_C[:, None] == id_P[None, :], FAR, scores_CP)
                found_P = id_P < count
                places_PD = points_P[:, None] + dims_D[None, :] * channel_step
                found_PD = found_P[:, None] & (dims_D < CHANNELS)[None, :]
                point_PD = tl.load(places_PD, mask=found_PD, other=0.0).to(tl.float32)
                e_PD = tl.load(classes + id_P[:, None] * WIDTH + dims_D[None, :], mask=found_PD, other=0.0)
                bias_P = tl.load(masked_bias + image * bias_image_step + id_P, mask=found_P, other=0.0)
                logit_P, slope_P, gap_PD = own_logits(point_PD, e_PD, bias_P, temperature, DISTANCE)
                share_P = tl.where(found_P, tl.exp2(logit_P - logsum_P) * sign_P, 0.0)
                moves_PD = -(share_P * slope_P)[:, None] * gap_PD
                add(sums + copy, moves_PD, id_P, found_PD, dims_D, step, CHANNELS + BIAS)
                if BIAS:
                    places_P = sums + copy + id_P * (CHANNELS + BIAS) + CHANNELS
                    tl.atomic_add(places_P, (share_P * step).to(tl.int64), mask=found_P, sem="relaxed")
        logits_CP, slopes = _logits(scores_CP, temperature, DISTANCE)
        if BIASED:
            logits_CP += tl.load(masked_bias + image * bias_image_step + ids_C, mask=known_C, other=-FAR)[:, None]
        shares_CP = tl.exp2(logits_CP - logsum_P[None, :])
        if tl.min(upstream_P, 0) < 0:
            shares_CP *= sign_P[None, :]
        if BIAS:
            slope_C += tl.sum(shares_CP, 1)
        rounded_CP = (shares_CP * (slopes * unit_C[:, None])).to(tl.float16)
        if CHANNELS == WIDTH:
            weight_C += tl.sum(rounded_CP.to(tl.float32), 1)
        sums_CD += _weighted(rounded_CP, tl.trans(high_DP), tl.trans(low_DP), SPLIT)

    grad_CD = -scale * sums_CD
    if DISTANCE != _COSINE:
        if CHANNELS != WIDTH:
            weight_C = _column(sums_CD, dims_D, CHANNELS)
        e_CD = tl.load(classes + places_CD, mask=kept_CD, other=0.0)
        grad_CD += e_CD * weight_C[:, None]
    grad_CD /= unit_C[:, None]
    part_C = tl.program_id(1) * count + ids_C
    tl.store(grad_classes + part_C[:, None] * CHANNELS + dims_D[None, :], grad_CD, mask=kept_CD)
    if BIAS:
        tl.store(grad_bias + part_C, slope_C, mask=known_C)
