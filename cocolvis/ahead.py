"""Computes results ahead of time in threads, so that files are read and written while something else is computed."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int, *, most: int | None = None
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computed by ``threads`` threads before the results are requested.

    The calling thread iterates over ``items``, at most ``most`` ahead, by default ``2 * threads``. The first exception ends the
    iteration.
    """
    most = 2 * threads if most is None else most
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
