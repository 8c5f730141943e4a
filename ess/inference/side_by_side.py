"""Computes batches side by side on the CPU, on some cores each: a network leaves many cores idle with one picture."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby, islice
from typing import TypeVar

import torch

from cocolvis.ahead import ahead

Batch = TypeVar("Batch")
Result = TypeVar("Result")

_MOST = 4
"""The most batches at a time."""


def side_by_side(
    compute: Callable[[Batch], Result], batches: Iterable[Batch], device: torch.device, is_large: Callable[[Batch], bool]
) -> Iterator[Result]:
    """Yield ``compute(batch)`` for each batch, in order.

    On the CPU, up to four batches are computed at a time, and the threads of PyTorch are divided among them. A large batch is
    computed alone with all threads, and so is a single one. The calling thread iterates over ``batches``. The first exception
    ends the iteration.
    """
    threads = torch.get_num_threads()
    together = min(threads, _MOST) if device.type == "cpu" else 1
    batches = iter(batches)
    first = list(islice(batches, 2)) if together > 1 else []
    if len(first) < 2:
        yield from map(compute, chain(first, batches))
        return

    def with_a_share(batch: Batch) -> Result:
        torch.set_num_threads(threads // together)  # counts in this thread; MKL has one number for all threads
        return compute(batch)

    def alone(batch: Batch) -> Result:
        torch.set_num_threads(threads)
        return compute(batch)

    try:
        for large, group in groupby(chain(first, batches), is_large):
            if large:
                yield from map(alone, group)
            else:
                yield from ahead(with_a_share, group, together, most=together)
    finally:
        torch.set_num_threads(threads)
