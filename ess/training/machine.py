"""How a training uses the device that it runs on: the settings that the device decides, and switches of PyTorch."""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from cocolvis.limits import cores
from ess.config import Config

_UNSET: Mapping[str, Any] = {"precision": "auto", "channels_last": None, "workers": "auto"}
"""The settings that the device decides, with the values that leave the decision to it."""

_MOST_WORKERS = 8
"""More loader processes than this decode no more pictures than the fastest GPU trains on."""


class Choices(NamedTuple):
    """How a training uses its device. The first three are settings of :class:`ess.config.Config`.

    ``tf32``: float32 products that remain beside ``precision`` use TF32 where the GPU has it. ``benchmark``: cuDNN tries its
    algorithms for the size of the crops. ``fused``: the optimiser is one kernel, which the GPU itself can tell to do nothing;
    so a step starts before the loss of the one before is known. ``prefetch``: the next batch is copied from pinned memory and
    rendered on a stream of its own during a step.
    """

    precision: str
    channels_last: bool
    workers: int
    tf32: bool
    benchmark: bool
    fused: bool
    prefetch: bool


def choose(device: str, capability: tuple[int, int] | None, cores: int) -> Choices:
    """What suits a ``device`` ("cuda", "cpu", "mps"), the compute ``capability`` of a GPU, and the ``cores`` of the process.

    GPUs multiply bfloat16 natively from 8.0 on. Older ones get float32 and the usual order in memory, because their float32
    convolutions are slower with channels last. The CPU gets what is exact and the same on every machine.
    """
    if device != "cuda":
        return Choices("float32", False, 2, tf32=False, benchmark=False, fused=False, prefetch=False)
    native = capability is not None and capability >= (8, 0)
    workers = max(1, min(_MOST_WORKERS, cores))
    return Choices("bf16" if native else "float32", native, workers, tf32=True, benchmark=True, fused=True, prefetch=True)


def choices_for(device: torch.device) -> Choices:
    """:func:`choose` for a device of this machine, whose cores are shared by the processes that train on it."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return choose(device.type, capability, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def resolved(config: Config, device: torch.device, earlier: Config | None = None) -> Config:
    """The settings with values for those that are left to the device; a resumed run keeps those of its ``earlier`` settings."""
    found = choices_for(device)._asdict() if earlier is None else earlier.to_json()
    values = {name: found[name] for name, unset in _UNSET.items() if getattr(config, name) == unset}
    return replace(config, **values) if earlier is None else resolved(replace(config, **values), device)


def in_force(config: Config, device: torch.device) -> Choices:
    """The choices for a device with the settings of ``config``.

    A precision of float32 is PyTorch's, whose convolutions alone use TF32. The loss scale of fp16 has to look at every step
    before it changes the weights, so a fused optimiser would gain nothing.
    """
    found, precision = choices_for(device), config.precision
    settings = {name: getattr(config, name) for name in _UNSET}
    return found._replace(**settings, tf32=found.tf32 and precision != "float32", fused=found.fused and precision != "fp16")


def describe(device: torch.device) -> str:
    """The name of a device for people: "NVIDIA H100 80GB HBM3", or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@contextmanager
def switched(choices: Choices) -> Iterator[None]:
    """Set PyTorch's switches for TF32 and for cuDNN's search for fast algorithms, and restore them at the end."""
    with _set("high" if choices.tf32 else torch.get_float32_matmul_precision(), choices.benchmark):
        yield


def evaluating() -> AbstractContextManager[None]:
    """Set the same switches as they are for ``ess eval``, and restore them at the end.

    Products have all digits of float32, and cuDNN does not search, which pays off only if sizes come again.
    """
    return _set("highest", False)


@contextmanager
def _set(products: str, searches: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.benchmark = searches
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
