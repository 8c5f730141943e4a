"""Decorators that compile loops with numba, cached so that concurrent processes cannot corrupt the cache."""

from collections.abc import Callable

import numba


def entry(**options) -> Callable:
    """Decorate a function that Python calls: compiled on its first call, cached next to its file or in NUMBA_CACHE_DIR.

    Every call must pass the same argument types. Different types would put two compiled versions into one cache, and when two
    processes compile different versions first, numba's index can name one version and point to the other.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # no writable folder for the cache: each process compiles for itself
            return numba.njit(nogil=True, **options)(function)

    return decorate


def inner(**options) -> Callable:
    """Decorate a function that only compiled functions call: it is cached as part of them, for any argument types."""
    return numba.njit(nogil=True, **options)


def inlined(**options) -> Callable:
    """As :func:`inner`, for loops whose sums depend on how they are compiled: the caller contains them, and no call is left.

    With a call left, a process that compiles would run the copy that was compiled for that function alone, and a process that
    loads from the cache the copy that was optimised with its caller. With fastmath the two may add in different orders.
    """
    return numba.njit(nogil=True, forceinline=True, **options)
