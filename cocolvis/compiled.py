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
