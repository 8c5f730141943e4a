"""Cross entropy of pixels over a few candidate classes each, on a GPU, in Triton; ``ess.kernels.candidates_cpu`` for GPUs.

A program holds a block of pixels and visits their candidates one after another, each of which is a row of the table of class
embeddings that the first-level cache keeps. Nothing is stored per pair of pixel and candidate. The gradients need the
candidates twice: once for the softmax and the gradient of the pixel, once for those of the classes.

Many pixels add to the gradient of one class; ``ess.kernels.gpu.sums`` explains how.

The reference is the torch formula in ``ess.losses.cross_entropy``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from ess.kernels.distances import COSINE
from ess.kernels.gpu.exact_kernels import add, own_logits, place, softmax
from ess.kernels.gpu.sums import factor_of, integer_sums, step_of

_COSINE = tl.constexpr(COSINE)

_NUMBERS = 2048
"""The numbers in a block of pixel embeddings: 16 registers of each of 128 threads."""

_LOG2_E = math.log2(math.e)


# fmt: off
@triton.jit
def _compare(o_PD, counted_P, classes, id_P, dims_D, temperature, WIDTH: tl.constexpr, DISTANCE: tl.constexpr):
    # fmt: on
    """(logits in base 2, slopes, differences (P, D)) of one candidate of each pixel, see :func:`own_logits`."""
    e_PD = tl.load(classes + id_P[:, None] * WIDTH + dims_D[None, :], mask=counted_P[:, None], other=0.0)
    return own_logits(o_PD, e_PD, 0.0, temperature, DISTANCE)


# fmt: off
@triton.jit
def by_pixel(
    embeddings, classes, candidates, upstream, unit, scale,  # inputs
    losses, grad_embeddings, sums,  # outputs
    image_step, channel_step, pixel_step, grad_image_step, grad_channel_step, grad_pixel_step,  # strides
    size, count, temperature, factor, copies,  # pixels per image, classes, settings, copies of the sums
    K: tl.constexpr, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr, DISTANCE: tl.constexpr,
    GRADIENTS: tl.constexpr,
):
    # fmt: on
    """The losses (B, N) of a block of pixels, or their gradients: those of the embeddings, and ``sums`` for the classes."""
    image, first = place(size, PIXELS)
    at_P = first + tl.arange(0, PIXELS)
    inside_P = at_P < size
    index_P = image * size + at_P
    dims_D = tl.arange(0, WIDTH)
    lines_P = candidates + index_P * K
    target_P = tl.load(lines_P, mask=inside_P, other=-1)
    counted_P = target_P >= 0
    kept_PD = counted_P[:, None] & (dims_D < CHANNELS)[None, :]
    points_PD = embeddings + image * image_step + at_P[:, None] * pixel_step + dims_D[None, :] * channel_step
    o_PD = tl.load(points_PD, mask=kept_PD, other=0.0).to(tl.float32)
    own_P, own_slope_P, own_gap_PD = _compare(o_PD, counted_P, classes, target_P, dims_D, temperature, WIDTH, DISTANCE)

    top_P = tl.full((PIXELS,), -1e38, tl.float32)
    others_P = tl.zeros((PIXELS,), tl.float32)
    sums_PD = tl.zeros((PIXELS, WIDTH), tl.float32)
    for j in range(1, K):
        id_P = tl.load(lines_P + j, mask=counted_P, other=0)
        logit_P, slope_P, gap_PD = _compare(o_PD, counted_P, classes, id_P, dims_D, temperature, WIDTH, DISTANCE)
        higher_P = tl.maximum(top_P, logit_P)
        fade_P, share_P = tl.exp2(top_P - higher_P), tl.exp2(logit_P - higher_P)
        others_P = others_P * fade_P + share_P
        if GRADIENTS:
            sums_PD = sums_PD * fade_P[:, None] + (share_P * slope_P)[:, None] * gap_PD
        top_P = higher_P
    loss_P, logsum_P, miss_P, scale_P = softmax(own_P, top_P, others_P)
    if not GRADIENTS:
        tl.store(losses + index_P, tl.where(counted_P, loss_P, 0.0), mask=inside_P)
    else:
        upstream_P = tl.load(upstream + index_P, mask=counted_P, other=0.0)
        own_pull_P = miss_P * own_slope_P
        grad_PD = scale_P[:, None] * sums_PD - own_pull_P[:, None] * own_gap_PD
        grad_PD = tl.where(counted_P[:, None], (factor * upstream_P)[:, None] * grad_PD, 0.0)
        places_PD = grad_embeddings + image * grad_image_step + at_P[:, None] * grad_pixel_step
        tl.store(
            places_PD + dims_D[None, :] * grad_channel_step,
            grad_PD.to(grad_embeddings.dtype.element_ty),
            mask=inside_P[:, None] & (dims_D < CHANNELS)[None, :],
        )

        part_P = upstream_P / tl.load(unit)
        steps = tl.load(scale)
        own_sums = sums + (tl.program_id(0) % copies).to(tl.int64) * count * CHANNELS
        moved_PD = o_PD if DISTANCE == _COSINE else own_gap_PD
        add(own_sums, -(part_P * own_pull_P)[:, None] * moved_PD, target_P, kept_PD, dims_D, steps, CHANNELS)
        for j in range(1, K):
            id_P = tl.load(lines_P + j, mask=counted_P, other=0)
            logit_P, slope_P, gap_PD = _compare(o_PD, counted_P, classes, id_P, dims_D, temperature, WIDTH, DISTANCE)
            weight_P = part_P * tl.exp2(logit_P - logsum_P) * slope_P
            moved_PD = o_PD if DISTANCE == _COSINE else gap_PD
            add(own_sums, weight_P[:, None] * moved_PD, id_P, kept_PD, dims_D, steps, CHANNELS)


def losses(
    embeddings: torch.Tensor, classes: torch.Tensor, candidates: torch.Tensor, *, temperature: float, distance: int
) -> torch.Tensor:
    """The losses (B * N,) float32 of all pixels over their ``candidates``, the target first; 0 where the target is negative.

    ``embeddings`` (B, D, N), D <= 256, and ``classes`` (C, D) are of any floating type and compared in float32. ``candidates``
    (B * N, K) are int32. Any strides of the embeddings work as in ``ess.kernels.gpu.exact.exact``, whose logits these are,
    without bias.
    """
    found = torch.empty(len(candidates), device=embeddings.device)
    unused = {"upstream": found, "unit": found, "scale": found, "sums": found, "copies": 1}
    _launch(embeddings, classes, candidates, temperature, distance, found, embeddings, gradients=False, **unused)
    return found


def gradients(
    embeddings: torch.Tensor,
    classes: torch.Tensor,
    candidates: torch.Tensor,
    upstream: torch.Tensor,
    *,
    temperature: float,
    distance: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of sum(upstream * losses) by the embeddings (B, D, N) and the classes (C, D).

    ``upstream`` is (B * N,) float32, and everything else as in :func:`losses`. The gradient of the embeddings has their type,
    except that for float16 it is float32, in which small numbers do not vanish; that of the classes is float32.
    """
    (count, channels), pairs = classes.shape, max(1, candidates.numel())
    kept = torch.float32 if embeddings.dtype == torch.float16 else embeddings.dtype
    moves = torch.empty_like(embeddings, dtype=kept)
    unit = upstream.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    scale = step_of(embeddings, classes, candidates[:, 0] >= 0, pairs, distance)
    sums = integer_sums(count, channels, embeddings.device)
    more = {"upstream": upstream.contiguous(), "unit": unit, "scale": scale, "sums": sums, "copies": len(sums)}
    _launch(embeddings, classes, candidates, temperature, distance, unit, moves, gradients=True, **more)
    return moves, (sums.sum(0) * (unit.double() / scale * -factor_of(temperature, distance))).float()


def _launch(
    embeddings: torch.Tensor,
    classes: torch.Tensor,
    candidates: torch.Tensor,
    temperature: float,
    distance: int,
    losses: torch.Tensor,
    moves: torch.Tensor,
    *,
    gradients: bool,
    **more: Any,
) -> None:
    """Run the kernel, which writes either ``losses`` or the other gradients and ``moves``, those of the embeddings."""
    images, channels, size = embeddings.shape
    width = max(16, triton.next_power_of_2(channels))
    pixels = _NUMBERS // width
    steps = {
        f"{prefix}{axis}_step": step
        for prefix, tensor in (("", embeddings), ("grad_", moves))
        for axis, step in zip(("image", "channel", "pixel"), tensor.stride(), strict=True)
    }
    with torch.cuda.device_of(embeddings):
        by_pixel[(triton.cdiv(size, pixels) * images,)](
            embeddings=embeddings,
            classes=F.pad(classes.float(), (0, width - channels)).contiguous(),
            candidates=candidates.contiguous(),
            losses=losses,
            grad_embeddings=moves,
            **steps,
            **more,
            size=size,
            count=len(classes),
            temperature=temperature * _LOG2_E,
            factor=factor_of(temperature, distance),
            K=candidates.shape[1],
            CHANNELS=channels,
            WIDTH=width,
            PIXELS=pixels,
            DISTANCE=distance,
            GRADIENTS=gradients,
            enable_fp_fusion=True,
        )
