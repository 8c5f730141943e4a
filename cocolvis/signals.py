"""Delays signals while something must not be interrupted, such as the start of processes."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from cocolvis.errors import DataError


@contextmanager
def signals_held(*numbers: int) -> Iterator[None]:
    """Delay these signals in this process; processes that are started meanwhile inherit the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Inside this context, worker processes are started, which never see Ctrl-C.

    Raises DataError if the system refuses, for example because there are too many processes or /dev/shm is full.
    """
    try:
        with signals_held(signal.SIGINT):
            yield
    except OSError as error:
        raise DataError(f"cannot start a worker process: {error.strerror or error}; try fewer --workers") from None
