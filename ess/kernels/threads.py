"""A parallel loop whose sums do not depend on the number of threads. Compiled loops run in it without Python's lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any

_LEAST = 256
"""The fewest pixels of a chunk."""

Worker = tuple[Callable[..., Any], Callable[[], Any]]
"""(compute, add) of one thread."""


def chunks(pixels: int, most: int) -> list[tuple[int, int]]:
    """(first, end) of consecutive chunks of at most ``most`` pixels; at least 8 chunks unless they would be too small."""
    chunk = max(_LEAST, min(most, -(-pixels // 8)))
    return [(first, min(first + chunk, pixels)) for first in range(0, pixels, chunk)]


def parallel_for(worker: Callable[[], Worker], parts: Sequence[tuple], threads: int) -> None:
    """Call ``compute(*part)`` for all parts in parallel, and ``add()`` after each, one at a time.

    Each thread gets these two functions from its own call of ``worker()``. The additions happen in the order of the parts, so
    that sums are equal to the last bit for any number of threads. The first exception stops the loop and is raised.
    """
    numbered, turn, added, failed = iter([*enumerate(parts)]), Condition(), 0, False

    def run() -> None:
        nonlocal added, failed
        try:
            compute, add = worker()
            for number, part in numbered:
                compute(*part)
                with turn:
                    while added != number and not failed:
                        turn.wait()
                    if failed:
                        return
                    add()
                    added += 1
                    turn.notify_all()
        except BaseException:
            with turn:
                failed = True
                turn.notify_all()
            raise

    if threads == 1 or len(parts) < 2:
        run()
        return
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        for future in [pool.submit(run) for _ in range(threads)]:
            future.result()
