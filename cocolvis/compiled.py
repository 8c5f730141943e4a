"""How numba compiles the loops: once a machine, and so that processes which do it at the same time cannot mix their work up."""

from collections.abc import Callable

import numba


def entry(**options) -> Callable:
    """Decorates a function that Python calls: compiled on its first call, cached beside its file or in NUMBA_CACHE_DIR.

    It must always meet the same types. Two kinds of arguments are two compiled forms in one cache, and where two processes
    compile different ones first, numba's index can end up naming one and pointing at the other.
    """

    def decorate(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # there is no folder to cache it in: compile in each process
            return numba.njit(nogil=True, **options)(function)

    return decorate


def inner(**options) -> Callable:
    """Decorates a function that only compiled ones call: it is cached as a part of them, for whatever types they hand it."""
    return numba.njit(nogil=True, **options)
