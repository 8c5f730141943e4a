"""Reads input from disks that may fail: errors that do not concern a single file are retried, and then end the build."""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from cocolvis.errors import DataError

PAUSES = (0.1, 0.4, 1.0, 2.0)
"""Seconds between the attempts: a network file system that recovers in that time causes no failure."""

_NAMES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ)
_DENIED = (errno.EACCES, errno.EPERM)
_NO_SUCH_OFFSET = (errno.EINVAL, errno.EFBIG, errno.EOVERFLOW)
_OF_ONE_FILE = {*_NAMES, *_DENIED, *_NO_SUCH_OFFSET}
"""Errors that concern only the requested file; all others concern the disk, the network or this machine."""

_T = TypeVar("_T")
_allowed: ContextVar[bool] = ContextVar("allow_missing", default=False)
_worn_out = False


class UnreadableInput(DataError):
    """Input that cannot be read because of the disk, the network or this machine, not because of the file itself."""


@contextmanager
def allowing_missing(allowed: bool) -> Iterator[None]:
    """Inside this context, if ``allowed``, every read error counts as a fault of that one file, whatever its cause."""
    token = _allowed.set(allowed)
    try:
        yield
    finally:
        _allowed.reset(token)


def missing_allowed() -> bool:
    """Whether every read error currently counts as a fault of that one file."""
    return _allowed.get()


def with_retries(read: Callable[[], _T], name: str, reason: Callable[[OSError], str | None]) -> _T:
    """The result of ``read``; an error that does not concern a single file is retried after each of ``PAUSES``.

    ``reason`` explains such an error, and returns None for one that concerns a single file. The latter is raised at once, and
    so is any exception other than OSError and MemoryError. If the last attempt fails, this raises UnreadableInput with the
    ``name`` of the input, or the OSError itself inside ``allowing_missing(True)``. After that, calls do not wait again until a
    read has succeeded.
    """
    global _worn_out
    for pause in (*(() if _worn_out else PAUSES), None):
        try:
            result = read()
            _worn_out = False
            return result
        except (OSError, MemoryError) as raised:
            error = _as_os_error(raised)
            why = reason(error)
        if why is None:
            raise error
        if pause is None:
            break
        time.sleep(pause)
    _worn_out = True
    raise unreadable(name, error, why)


def unreadable(name: str, error: OSError | MemoryError, why: str | None = None) -> Exception:
    """The exception to raise when ``name`` cannot be read or decoded for a reason other than its own content."""
    error = _as_os_error(error)
    return error if _allowed.get() else UnreadableInput(f"{name}: cannot be read: {why or strerror(error)}")


@contextmanager
def decoding(name: object) -> Iterator[None]:
    """Inside this context, which decodes ``name``, lack of memory and system errors are not faults of that input."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise unreadable(str(name), error) from None


def _as_os_error(error: OSError | MemoryError) -> OSError:
    return error if isinstance(error, OSError) else OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def strerror(error: OSError) -> str:
    """The system's message for an error."""
    return os.strerror(error.errno) if error.errno else "the system gives no reason"


def system_reason(error: OSError) -> str | None:
    """The reason for an error that does not concern a single file; None for one that does."""
    return None if error.errno in _OF_ONE_FILE else strerror(error)


def archive_reason(error: OSError) -> str | None:
    """Like :func:`system_reason`, for a member of a zip: only an impossible offset is the fault of that member alone."""
    return None if error.errno in _NO_SUCH_OFFSET else strerror(error)


def file_reason(path: str, folder: str) -> Callable[[OSError], str | None]:
    """Like :func:`system_reason`, for a file in ``folder``: if the folder itself is unusable, the file is not at fault."""

    def reason(error: OSError) -> str | None:
        return system_reason(error) or folder_problem(folder) or _unsearchable(path)

    return reason


def folder_problem(folder: str) -> str | None:
    """Why no file in a folder can be read: it is absent, empty or unreadable; None if files can be read."""
    try:
        with os.scandir(folder) as entries:
            return None if next(entries, None) else f"the folder {folder} is empty; is its disk mounted?"
    except FileNotFoundError:
        return f"the folder {folder} does not exist; is its disk mounted?"
    except OSError as error:
        return f"the folder {folder} cannot be read: {strerror(error)}"


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or folder exists; checked with retries."""
    return status(path) is not None


def is_file(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a regular file; checked with retries."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether ``path`` is a folder; checked with retries."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def status(path: str | os.PathLike) -> os.stat_result | None:
    """The status of a file or folder, read with retries; None if it does not exist or cannot be used."""
    try:
        return with_retries(lambda: os.stat(path), os.fsdecode(path), system_reason)
    except (OSError, ValueError):
        return None


def _unsearchable(path: str) -> str | None:
    """Why the name of a file cannot be looked up, which is the fault of its folder; None if it can."""
    try:
        os.lstat(path)
    except OSError as error:
        return f"its folder cannot be searched: {strerror(error)}" if error.errno in _DENIED else system_reason(error)
    return None
