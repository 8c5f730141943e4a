"""Decorators that compile loops with numba, cached so that concurrent processes cannot corrupt the cache."""

import ast
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numba
from llvmlite import ir
from numba import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

_ROOT = Path(__file__).parents[1]

_FALSE = ir.Constant(ir.IntType(1), 0)


def entry(**options) -> Callable:
    """Decorate a function that Python calls: compiled on its first call, cached next to its file or in NUMBA_CACHE_DIR.

    It is compiled again when its file changes, or any file of this project that its file imports from. Numba looks at the file
    of the function alone, so the names of its cached files contain a digest of all of them.

    Every call must pass the same argument types. Different types would put two compiled versions into one cache, and when two
    processes compile different versions first, numba's index can name one version and point to the other.

    Arrays are best copied by loops: numba compiles the assignment of an array to a slice together with its error messages,
    which takes seconds.
    """

    def decorate(function: Callable) -> Callable:
        try:
            function.__qualname__ += f"_{_digest(function.__module__)}"
            compiled = numba.njit(nogil=True, **options)(function)
            compiled._cache = _Cache(function)
            return compiled
        except (OSError, RuntimeError):  # no source, or no writable folder for the cache: each process compiles for itself
            return numba.njit(nogil=True, **options)(function)

    return decorate


class _Cache(FunctionCache):
    """Numba's cache, without which each process compiles for itself: no failure of it ends a process.

    Files are truncated after a power cut, and cannot be written on a full disk. The index is then removed, so that it neither
    stays damaged nor names a file that was not written.
    """

    def load_overload(self, *arguments):
        """The compiled function, None if it is not cached or cannot be read."""
        with self._index_removed_on_failure():
            return super().load_overload(*arguments)

    def save_overload(self, *arguments):
        """Cache a compiled function if possible."""
        with self._index_removed_on_failure():
            super().save_overload(*arguments)

    @contextmanager
    def _index_removed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception:  # damaged files raise almost anything when they are unpickled
            with suppress(OSError):
                Path(self._cache_file._index_path).unlink()


def inner(**options) -> Callable:
    """Decorate a function that only compiled functions call: it is cached as part of them, for any argument types."""
    return numba.njit(nogil=True, **options)


def inlined(**options) -> Callable:
    """As :func:`inner`, for loops whose sums depend on how they are compiled: the caller contains them, and no call is left.

    With a call left, a process that compiles would run the copy that was compiled for that function alone, and a process that
    loads from the cache the copy that was optimised with its caller. With fastmath the two may add in different orders.
    """
    return numba.njit(nogil=True, forceinline=True, **options)


def _trailing_zeros(typing, number):
    return number(number), lambda context, builder, signature, values: builder.cttz(values[0], _FALSE)


trailing_zeros: Callable = intrinsic(_trailing_zeros)
"""In compiled functions: the zeros below the lowest bit of an integer that is set, all its bits if it is 0; one instruction."""


def _set_bits(typing, number):
    return number(number), lambda context, builder, signature, values: builder.ctpop(values[0])


set_bits: Callable = intrinsic(_set_bits)
"""In compiled functions: how many bits of an integer are set; one instruction on most processors."""


def _word_at(typing, text, at):
    def load(context, builder, signature, values):
        text = context.make_array(signature.args[0])(context, builder, values[0])
        place = builder.bitcast(builder.gep(text.data, [values[1]]), ir.IntType(64).as_pointer())
        return builder.load(place, align=1)

    return types.uint64(text, at), load


word_at: Callable = intrinsic(_word_at)
"""In compiled functions: eight bytes of a uint8 array from an offset on, as a uint64 whose lowest byte is the first of them.

The array must be contiguous and have them; nothing is checked.
"""


@cache
def _digest(module: str) -> str:
    """A digest of the files from which the functions of a module are compiled; raises OSError if one cannot be read."""
    whole = hashlib.sha256()
    for name, text in sorted(_sources(module).items()):
        whole.update(f"{name} {len(text)}\n{text}".encode())
    return whole.hexdigest()[:16]


def _sources(module: str) -> dict[str, str]:
    """The source of a module and of those of this project that it imports from, by name."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = _read(name)
            waiting += imported
    return found


@cache
def _read(module: str) -> tuple[str, list[str]]:
    """The source of a module, and the modules of this project that it imports from."""
    text = _ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    names = [node.module for node in ast.parse(text).body if isinstance(node, ast.ImportFrom) and node.module]
    return text, [name for name in names if name.startswith(("cocolvis.", "ess."))]
