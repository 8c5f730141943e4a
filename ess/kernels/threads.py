"""The pixels of a batch divided among threads; the compiled loops hold no lock of Python's."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_FEWEST = 256
"""Pixels for which another thread is worth its start."""


def shared(work: Callable[[tuple[int, int]], Any], pixels: int, threads: int) -> list[Any]:
    """What ``work`` returns for the bounds (first, end) of each part, in order; a part a thread, or fewer for few pixels."""
    parts = max(1, min(threads, pixels // _FEWEST))
    bounds = [(pixels * i // parts, pixels * (i + 1) // parts) for i in range(parts)]
    if parts == 1:
        return [work(bounds[0])]
    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(work, bounds))
