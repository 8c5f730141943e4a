"""A learnt temperature: the parameter log T, whose gradient follows from those of the embeddings, for any loss."""

import math

import torch
from torch import nn

START, LEAST, MOST = 20.0, 1.0, 100.0
"""The first value of a learnt temperature, and its limits; 100 is also that of CLIP (Radford et al., ICML 2021)."""


def log_temperature() -> nn.Parameter:
    """The parameter log T, a float32 scalar."""
    return nn.Parameter(torch.tensor(math.log(START)))


@torch.no_grad()
def limit(log_t: torch.Tensor) -> None:
    """Move log T back into its limits after a step."""
    log_t.clamp_(math.log(LEAST), math.log(MOST))


def with_temperature(
    embeddings: torch.Tensor, classes: torch.Tensor, log_t: torch.Tensor, distance: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(embeddings, classes, T), the inputs of one loss; through them, its gradient reaches ``log_t`` as well.

    The losses take T as a number. The logits z are homogeneous functions of the embeddings o and e, of degree 1 for the
    Euclidean distance and 2 for its square, and proportional to T. By Euler's theorem, <o, dL/do> + <e, dL/de> is this degree
    times the sum of z * dL/dz, which is dL/dlog T. An inner product has degree 1 in e alone, so <e, dL/de> is enough. A bias of
    the logits makes no difference. The embeddings are not copied, and T does not influence which classes are the nearest.

    On a GPU, reading the number would stop the process until the step before is done. So T multiplies the embeddings there.
    """
    if log_t.is_cuda:
        return *scaled(embeddings, classes, log_t, distance), 1.0
    temperature = math.exp(log_t.item())
    if distance == "cosine":
        return embeddings, _Euler.apply(log_t, 1, classes)[0], temperature
    return *_Euler.apply(log_t, 2 if distance == "squared" else 1, embeddings, classes), temperature


def scaled(
    embeddings: torch.Tensor, classes: torch.Tensor, log_t: torch.Tensor, distance: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and classes whose logits with a temperature of 1 are those of the given ones with T."""
    if distance == "cosine":
        return embeddings, classes * log_t.exp()
    factor = (log_t / 2 if distance == "squared" else log_t).exp()
    return embeddings * factor, classes * factor


class _Euler(torch.autograd.Function):
    """Passes tensors on; their gradients also give that of log T."""

    @staticmethod
    def forward(ctx, log_t, degree, *tensors):
        ctx.degree = degree
        ctx.save_for_backward(log_t, *tensors)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *gradients):
        log_t, *tensors = ctx.saved_tensors
        total = torch.stack([_inner(*pair) for pair in zip(tensors, gradients, strict=True)]).sum()
        return (total / ctx.degree).to(log_t.dtype), None, *gradients


def _inner(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The inner product of two tensors, of maps one image at a time to save memory."""
    rows = 1 if one.ndim == 4 else len(one)
    return torch.stack([(a * b).sum() for a, b in zip(one.split(rows), other.split(rows), strict=True)]).sum()
