"""Runs a function over many tasks in several processes and yields the results in order."""

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

import cv2

from cocolvis.errors import DataError
from cocolvis.signals import starting_workers

T = TypeVar("T")
R = TypeVar("R")

_BATCH = 16
"""Tasks that a process gets at a time."""


def in_order(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Generator[R, None, None]:
    """Yield ``function(task)`` for each task, in the order of the tasks.

    With more than one of the ``workers``, they are processes, so that function, tasks and results must be picklable. Raises
    DataError if one of them dies or cannot start.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    tasks = iter(tasks)
    batches = iter(lambda: list(islice(tasks, _BATCH)), [])
    with starting_workers():
        pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)
    waiting: deque[Future[list[R]]] = deque()
    try:
        while True:
            with starting_workers():
                new = islice(batches, 2 * workers - len(waiting))
                waiting.extend(pool.submit(_all, function, batch) for batch in new)
            if not waiting:
                return
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise DataError("a worker process died (out of memory?); nothing was written") from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _all(function: Callable[[T], R], batch: Iterable[T]) -> list[R]:
    return [function(task) for task in batch]


def _start() -> None:
    """Prepare a worker: it uses one core, and ends with its parent."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if parent := parent_process():
        parent.join()
        os._exit(1)
