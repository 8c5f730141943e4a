"""The compiled cross entropies as differentiable functions: they choose the kernel, and what the backward pass reuses."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from ess.kernels.distances import DISTANCES
from ess.kernels.gpu import probe

BACKENDS = ("auto", "fused", "torch")

_REACH = 2_000_000_000
"""The numbers of an image that the kernels for GPUs can address: they compute places within an image in 32 bits."""


class Settings(NamedTuple):
    """The arguments of a loss that are not tensors."""

    temperature: float
    distance: str
    ignore_index: int


def chosen(backend: str, embeddings: torch.Tensor, classes: torch.Tensor) -> bool:
    """Whether a kernel computes the loss.

    Raises ValueError if ``backend`` is unknown, or "fused" although no kernel can run.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    device, double = embeddings.device.type, torch.float64 in (embeddings.dtype, classes.dtype)
    able = device in ("cpu", "cuda") and not double and (device == "cpu" or _fits_triton(embeddings))
    if backend == "fused" and not able:
        expected = "float32 on cpu or cuda, there with triton, at most 256 channels and 2 billion numbers per image"
        raise ValueError(f"backend is 'fused': no kernel for {embeddings.dtype} on {embeddings.device}; expected {expected}")
    return able and backend != "torch"


def on_gpu(embeddings: torch.Tensor) -> bool:
    """Whether the kernels for these embeddings are those of ``ess.kernels.gpu``."""
    return embeddings.is_cuda


def _fits_triton(embeddings: torch.Tensor) -> bool:
    """Whether Triton works and its kernels can address an image (D, H, W) as it is, and as a copy without gaps."""
    image = embeddings.shape[1:]
    last = sum((size - 1) * step for size, step in zip(image, embeddings.stride()[1:], strict=True))
    return image[0] <= 256 and max(last + 1, math.prod(image)) <= _REACH and probe.works(embeddings.device)


@torch.compiler.disable
def weighted_sum(
    embeddings: torch.Tensor,
    classes: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    mask: torch.Tensor | None,
    settings: Settings,
) -> torch.Tensor:
    """The sum over the pixels of weights (B, H, W) times their losses, a scalar. The forward pass computes the gradients too.

    The other arguments are those of :func:`ess.losses.cross_entropy.exact_cross_entropy`.
    """
    return _WeightedSum.apply(embeddings, classes, bias, labels, weights, mask, settings)


@torch.compiler.disable
def per_pixel(
    embeddings: torch.Tensor,
    classes: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    mask: torch.Tensor | None,
    settings: Settings,
) -> torch.Tensor:
    """The loss of each pixel, (B, H, W), 0 where ignored. The backward pass computes everything again."""
    return _PerPixel.apply(embeddings, classes, bias, labels, mask, settings)


@torch.compiler.disable
def over_candidates(
    embeddings: torch.Tensor, classes: torch.Tensor, counted: torch.Tensor, candidates: torch.Tensor, settings: Settings
) -> torch.Tensor:
    """The losses (P,) of the pixels with indices ``counted`` (P,), over their ``candidates`` (P, K) int32, the target first.

    On a GPU, ``counted`` are all pixels, those that are ignored have a negative target, and their loss is 0.
    """
    return _OverCandidates.apply(embeddings, classes, counted, candidates, settings)


@torch.compiler.disable
@torch.no_grad()
def nearest_candidates(
    embeddings: torch.Tensor, targets: torch.Tensor, classes: torch.Tensor, k: int, distance: str
) -> torch.Tensor:
    """(P, 1 + k) int32, on a GPU and for all pixels: the target, negative if ignored, and the k <= 64 nearest other classes."""
    from ess.kernels.gpu import search  # imported late: triton is optional

    o = embeddings.detach().flatten(2)
    return search.candidates(o, targets.view(len(o), -1), classes.detach(), k, products=distance == "cosine")


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, bias, labels, weights, mask, settings):
        wanted = any(ctx.needs_input_grad)
        losses, *gradients = _exact(embeddings, classes, bias, labels, weights, mask, settings, gradients=wanted)
        if wanted:
            ctx.inputs = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in (embeddings, classes, bias)]
            ctx.save_for_backward(*gradients)
        return (losses * weights.flatten(1)).sum(dtype=torch.float64).to(losses.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        # The gradients stay in float32 until the end: float16 would lose small numbers before upstream scales them up.
        pairs = zip(ctx.saved_tensors, ctx.inputs, strict=True)
        gradients = (None if like is None else (g * upstream).view(like[0]).to(like[1]) for g, like in pairs)
        return *gradients, None, None, None, None


class _PerPixel(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, bias, labels, mask, settings):
        ctx.save_for_backward(embeddings, classes, bias, labels, mask)
        ctx.settings = settings
        ones = torch.ones((), device=labels.device).expand(labels.shape)
        losses, *_ = _exact(embeddings, classes, bias, labels, ones, mask, settings, gradients=False)
        return losses.view(labels.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        embeddings, classes, bias, labels, mask = ctx.saved_tensors
        _, *gradients = _exact(embeddings, classes, bias, labels, upstream, mask, ctx.settings, gradients=True)
        inputs = (embeddings, classes, bias)
        return *(_like(g, t) for g, t in zip(gradients, inputs, strict=True)), None, None, None


class _OverCandidates(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, counted, candidates, settings):
        ctx.save_for_backward(embeddings, classes, counted, candidates)
        ctx.settings = settings
        how: dict[str, Any] = {"temperature": settings.temperature, "distance": DISTANCES.index(settings.distance)}
        if on_gpu(embeddings):
            from ess.kernels.gpu import candidates as gpu

            return gpu.losses(embeddings.flatten(2), classes, candidates, **how)
        from ess.kernels import candidates_cpu

        arrays = _arrays(embeddings.flatten(2).float(), counted, classes.float(), candidates)
        return torch.from_numpy(candidates_cpu.losses(*arrays, **how, threads=torch.get_num_threads()))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        embeddings, classes, counted, candidates = ctx.saved_tensors
        how: dict[str, Any] = {"temperature": ctx.settings.temperature, "distance": DISTANCES.index(ctx.settings.distance)}
        gradients: Iterable[torch.Tensor]
        if on_gpu(embeddings):
            from ess.kernels.gpu import candidates as gpu

            gradients = gpu.gradients(embeddings.flatten(2), classes, candidates, upstream.float(), **how)
        else:
            from ess.kernels import candidates_cpu

            arrays = _arrays(embeddings.flatten(2).float(), counted, classes.float(), candidates, upstream.float())
            gradients = map(torch.from_numpy, candidates_cpu.gradients(*arrays, **how, threads=torch.get_num_threads()))
        return *(_like(g, t) for g, t in zip(gradients, (embeddings, classes), strict=True)), None, None, None


class _Found(NamedTuple):
    """The losses (B, N), and the gradients of their weighted sum, None unless requested."""

    losses: torch.Tensor
    embeddings: torch.Tensor | None
    classes: torch.Tensor | None
    bias: torch.Tensor | None


def _exact(
    embeddings: torch.Tensor,
    classes: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    weights: torch.Tensor,
    mask: torch.Tensor | None,
    settings: Settings,
    *,
    gradients: bool,
) -> _Found:
    """Run the kernel of the device. It is imported late, since numba and triton are slow to import, and triton is optional."""
    shared: dict[str, Any] = {
        "ignore_index": settings.ignore_index,
        "temperature": settings.temperature,
        "distance": DISTANCES.index(settings.distance),
        "gradients": gradients,
    }
    o, labels, weights = embeddings.flatten(2), labels.flatten(1), weights.flatten(1).float()
    if on_gpu(embeddings):
        from ess.kernels.gpu import exact

        return _Found(*exact.exact(o, labels, weights, classes, bias, mask, **shared))
    from ess.kernels import exact_cpu

    arrays = _arrays(o.float(), labels, weights, classes.float(), None if bias is None else bias.float(), mask)
    losses, *parts = exact_cpu.exact(*arrays, **shared, threads=torch.get_num_threads())
    return _Found(torch.from_numpy(losses), *(None if part is None else torch.from_numpy(part) for part in parts))


def _arrays(*tensors: torch.Tensor | None) -> list[Any]:
    """The tensors as arrays of the same memory; None stays None."""
    return [None if tensor is None else tensor.detach().numpy() for tensor in tensors]


def _like(gradient: torch.Tensor | None, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None or tensor is None else gradient.view(tensor.shape).to(tensor.dtype)
