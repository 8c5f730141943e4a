"""What our losses and predictions are compared with: the published arithmetic, the dense baseline, torch's own losses."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

from ess.losses.interpolated import interpolated_cross_entropy
from ess.losses.points import point_cross_entropy

TEMPERATURE, NEIGHBOURS = 20.0, 7

POINTS = 12_544 / 512**2
"""The points per pixel of Mask2Former, for images of 512 x 512 pixels."""

MOST = 1 << 30
"""The most numbers in an array of a contender: 4 GiB in float32."""

Search = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Pixels (P, D), classes (C, D) and k -> the indices (P, k) of the nearest classes."""


def as_rows(images: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W) -> (B * H * W, D)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def published(search: Search, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The published loss in float32: search, gather, norm, cross entropy."""
    pixels, classes, targets = as_rows(images).float(), classes.float(), labels.flatten()
    found = search(pixels.detach(), classes.detach(), min(NEIGHBOURS, len(classes)))
    found = torch.where(found == targets[:, None], (found - 1).clamp_min(0), found)
    candidates = F.embedding(torch.cat([targets[:, None], found], dim=1), classes)
    logits = -TEMPERATURE * (pixels[:, None] - candidates).norm(dim=2)
    return F.cross_entropy(logits, torch.zeros_like(targets))


def dense_logits(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's logits (B, C, H, W): a convolution at a quarter of the resolution, then upsampling."""
    return F.interpolate(small_logits(images, classes), size=images.shape[2:], mode="bilinear")


def small_logits(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's logits before upsampling, (B, C, H / 4, W / 4)."""
    return F.conv2d(images[:, :, ::4, ::4], TEMPERATURE * classes[:, :, None, None])


def dense(images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's loss."""
    return F.cross_entropy(dense_logits(images, classes), labels)


def fused_dense(images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's loss as the trainer computes it on a CPU, without its logits at full resolution."""
    return interpolated_cross_entropy(small_logits(images, classes), labels)


def dense_at_points(images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's loss at 12,544 points of each image of 512 x 512 pixels, and in proportion for others."""
    return point_cross_entropy(small_logits(images, classes), labels, max(1, round(POINTS * labels[0].numel()))).mean()


def linear(loss: Callable, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The loss of a linear layer that does not store its logits, ``loss(pixels, classes, targets)``."""
    return loss(TEMPERATURE * as_rows(images), classes, labels.flatten())


def linear_losses() -> dict[str, Callable]:
    """Torch's own loss, if it can work in chunks; otherwise it would store the logits of all pixels."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}
    return {"linear_cross_entropy": partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())}
