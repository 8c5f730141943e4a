"""The dense cross entropy over logits that are interpolated from a coarser resolution, as decoders give them."""

import torch
import torch.nn.functional as F

from ess.losses.cross_entropy import as_labels, dense_cross_entropy
from ess.losses.fused import BACKENDS


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
        whole = F.interpolate(logits, size=extent, mode="bilinear", align_corners=False)
        whole = whole[:, :, : labels.shape[1], : labels.shape[2]]
        return dense_cross_entropy(whole, labels, ignore_index=ignore_index, reduction=reduction, validate=validate)
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
    return _Summed.apply(logits, labels, extent, ignore_index)


class _Summed(torch.autograd.Function):
    """The sum of the losses; the forward pass computes the gradient too."""

    @staticmethod
    def forward(ctx, logits, labels, extent, ignore_index):
        from ess.kernels.interpolated_cpu import interpolated  # imported late: numba is slow to import

        found = interpolated(
            logits.detach().permute(0, 2, 3, 1).contiguous().numpy(),
            labels.numpy(),
            extent,
            ignore_index=ignore_index,
            gradient=ctx.needs_input_grad[0],
            threads=torch.get_num_threads(),
        )
        if found.grid is not None:
            ctx.save_for_backward(torch.from_numpy(found.grid).permute(0, 3, 1, 2))
        return torch.from_numpy(found.losses).sum(dtype=torch.float64).float()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        return ctx.saved_tensors[0] * upstream, None, None, None
