"""The dense cross entropy at a few points of each image, so that logits at full resolution are never computed.

The points are chosen as in PointRend (Kirillov et al., CVPR 2020) and Mask2Former (Cheng et al., CVPR 2022): most of them where
the prediction is uncertain, the others anywhere.
"""

import torch
import torch.nn.functional as F

from ess.device import moved

OVERSAMPLED = 3
"""How many random points are drawn for each point of the result."""

UNCERTAIN = 0.75
"""The share of the points that are the most uncertain of these; the others are random."""


def point_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, points: int, *, extent: tuple[int, int] | None = None, ignore_index: int = -1
) -> torch.Tensor:
    """The mean cross entropy over the labelled ones of ``points`` points of each image, (B,), 0 for images without any.

    ``logits`` (B, C, h, w) floating with C >= 2, ``labels`` (B, H, W) integer, 0..C-1 or ``ignore_index``. The logits cover an
    area of ``extent`` pixels (height, width), which is larger than H x W if images were padded at the bottom and the right; by
    default both are the same. The points are within H x W. Their logits are interpolated bilinearly, as if the map had first
    been resized to its extent, and their labels are those of the pixels that contain them. Random numbers are those of torch's
    global generator on the device.
    """
    extent = extent or (labels.shape[1], labels.shape[2])
    losses = []
    for image, mask in zip(logits.float(), labels.long(), strict=True):  # one at a time: points x classes numbers are many
        places = choose_points(image, mask, points, extent=extent, ignore_index=ignore_index)
        targets = labels_at(mask, places)
        summed = F.cross_entropy(logits_at(image, places, extent), targets, ignore_index=ignore_index, reduction="sum")
        losses.append(summed / (targets != ignore_index).sum().clamp_min(1))
    return torch.stack(losses)


@torch.no_grad()
def choose_points(
    logits: torch.Tensor, labels: torch.Tensor, points: int, *, extent: tuple[int, int], ignore_index: int = -1
) -> torch.Tensor:
    """(points, 2) float32 places (y, x) in pixels, of one image: ``logits`` (C, h, w), ``labels`` (H, W).

    Of three times as many uniformly random places, those with the smallest difference between the two largest logits are 75 %
    of the result. Places without a label count as certain, because nothing can be learned there. The rest is uniformly random.
    """
    size = moved(torch.tensor(labels.shape, dtype=torch.float32), logits.device)
    drawn = torch.rand(OVERSAMPLED * points, 2, device=logits.device) * size
    largest = logits_at(logits, drawn, extent).topk(2, dim=1).values
    uncertainty = (largest[:, 1] - largest[:, 0]).masked_fill(labels_at(labels, drawn) == ignore_index, -torch.inf)
    uncertain = drawn[uncertainty.topk(int(UNCERTAIN * points)).indices]
    return torch.cat([uncertain, torch.rand(points - len(uncertain), 2, device=logits.device) * size])


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
