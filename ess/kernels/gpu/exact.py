"""Cross entropy over all classes on a GPU, value and gradients without a pixels x classes array; in Triton.

``ess.kernels.gpu.exact_kernels`` contains the kernels and explains their method; this module launches them. The reference is
the torch formula in ``ess.losses.cross_entropy``.

The limits of the time: each pair needs one exp2 and, for Euclidean distances, one rsqrt, which serves both the distance d2 *
rsqrt(d2) and the derivative 1 / d. A multiprocessor computes 16 of these per clock; value and gradients need 4 (Euclidean) or 2
per pair, the value alone half as many. For 2.1 million pixels and 1284 classes, 132 multiprocessors at 1.75 GHz therefore take
at least 2.9 or 1.5 ms for the special functions. With Euclidean distances of 12 and 64 channels in float32, the compiler
(Triton 3.8, sm_90) emits 21 and 46 instructions per pair for the first kernel, 27 and 45 for the second, without the loops
over near pairs; at 128 per clock, this is at least 4.4 and 8.3 ms.
"""

import math
from typing import Any, NamedTuple

import torch
import triton

from ess.kernels.gpu.exact_kernels import FAR, by_class, by_pixel
from ess.kernels.gpu.sums import factor_of, integer_sums, step_of
from ess.kernels.gpu.tables import REGISTERS, halves, padded


class Tile(NamedTuple):
    """How many pixels and classes are compared at once, powers of two >= 16; warps per program; pipeline stages of its loop."""

    pixels: int
    classes: int
    warps: int
    stages: int


class Tiles(NamedTuple):
    """The tiles of the two kernels."""

    by_pixel: Tile
    by_class: Tile


_TILES = {
    32: Tiles(Tile(64, 64, 4, 2), Tile(32, 128, 4, 2)),
    64: Tiles(Tile(32, 64, 4, 2), Tile(32, 128, 8, 2)),
    128: Tiles(Tile(32, 64, 8, 2), Tile(32, 64, 8, 2)),
    256: Tiles(Tile(32, 32, 8, 2), Tile(32, 32, 8, 2)),
}
"""The most channels -> the tiles for embeddings with at most so many."""

_WORKSPACE = 64 << 20
"""Bytes for partial sums of class gradients."""

_PROGRAMS = 2048
"""Enough programs to keep any GPU busy."""

_LOG2_E = math.log2(math.e)


class Exact(NamedTuple):
    """The result of :func:`exact`. The gradients are those of the weighted sum of the losses, None unless requested."""

    losses: torch.Tensor
    embeddings: torch.Tensor | None
    classes: torch.Tensor | None
    bias: torch.Tensor | None


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
    float16; they are multiplied with 22 bits if one of them is float32, else with all their bits, and summed in float32.
    ``labels`` (B, N) are of any integer type, ``weights`` (B, N) float32, ``bias`` (C,) floating or None. ``mask`` (B, C) bool
    or None is False for the classes that are left out of the softmax of an image; targets never are. Any strides work, without
    copying pixels, if all numbers of an image are less than 2^31 apart.

    The gradient of the embeddings has their type, except that for float16 it is float32, in which small numbers do not vanish.
    Those of the classes and of the bias are float32. The weights of the pairs in the gradients are rounded to float16, a
    relative error of at most 2^-11; those below 1e-10 of the largest vanish.
    """
    (images, channels, size), count = embeddings.shape, len(classes)
    split = torch.float32 in (embeddings.dtype, classes.dtype)
    tiles, table = _tiles(channels), padded(classes.float())
    norms, largest, high, low = halves(table, channels)
    bias_C = torch.zeros_like(norms) if bias is None else bias.float() * _LOG2_E
    masked_bias = bias_C.expand(images, count)
    masked_bias = masked_bias if mask is None else masked_bias.masked_fill(~mask, -FAR.value)
    losses = norms.new_empty(images, size)
    logsums = torch.empty_like(losses) if gradients else losses
    kept = torch.float32 if embeddings.dtype == torch.float16 else embeddings.dtype
    grad_embeddings = torch.empty_like(embeddings, dtype=kept) if gradients else losses[:, None]
    factor = factor_of(temperature, distance)
    if gradients:
        counted, pairs = (labels != ignore_index).flatten(), 2 * max(1, images * size)
        least = 1e-18 if bias is None else 1.0  # a pixel adds at most 1 to the gradient of a bias
        steps = step_of(embeddings, classes, counted, pairs, distance, least)
        sums = integer_sums(count, channels + (bias is not None), norms.device)
    else:
        steps, sums = norms, norms
    unit = weights.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)  # float16 has no room for 1 / pixels
    common = {
        **{"embeddings": embeddings, "labels": labels, "weights": weights, "classes": table, "high": high, "low": low},
        **{"norms": norms, "largest": largest, "masked_bias": masked_bias},
        **{"logsums": logsums, "sums": sums, "copies": len(sums), "steps": steps},
        "largest_pixel": torch.zeros(1, dtype=torch.int32, device=norms.device),
        **_steps("", "image channel pixel", embeddings),
        **_steps("labels_", "image pixel", labels),
        **_steps("weights_", "image pixel", weights),
        "bias_image_step": masked_bias.stride(0),
        **{"size": size, "count": count, "temperature": temperature * _LOG2_E},
        **{"CHANNELS": channels, "WIDTH": table.shape[1], "DISTANCE": distance, "SPLIT": split},
        **{"BIASED": bias is not None or mask is not None, "BIAS": bias is not None},
        "enable_fp_fusion": True,
    }
    with torch.cuda.device_of(embeddings):
        by_pixel[(triton.cdiv(size, tiles.by_pixel.pixels) * images,)](
            **common,
            **_options(tiles.by_pixel),
            **{"bias": bias_C, "unit": unit, "losses": losses, "grad_embeddings": grad_embeddings},
            **_steps("grad_", "image channel pixel", grad_embeddings),
            factor=factor,
            ignore_index=ignore_index,
            GRADIENTS=gradients,
        )
        if not gradients:
            return Exact(losses, None, None, None)
        grad_classes, grad_bias = _class_gradients(common, tiles.by_class, (images, channels, size, count), bias is not None)
    added = sums.sum(0) / steps.double()
    grad_classes = ((grad_classes + added[:, :channels]) * (unit.double() * factor)).float()
    grad_bias = None if grad_bias is None else ((grad_bias + added[:, channels]) * unit.double()).float()
    return Exact(losses, grad_embeddings, grad_classes, grad_bias)


def _class_gradients(
    common: dict[str, Any], tile: Tile, sizes: tuple[int, int, int, int], biased: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(C, D) and (C,) float32, in units of the largest weight, by :func:`by_class` in as many parts as fit the workspace."""
    images, channels, size, count = sizes
    per_image, tiles = triton.cdiv(size, tile.pixels), triton.cdiv(count, tile.classes)
    blocks = images * per_image
    parts = max(1, min(_PROGRAMS // tiles, _WORKSPACE // (4 * count * (channels + 1)), blocks))
    share = triton.cdiv(blocks, parts)
    parts = triton.cdiv(blocks, share)
    norms = common["norms"]
    grad_classes, grad_bias = norms.new_empty(parts, count, channels), norms.new_empty(parts, count if biased else 0)
    by_class[tiles, parts](
        **common,
        **_options(tile),
        **{"grad_classes": grad_classes, "grad_bias": grad_bias},
        **{"blocks": blocks, "per_image": per_image, "share": share},
    )
    return grad_classes.sum(0), grad_bias.sum(0) if biased else None


def _tiles(channels: int) -> Tiles:
    """The tiles for embeddings with this number of channels."""
    return next(tiles for most, tiles in _TILES.items() if channels <= most)


def _options(tile: Tile) -> dict[str, int]:
    """A tile as arguments of a launch."""
    compilation = {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": REGISTERS}
    return {"PIXELS": tile.pixels, "CLASSES": tile.classes} | compilation


def _steps(prefix: str, axes: str, tensor: torch.Tensor) -> dict[str, int]:
    """The strides of a tensor as arguments of a kernel: {"labels_image_step": 4096, ...}."""
    return {f"{prefix}{axis}_step": step for axis, step in zip(axes.split(), tensor.stride(), strict=True)}
