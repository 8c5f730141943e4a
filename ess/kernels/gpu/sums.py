"""Sums over pixels by atomic additions on a GPU, whose results do not depend on their order.

Many pixels add to the gradient of one class, in an order that differs between runs. They add integers: a contribution is
multiplied by a step, a number for which even the sum of the largest possible ones fits into 63 bits, and rounded. With 2
million pixels of 8 candidates, this keeps 36 binary digits after the point of the largest contribution. Equal inputs therefore
give equal bits. Blocks of pixels add to several copies of the sums in turn, since neighbouring pixels are often of the same
class and would wait for each other.
"""

import torch

from ess.kernels.distances import COSINE, EUCLIDEAN, SQUARED

_WORKSPACE = 16 << 20
"""Bytes for the copies."""

_COPIES = 64
"""The most copies."""


def integer_sums(count: int, columns: int, device: torch.device) -> torch.Tensor:
    """(copies, count, columns) int64, all 0: the copies of the sums of ``count`` classes."""
    copies = max(1, min(_COPIES, _WORKSPACE // (8 * count * columns)))
    return torch.zeros(copies, count, columns, dtype=torch.int64, device=device)


def step_of(
    embeddings: torch.Tensor, classes: torch.Tensor, counted: torch.Tensor, pairs: int, distance: int, least: float = 1e-18
) -> torch.Tensor:
    """A float32 scalar: what contributions to the gradients of classes are multiplied by, if there are at most ``pairs``.

    ``embeddings`` are (B, D, N), ``counted`` (B * N,) bool, False where a pixel does not contribute. ``least`` is the largest
    of other contributions to the same sums.
    """
    return (2.0 ** (61 - pairs.bit_length()) / _largest(embeddings, classes, counted, distance).clamp_min(least)).float()


def _largest(embeddings: torch.Tensor, classes: torch.Tensor, counted: torch.Tensor, distance: int) -> torch.Tensor:
    """A float64 scalar: the largest possible coordinate of what a pixel adds to the gradient of a class.

    These are unit vectors for EUCLIDEAN, differences for SQUARED and pixel embeddings for COSINE.
    """
    if distance == EUCLIDEAN:
        return torch.ones((), dtype=torch.float64, device=embeddings.device)
    pixels = embeddings.abs().amax(1).flatten().masked_fill(~counted, 0)
    return pixels.amax().double() if distance == COSINE else pixels.amax().double() + classes.abs().amax()


def factor_of(temperature: float, distance: int) -> float:
    """The factor that the derivatives of all logits share."""
    return temperature * (-2.0 if distance == SQUARED else -1.0)
