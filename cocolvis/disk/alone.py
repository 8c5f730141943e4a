"""A lock of the system on a folder, for short work on one machine; ``lock`` holds a folder across machines, as builds need."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocolvis.disk.files import reason
from cocolvis.errors import DataError


@contextmanager
def alone_in(folder: Path, occupied: str | None = None) -> Iterator[int]:
    """Lock a folder, which is created if it is absent, against others that do the same; yields its open descriptor.

    If another process has it, this waits, or raises DataError with the text ``occupied`` if that is given. Processes that
    inherit the descriptor hold the lock too, even after this one was killed. On a file system without locks, nothing is locked.
    Raises DataError if the folder cannot be created or opened.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {reason(error)}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if occupied else 0))
        except BlockingIOError:
            raise DataError(f"{folder}: {occupied}") from None
        except OSError:
            pass  # the file system does not support locks
        yield handle
    finally:
        os.close(handle)
