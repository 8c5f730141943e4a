"""What our losses, search and prediction are measured beside: the published arithmetic, the dense baseline, torch's own."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F

TEMPERATURE, NEIGHBOURS = 20.0, 7

MOST = 1 << 30
"""Numbers in the largest array that a contender may make: 4 GiB in float32."""

Search = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Pixels (P, D), classes (C, D) and k to the indices (P, k) of the nearest."""


def as_rows(images: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W) as (B * H * W, D)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def published(search: Search, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Search, gather, norm, cross entropy; in float32."""
    pixels, classes, targets = as_rows(images).float(), classes.float(), labels.flatten()
    found = search(pixels.detach(), classes.detach(), min(NEIGHBOURS, len(classes)))
    found = torch.where(found == targets[:, None], (found - 1).clamp_min(0), found)
    candidates = F.embedding(torch.cat([targets[:, None], found], dim=1), classes)
    logits = -TEMPERATURE * (pixels[:, None] - candidates).norm(dim=2)
    return F.cross_entropy(logits, torch.zeros_like(targets))


def dense_logits(images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's (B, C, H, W): at a quarter of the resolution, as a convolution makes them, enlarged."""
    small = F.conv2d(images[:, :, ::4, ::4], TEMPERATURE * classes[:, :, None, None])
    return F.interpolate(small, size=images.shape[2:], mode="bilinear")


def dense(images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """The baseline's loss."""
    return F.cross_entropy(dense_logits(images, classes), labels)


def linear(loss: Callable, images: torch.Tensor, labels: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """A loss of a linear layer that does not keep its logits, ``loss(pixels, classes, targets)``."""
    return loss(TEMPERATURE * as_rows(images), classes, labels.flatten())


def linear_losses() -> dict[str, Callable]:
    """Torch's own, where it takes some pixels at a time; without that it makes logits of all."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return {}
    return {"linear_cross_entropy": partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())}
