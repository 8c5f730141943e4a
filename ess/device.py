"""Chooses a device, moves tensors there, and explains errors when its memory runs out."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cocolvis.errors import DataError

_EXHAUSTED = (
    "can't allocate memory",
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine",  # cuDNN tried all its algorithms, and each one needs memory of its own
)
"""What the messages of a RuntimeError contain if an allocation failed."""


class OutOfMemory(DataError):
    """An allocation failed on some device."""


def choose_device(name: str) -> torch.device:
    """The device with a name such as "cuda:1"; "auto" is a GPU, or the CPU. Raises DataError if it cannot be used.

    "auto" and "cuda" are the first GPU, or that of this process if several were started together (see :func:`take_own_gpu`).
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on "meta", which stores no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"device {name!r} cannot be used ({reason}); choose --device auto, cpu or cuda") from None
    return device


def take_own_gpu() -> None:
    """Make the GPU with the local rank of this process its current one, before anything else touches a GPU.

    Otherwise each process of a machine would keep memory of the first GPU. A process that was started alone changes nothing.
    """
    gpus = torch.cuda.device_count()
    if gpus and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % gpus)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device; copies to a GPU use pinned memory, so that they do not wait for running kernels."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Readback:
    """Numbers (N,) of a device on their way to this process, which can continue until it needs them."""

    def __init__(self, numbers: torch.Tensor):
        self._numbers = numbers.detach().to("cpu", non_blocking=numbers.is_cuda)  # into pinned memory then
        self._arrived = None
        if numbers.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(numbers.device))

    def wait(self) -> list[float]:
        """The numbers, once what was computed before them is done; later work of the device continues."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._numbers.tolist()


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise OutOfMemory with ``advice`` if an allocation fails on any device."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise OutOfMemory(f"out of memory; {advice}") from None
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _EXHAUSTED):
            raise
        raise OutOfMemory(f"out of memory; {advice}") from None
