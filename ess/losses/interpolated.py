"""The dense cross entropy over logits that are interpolated from a coarser resolution, as decoders give them."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ess.losses.cross_entropy import as_labels, dense_cross_entropy
from ess.losses.fused import BACKENDS

_MOST = 2**31 - 1
"""The most logits that PyTorch interpolates at once on a GPU if their channels are last in memory; more take several turns."""

Fused = tuple[torch.Tensor, np.ndarray | None]
"""A sum of losses, and its gradient."""


def interpolated_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    extent: tuple[int, int] | None = None,
    ignore_index: int = -1,
    reduction: str = "mean",
    backend: str = "auto",
    validate: bool = True,
) -> torch.Tensor:
    """The loss of :func:`ess.losses.cross_entropy.dense_cross_entropy` over logits at full resolution, from coarser ones.

    ``logits`` (B, C, h, w) floating with C >= 2, ``labels`` (B, H, W) integer, 0..C-1 or ``ignore_index``. The logits cover an
    area of ``extent`` pixels (height, width), which is larger than H x W if images were padded at the bottom and the right; by
    default both are the same. ``reduction`` is "mean" over the labelled pixels, or "sum".

    ``backend`` "fused" computes value and gradient in one pass with a compiled kernel (CPU, float32), whose memory does not
    depend on the number of pixels; "torch" resizes the logits; "auto" is "fused" if that is possible. Raises ValueError if an
    argument does not fit.
    """
    extent = extent or (labels.shape[-2], labels.shape[-1])
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction is {reduction!r}: expected mean or sum")
    check_sizes(logits, labels, extent)
    able = logits.device.type == "cpu" and logits.dtype == torch.float32
    if backend == "fused" and not able:
        raise ValueError(f"backend is 'fused': no kernel for {logits.dtype} on {logits.device}; expected float32 on cpu")
    if not able or backend == "torch":
        total = logits.new_zeros(())
        at_once = max(1, _MOST // (logits.shape[1] * math.prod(extent)))
        for part, labels_of_part in zip(logits.split(at_once), labels.split(at_once), strict=True):
            whole = F.interpolate(part, size=extent, mode="bilinear", align_corners=False)
            whole = whole[:, :, : labels.shape[1], : labels.shape[2]]
            total = total + dense_cross_entropy(
                whole, labels_of_part, ignore_index=ignore_index, reduction="sum", validate=validate
            )
    else:
        total = _summed(logits, as_labels(labels, logits.shape[1], ignore_index, validate), extent, ignore_index)
    return total / (labels != ignore_index).sum().clamp_min(1) if reduction == "mean" else total


def check_sizes(logits: torch.Tensor, labels: torch.Tensor, extent: tuple[int, int]) -> None:
    """Raise ValueError unless the logits are (B, C, h, w) and the labels (B, H, W), which lie within the extent."""
    if logits.ndim != 4 or labels.ndim != 3 or len(labels) != len(logits):
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}: expected (B, C, h, w) and (B, H, W)")
    if extent[0] < labels.shape[1] or extent[1] < labels.shape[2]:
        raise ValueError(f"extent is {extent}: expected at least {tuple(labels.shape[1:])}, the size of the labels")


@torch.compiler.disable
def _summed(logits: torch.Tensor, labels: torch.Tensor, extent: tuple[int, int], ignore_index: int) -> torch.Tensor:
    return Summed.apply(logits, _fused, labels, extent, ignore_index)


def _fused(grid: np.ndarray, labels: torch.Tensor, extent: tuple[int, int], ignore_index: int, **options: Any) -> Fused:
    from ess.kernels.interpolated_cpu import interpolated  # imported late: numba is slow to import

    found = interpolated(grid, labels.numpy(), extent, ignore_index=ignore_index, **options)
    return torch.from_numpy(found.losses).sum(dtype=torch.float64).float(), found.grid


class Summed(torch.autograd.Function):
    """The sum of the losses, or of those of each image, by a compiled kernel; the forward pass computes the gradient too.

    ``kernel(grid, *arguments, gradient=, threads=)`` takes the logits as (B, h, w, C), and returns the sum, () or (B,), and its
    gradient by the grid or None.
    """

    @staticmethod
    def forward(ctx, logits, kernel, *arguments):
        grid = logits.detach().permute(0, 2, 3, 1).contiguous().numpy()
        total, gradient = kernel(grid, *arguments, gradient=ctx.needs_input_grad[0], threads=torch.get_num_threads())
        if gradient is not None:
            ctx.save_for_backward(torch.from_numpy(gradient).permute(0, 3, 1, 2))
        ctx.others = 1 + len(arguments)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream.view(-1, 1, 1, 1), *[None] * ctx.others
