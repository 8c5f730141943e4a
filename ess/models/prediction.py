"""Prepares a network for prediction: folds BatchNorm into the convolutions, and orders weights for the fastest kernels."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ess.models.network import SegmentationModel

_AGREE = 1e-2
"""How far outputs may differ after folding, as a share of the largest; rounding changes them less, in TF32 too."""


def for_prediction(model: SegmentationModel, device: torch.device) -> SegmentationModel:
    """A model that predicts like ``model``, faster, on a device. It cannot be trained.

    Each BatchNorm is folded into the convolution before it. Weights are in channels-last order on the CPU and on GPUs from 8.0
    on. The backward pass of a CPU is slower with that order, so trainings there keep the usual one.
    """
    last = device.type == "cpu" or (device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0))
    folded = _folded(model.to(device).eval())
    return folded.to(memory_format=torch.channels_last if last else torch.contiguous_format)


@torch.no_grad()
def _folded(model: SegmentationModel) -> SegmentationModel:
    """A copy of a model in evaluation mode without the BatchNorm that follows convolutions, or ``model`` if they differ.

    The copy is compared with the model, because something else might read the output of a convolution, or change its weights.
    """
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    if not norms:
        return model
    example = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)
    with _sources(convs, norms) as sources:
        expected = model.coarse(model.encode(example))
    folded = copy.deepcopy(model)
    for name, conv in sources.items():
        folded.set_submodule(conv, fuse_conv_bn_eval(convs[conv], norms[name]))
        folded.set_submodule(name, nn.Sequential(*norms[name].children()))  # timm's have an activation
    difference = (folded.coarse(folded.encode(example)) - expected).abs().max()
    return folded if difference <= _AGREE * expected.abs().max() else model


@contextmanager
def _sources(convs: dict[str, nn.Conv2d], norms: dict[str, nn.BatchNorm2d]) -> Iterator[dict[str, str]]:
    """The names of those ``norms`` that read the output of one of the ``convs`` while this is active, and its name."""
    outputs: list[tuple[torch.Tensor, str]] = []
    sources: dict[str, str] = {}

    def convolved(name: str, conv: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        outputs.append((output, name))

    def normalised(name: str, norm: nn.Module, inputs: tuple) -> None:
        sources.update((name, conv) for output, conv in outputs if output is inputs[0])

    hooks = [module.register_forward_hook(partial(convolved, name)) for name, module in convs.items()]
    hooks += [module.register_forward_pre_hook(partial(normalised, name)) for name, module in norms.items()]
    try:
        yield sources
    finally:
        for hook in hooks:
            hook.remove()
