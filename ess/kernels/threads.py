"""A parallel loop whose sums do not depend on the number of threads. Compiled loops run in it without Python's lock."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Any

import numpy as np

from ess.kernels.tiles import zeros

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


def by_grid_rows(
    compute: Callable[[int, int, np.ndarray, np.ndarray], None],
    grid: tuple[int, ...],
    total: np.ndarray | None,
    *,
    scratch: int,
    threads: int,
) -> None:
    """Call ``compute(image, row, moves, rows)`` for all rows of a ``grid`` (B, h, w, C) in parallel.

    It adds to moves (2, w, C) the gradients of this row and of the next one, which are then added to ``total`` (B, h, w, C);
    moves has length 0 if that is None. rows (``scratch``, C) are scratch memory. All are float32.
    """
    images, height, width, classes = grid

    def worker() -> Worker:
        moves, rows, place = zeros(0 if total is None else 2, width, classes), zeros(scratch, classes), [0, 0]

        def run(image: int, row: int) -> None:
            place[:] = image, row
            compute(image, row, moves, rows)

        def add() -> None:
            if total is not None:
                image, row = place
                total[image, row] += moves[0]
                total[image, min(row + 1, height - 1)] += moves[1]
                moves[:] = 0

        return run, add

    parallel_for(worker, [(image, row) for image in range(images) for row in range(height)], threads)
