"""Reading input on a disk that may stumble: an error that is not about one file is tried again, and then ends the work."""

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
"""Seconds between the tries: a network file system that comes back within them costs nothing."""

_NAMES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EILSEQ)
_DENIED = (errno.EACCES, errno.EPERM)
_NOWHERE = (errno.EINVAL, errno.EFBIG, errno.EOVERFLOW)
_OF_ONE_FILE = {*_NAMES, *_DENIED, *_NOWHERE}
"""Errors that say something of the file that was asked for; every other is of the disk, the network, or this machine."""

ADVICE = (
    "finished shards are kept: go on with --resume when it can be read again, or with --resume --allow-missing to leave out"
    " what cannot be read"
)

_T = TypeVar("_T")
_allowed: ContextVar[bool] = ContextVar("allow_missing", default=False)
_worn_out = False


class UnreadableInput(DataError):
    """Input that cannot be read for a reason that is not that file's own."""


@contextmanager
def allowing(missing: bool) -> Iterator[None]:
    """Where ``missing`` is true, input that cannot be read is its own fault meanwhile, whatever the reason."""
    token = _allowed.set(missing)
    try:
        yield
    finally:
        _allowed.reset(token)


def allowed() -> bool:
    """Whether input that cannot be read is its own fault at present."""
    return _allowed.get()


def patiently(read: Callable[[], _T], name: str, reason: Callable[[OSError], str | None]) -> _T:
    """What ``read`` returns, after some tries.

    ``reason`` says why an error is not about one file, None where it is: that is raised at once, as any other exception
    is. What is left after the last try is an UnreadableInput that calls the input ``name``, or inside of ``allowing(True)``
    the OSError itself. Nobody waits again before something could be read.
    """
    global _worn_out
    for pause in (*(() if _worn_out else PAUSES), None):
        try:
            found = read()
            _worn_out = False
            return found
        except (OSError, MemoryError) as raised:
            error = _of_memory() if isinstance(raised, MemoryError) else raised
            why = reason(error)
        if why is None:
            raise error
        if pause is None:
            break
        time.sleep(pause)
    _worn_out = True
    raise given_up(name, error, why)


def given_up(name: str, error: OSError | MemoryError, why: str | None = None) -> Exception:
    """What to raise where the input ``name`` cannot be read, or decoded, for a reason that is not its own."""
    error = _of_memory() if isinstance(error, MemoryError) else error
    return error if _allowed.get() else UnreadableInput(f"{name}: cannot be read: {why or strerror(error)}; {ADVICE}")


@contextmanager
def decoding(name: object) -> Iterator[None]:
    """Where memory, or the system, fails while the input ``name`` is decoded, that is not its own fault."""
    try:
        yield
    except (OSError, MemoryError) as error:
        raise given_up(str(name), error) from None


def _of_memory() -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def strerror(error: OSError) -> str:
    """An error of the system in its words, and never as an object writes itself."""
    return os.strerror(error.errno) if error.errno else "the system gives no reason"


def of_the_system(error: OSError) -> str | None:
    """The reason of an error that is not about the file that was asked for; None where it is."""
    return None if error.errno in _OF_ONE_FILE else strerror(error)


def of_an_archive(error: OSError) -> str | None:
    """As :func:`of_the_system`, of a zip that holds many: only a place that no file can have is of one of them."""
    return None if error.errno in _NOWHERE else strerror(error)


def of_a_file(path: str, folder: str) -> Callable[[OSError], str | None]:
    """As :func:`of_the_system`, of a file that should lie below ``folder`` with others: without that, no file is to blame."""

    def reason(error: OSError) -> str | None:
        return of_the_system(error) or wrong_with(folder) or _closed(path)

    return reason


def wrong_with(folder: str) -> str | None:
    """Why no file in a folder can be read: it is absent, empty or closed, as where its disk is not mounted."""
    try:
        with os.scandir(folder) as entries:
            return None if next(entries, None) else f"the folder {folder} is empty; is its disk mounted?"
    except FileNotFoundError:
        return f"the folder {folder} does not exist; is its disk mounted?"
    except OSError as error:
        return f"the folder {folder} cannot be read: {strerror(error)}"


def exists(path: str | os.PathLike) -> bool:
    """Whether a file or folder is there, found out patiently."""
    return status(path) is not None


def is_file(path: str | os.PathLike) -> bool:
    """Whether a file is there, found out patiently."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a folder is there, found out patiently."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def status(path: str | os.PathLike) -> os.stat_result | None:
    """The status of a file or folder, found out patiently; None where nothing is there that could be used."""
    try:
        return patiently(lambda: os.stat(path), os.fsdecode(path), of_the_system)
    except (OSError, ValueError):
        return None


def _closed(path: str) -> str | None:
    """Why not even the name of a file can be looked up: the folder is to blame."""
    try:
        os.lstat(path)
    except OSError as error:
        return f"its folder cannot be searched: {strerror(error)}" if error.errno in _DENIED else of_the_system(error)
    return None
