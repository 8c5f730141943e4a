"""The dense cross entropy at a few points of each image, so that logits at full resolution are never computed.

The points are chosen as in PointRend (Kirillov et al., CVPR 2020) and Mask2Former (Cheng et al., CVPR 2022): most of them where
the prediction is uncertain, the others anywhere.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ess.device import moved
from ess.losses.cross_entropy import as_labels
from ess.losses.fused import BACKENDS
from ess.losses.interpolated import Fused, Summed, check_sizes

OVERSAMPLED = 3
"""How many random points are drawn for each point of the result."""

UNCERTAIN = 0.75
"""The share of the points that are the most uncertain of these; the others are random."""


def point_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    points: int,
    *,
    extent: tuple[int, int] | None = None,
    ignore_index: int = -1,
    backend: str = "auto",
    validate: bool = True,
) -> torch.Tensor:
    """The mean cross entropy over the labelled ones of ``points`` points of each image, (B,) float32, 0 for images without any.

    ``logits`` (B, C, h, w) floating with C >= 2, ``labels`` (B, H, W) integer, 0..C-1 or ``ignore_index``. The logits cover an
    area of ``extent`` pixels (height, width), which is larger than H x W if images were padded at the bottom and the right; by
    default both are the same. The points are within H x W. Their logits are interpolated bilinearly, as if the map had first
    been resized to its extent, and their labels are those of the pixels that contain them. Random numbers are those of torch's
    global generator on the device.

    ``backend`` "fused" uses compiled kernels that never store the logits of all points (CPU), "torch" stores those of one
    image at a time, and "auto" is "fused" if that is possible. Raises ValueError if an argument does not fit; ``validate``
    includes the labels, which a GPU must be waited for.
    """
    if backend not in BACKENDS or (backend == "fused" and logits.device.type != "cpu"):
        raise ValueError(f"backend is {backend!r} on {logits.device}: expected auto, torch or, on a CPU, fused")
    extent = extent or (labels.shape[-2], labels.shape[-1])
    check_sizes(logits, labels, extent)
    fused = logits.device.type == "cpu" and backend != "torch"
    logits, labels = logits.float(), as_labels(labels, logits.shape[1], ignore_index, validate)
    if fused:
        logits = logits.contiguous(memory_format=torch.channels_last)
    images = [*zip(logits, labels, strict=True)]
    places = [choose_points(*image, points, extent=extent, ignore_index=ignore_index, fused=fused) for image in images]
    targets = [labels_at(mask, each) for (_, mask), each in zip(images, places, strict=True)]
    if fused:
        sums = _summed(logits, torch.stack(places), torch.stack(targets), extent, ignore_index)
    else:
        sums = torch.stack([_sum(*each, extent, ignore_index) for each in zip(logits, places, targets, strict=True)])
    return sums / (torch.stack(targets) != ignore_index).sum(dim=1).clamp_min(1)


@torch.no_grad()
def choose_points(
    logits: torch.Tensor,
    labels: torch.Tensor,
    points: int,
    *,
    extent: tuple[int, int],
    ignore_index: int = -1,
    fused: bool = False,
) -> torch.Tensor:
    """(points, 2) float32 places (y, x) in pixels, of one image: ``logits`` (C, h, w) float32, ``labels`` (H, W).

    Of three times as many uniformly random places, those with the smallest difference between the two largest logits are 75 %
    of the result. Places without a label count as certain, because nothing can be learned there. The rest is uniformly random.
    """
    size = moved(torch.tensor(labels.shape, dtype=torch.float32), logits.device)
    drawn = torch.rand(OVERSAMPLED * points, 2, device=logits.device) * size
    margins = (_fused_margins if fused else _margins)(logits, drawn, extent)
    uncertainty = (-margins).masked_fill(labels_at(labels, drawn) == ignore_index, -torch.inf)
    uncertain = drawn[uncertainty.topk(int(UNCERTAIN * points)).indices]
    return torch.cat([uncertain, torch.rand(points - len(uncertain), 2, device=logits.device) * size])


def _margins(logits: torch.Tensor, places: torch.Tensor, extent: tuple[int, int]) -> torch.Tensor:
    """(P,): the largest logit less the second largest at each place."""
    largest = logits_at(logits, places, extent).topk(2, dim=1).values
    return largest[:, 0] - largest[:, 1]


@torch.compiler.disable
def _fused_margins(logits: torch.Tensor, places: torch.Tensor, extent: tuple[int, int]) -> torch.Tensor:
    from ess.kernels.points_cpu import margins  # imported late: numba is slow to import

    grid = logits.permute(1, 2, 0).numpy()
    return torch.from_numpy(margins(grid, places.numpy(), extent, threads=torch.get_num_threads()))


@torch.compiler.disable
def _summed(
    logits: torch.Tensor, places: torch.Tensor, targets: torch.Tensor, extent: tuple[int, int], ignore_index: int
) -> torch.Tensor:
    return Summed.apply(logits, _fused_sums, places, targets, extent, ignore_index)


def _sum(
    logits: torch.Tensor, places: torch.Tensor, targets: torch.Tensor, extent: tuple[int, int], ignore_index: int
) -> torch.Tensor:
    return F.cross_entropy(logits_at(logits, places, extent), targets, ignore_index=ignore_index, reduction="sum")


def _fused_sums(
    grid: np.ndarray, places: torch.Tensor, targets: torch.Tensor, extent: tuple[int, int], ignore_index: int, **options: Any
) -> Fused:
    from ess.kernels.points_cpu import losses  # imported late: numba is slow to import

    found = losses(grid, places.numpy(), targets.numpy(), extent, ignore_index=ignore_index, **options)
    return torch.from_numpy(found.losses).sum(dim=1, dtype=torch.float64).float(), found.grid


def logits_at(logits: torch.Tensor, places: torch.Tensor, extent: tuple[int, int]) -> torch.Tensor:
    """(P, C): ``logits`` (C, h, w) of one image, which cover ``extent`` pixels, at ``places`` (P, 2), (y, x) in pixels."""
    height, width = extent
    size = moved(torch.tensor([width, height], dtype=places.dtype), places.device)
    grid = (places.flip(1) / size * 2 - 1)[None, None]
    return F.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0, :, 0].T


def labels_at(labels: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(P,): ``labels`` (H, W) of the pixels that contain ``places`` (P, 2), (y, x) in pixels."""
    y, x = (places[:, axis].long().clamp_max(labels.shape[axis] - 1) for axis in (0, 1))  # rounding can reach the end
    return labels[y, x]
