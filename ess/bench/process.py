"""Runs measurements in fresh processes, and measures their memory."""

import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Failed:
    """A measurement that ran out of memory, raised another error, or whose process was killed; ``failed`` says which."""

    failed: str


def in_fresh_process(
    work: Callable[Arguments, Result], *arguments: Arguments.args, **named: Arguments.kwargs
) -> Result | Failed:
    """The result of ``work`` in a new process, or :class:`Failed` if that is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments, **named).result()
        except BrokenProcessPool:
            return Failed("its process was killed, most likely for its memory")


def peak_bytes(device: torch.device) -> int:
    """The largest memory in use so far: a GPU's by tensors, a CPU's by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kilobytes("/proc/self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_bytes() -> int:
    """The memory that a new process can use; 8 GiB if the system does not tell."""
    return _kilobytes("/proc/meminfo", "MemAvailable") or 8 << 30


def _kilobytes(file: str, field: str) -> int:
    """A field that the Linux kernel gives in kB, in bytes; 0 if the file or the field does not exist."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
