"""The compiled cross entropies as differentiable functions: which kernel runs, and what is kept for backward."""

from importlib.util import find_spec
from typing import NamedTuple

import torch

from ess.kernels.distances import DISTANCES

BACKENDS = ("auto", "fused", "torch")


class Settings(NamedTuple):
    """The arguments of the loss that are no tensors."""

    temperature: float
    distance: str
    ignore_index: int


def chosen(backend: str, embeddings: torch.Tensor, classes: torch.Tensor, *, devices: tuple[str, ...]) -> bool:
    """Whether a kernel, of which there is one for each of ``devices``, computes a loss.

    A ValueError when one is asked for where there is none.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}: expected one of {', '.join(BACKENDS)}")
    device, double = embeddings.device.type, torch.float64 in (embeddings.dtype, classes.dtype)
    able = device in devices and not double and (device == "cpu" or _fits_triton(embeddings))
    if backend == "fused" and not able:
        expected = f"float32 on {' or '.join(devices)}" + (
            ", at most 256 channels there and triton" if "cuda" in devices else ""
        )
        raise ValueError(f"backend is 'fused': no kernel for {embeddings.dtype} on {embeddings.device}; expected {expected}")
    return able and backend != "torch"


def _fits_triton(embeddings: torch.Tensor) -> bool:
    return embeddings.shape[1] <= 256 and find_spec("triton") is not None


@torch.compiler.disable
def weighted_sum(embeddings, classes, bias, labels, weights, mask, settings: Settings) -> torch.Tensor:
    """The sum over the pixels of weights (B, H, W) times their losses, a scalar; the gradients are computed on the way."""
    return _WeightedSum.apply(embeddings, classes, bias, labels, weights, mask, settings)


@torch.compiler.disable
def each(embeddings, classes, bias, labels, mask, settings: Settings) -> torch.Tensor:
    """The loss of each pixel, (B, H, W), 0 where ignored; going backward computes everything again."""
    return _Each.apply(embeddings, classes, bias, labels, mask, settings)


@torch.compiler.disable
def among(embeddings, classes, counted, candidates, settings: Settings) -> torch.Tensor:
    """The losses (P,) of the pixels at ``counted`` (P,) among all, over their candidates (P, K), the target first."""
    return _Among.apply(embeddings, classes, counted, candidates, settings)


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, bias, labels, weights, mask, settings):
        wanted = any(ctx.needs_input_grad)
        found = _run(embeddings, classes, bias, labels, weights, mask, settings, gradients=wanted)
        if wanted:
            ctx.inputs = [None if tensor is None else (tensor.shape, tensor.dtype) for tensor in (embeddings, classes, bias)]
            ctx.save_for_backward(*found[1:])
        return (found.losses * weights.flatten(1)).sum(dtype=torch.float64).to(found.losses.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        # In float32 until the end: of a float16 gradient, what upstream is to scale up would be gone.
        pairs = zip(ctx.saved_tensors, ctx.inputs, strict=True)
        return (
            *(None if like is None else (g * upstream).view(like[0]).to(like[1]) for g, like in pairs),
            None,
            None,
            None,
            None,
        )


class _Each(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, bias, labels, mask, settings):
        ctx.save_for_backward(embeddings, classes, bias, labels, mask)
        ctx.settings = settings
        ones = torch.ones((), device=labels.device).expand(labels.shape)
        return _run(embeddings, classes, bias, labels, ones, mask, settings, gradients=False).losses.view(labels.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        *inputs, labels, mask = ctx.saved_tensors
        found = _run(*inputs, labels, upstream, mask, ctx.settings, gradients=True)
        return *(_like(g, t) for g, t in zip(found[1:], inputs, strict=True)), None, None, None


class _Among(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embeddings, classes, counted, candidates, settings):
        ctx.save_for_backward(embeddings, classes, counted, candidates)
        ctx.settings = settings
        return torch.from_numpy(_run_among(embeddings, classes, counted, candidates, None, settings))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        embeddings, classes, counted, candidates = ctx.saved_tensors
        found = _run_among(embeddings, classes, counted, candidates, _array(upstream.float()), ctx.settings)
        pairs = zip(found, (embeddings, classes), strict=True)
        return *(_like(torch.from_numpy(g), t) for g, t in pairs), None, None, None


def _run_among(embeddings, classes, counted, candidates, upstream, settings: Settings):
    from ess.kernels import among_cpu

    return among_cpu.among(
        *map(_array, (embeddings.flatten(2).float(), counted, classes.float(), candidates)),
        upstream,
        temperature=settings.temperature,
        distance=DISTANCES.index(settings.distance),
        threads=torch.get_num_threads(),
    )


class _Found(NamedTuple):
    losses: torch.Tensor
    embeddings: torch.Tensor | None
    classes: torch.Tensor | None
    bias: torch.Tensor | None


def _run(embeddings, classes, bias, labels, weights, mask, settings: Settings, *, gradients: bool) -> _Found:
    """What the kernel of the device finds, as tensors; numba and triton are slow to import, and not everywhere."""
    shared = {
        "ignore_index": settings.ignore_index,
        "temperature": settings.temperature,
        "distance": DISTANCES.index(settings.distance),
        "gradients": gradients,
    }
    if embeddings.is_cuda:
        from ess.kernels import exact_triton

        tensors = embeddings.flatten(2), labels.flatten(1), weights.flatten(1).float(), classes, bias, mask
        return _Found(*exact_triton.exact(*tensors, **shared))
    from ess.kernels import exact_cpu

    tensors = embeddings.flatten(2).float(), labels.flatten(1), weights.flatten(1).float(), classes.float()
    arrays = map(_array, (*tensors, None if bias is None else bias.float(), mask))
    found = exact_cpu.exact(*arrays, **shared, threads=torch.get_num_threads())
    return _Found(*(None if part is None else torch.from_numpy(part) for part in found))


def _array(tensor: torch.Tensor | None):
    return None if tensor is None else tensor.detach().numpy()


def _like(gradient: torch.Tensor | None, tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None or tensor is None else gradient.view(tensor.shape).to(tensor.dtype)
