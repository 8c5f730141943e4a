"""Chooses a device, and explains errors when its memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cocolvis.errors import DataError


def choose_device(name: str) -> torch.device:
    """The device with a name such as "cuda:1"; "auto" is the first GPU, or the CPU. Raises DataError if it cannot be used."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()  # fails on "meta", which stores no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"device {name!r} cannot be used ({reason}); choose --device auto, cpu or cuda") from None
    return device


@contextmanager
def explain_out_of_memory(advice: str) -> Iterator[None]:
    """Raise DataError with ``advice`` if an allocation fails on any device."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError):
        raise DataError(f"out of memory; {advice}") from None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        raise DataError(f"out of memory; {advice}") from None
