"""The pixels of a batch divided among threads; the compiled loops hold no lock of Python's."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition

_LEAST = 256
"""Pixels that are worth a turn."""


def chunks(pixels: int, most: int) -> list[tuple[int, int]]:
    """(first, end) of parts of at most so many pixels; of few pixels, enough parts for some threads."""
    chunk = max(_LEAST, min(most, -(-pixels // 8)))
    return [(first, min(first + chunk, pixels)) for first in range(0, pixels, chunk)]


def shared(worker: Callable[[], tuple[Callable[..., None], Callable[[], None]]], parts: Sequence[tuple], threads: int) -> None:
    """Call ``compute(*part)`` for all parts, some at a time, and after each ``add()``, one at a time.

    Each thread has the two from a ``worker()`` of its own. Additions come in the order of the parts, so that sums are the same
    to the last bit whatever the number of threads. The first exception ends the work.
    """
    numbered, turn, added, failed = iter([*enumerate(parts)]), Condition(), 0, False

    def run():
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
        return run()
    with ThreadPoolExecutor(min(threads, len(parts))) as pool:
        for future in [pool.submit(run) for _ in range(threads)]:
            future.result()
