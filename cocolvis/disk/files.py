"""Files that are either whole or absent: written aside, synced, renamed."""

import ctypes
import hashlib
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cocolvis.errors import DataError
from cocolvis.progress import quiet
from cocolvis.text import decoded

_LARGEST_TEXT = 2**24
"""Bytes of the largest text of a person's making that is read: settings, lists of images and of classes."""


_BLOCK = 2**20
"""Bytes that are read at a time to be hashed."""


class Unwritable(DataError):
    """The file system refused: a full disk, a folder that cannot be written."""


@contextmanager
def write_aside(path: Path, permit: Callable[[], None] = lambda: None, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is synced and takes the name, otherwise it is removed.

    ``permit`` is called before anything is written, and again before the file takes its name: it raises where that must not be.
    Without ``sync`` the caller syncs many files at once (:func:`sync_disk`): until then a power cut may leave the name without
    its contents. An Unwritable, which is a DataError, where the file system refuses.
    """
    with _aside(path, permit) as aside:
        yield aside
        if sync:
            _sync(aside)
        permit()
        os.replace(aside, path)
        if sync:
            sync_folder(path.parent)


def create_json(path: Path, content: Any, permit: Callable[[], None] = lambda: None) -> bool:
    """Write readable JSON, whole, unless something has the name; whether it was written. An Unwritable as above.

    Of several processes that do this at the same time exactly one succeeds.
    """
    with _aside(path, permit) as aside:
        aside.write_text(_pretty(content), encoding="utf-8")
        _sync(aside)
        permit()
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with path.open("xb") as file:
                    file.write(aside.read_bytes())
                    os.fsync(file.fileno())
            except FileExistsError:
                return False
        sync_folder(path.parent)
    return True


@contextmanager
def _aside(path: Path, permit: Callable[[], None]) -> Iterator[Path]:
    """A temporary path beside ``path`` in a folder that exists, removed in the end; an OSError becomes an Unwritable."""
    permit()
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def reason(error: OSError) -> str:
    """What the system says of a failure, on one line."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]  # HDF5 writes paragraphs


def sweep(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Remove what killed processes left half-written of ``wanted`` files in a folder; nobody else may be at work on them."""
    for left in folder.glob(f".*.{'[0-9a-f]' * 12}.tmp"):
        if wanted(left.name[1:-17]):
            with suppress(OSError):
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_disk(folder: Path) -> None:
    """Make all that was written to the file system of a folder survive a power cut, in one go; an Unwritable where that fails.

    One call for thousands of files: an fsync each would wait for the disk as often, and write the journal as often.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
            if syncfs is None:  # not Linux
                os.sync()
            elif syncfs(handle):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        finally:
            os.close(handle)
    except OSError as error:
        raise Unwritable(f"{folder}: cannot be written: {reason(error)}") from None


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure, whole or not at all; a DataError where that fails or the ending names no picture format."""
    try:
        with write_aside(path) as aside:
            figure.savefig(aside, dpi=160, format=path.suffix[1:] or "png")
    except ValueError as error:
        raise DataError(f"{path}: the plot cannot be written: {str(error).splitlines()[0]}") from None


def write_json(path: Path, content: Any, permit: Callable[[], None] = lambda: None) -> None:
    """Write readable JSON, whole or not at all; ``permit`` as for :func:`write_aside`."""
    with write_aside(path, permit) as aside:
        aside.write_text(_pretty(content), encoding="utf-8")


def _pretty(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file; a DataError that names it when it is absent, malformed or not UTF-8."""
    try:
        return json.loads(decoded(path.read_bytes(), path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None


def is_absent(path: Path) -> bool:
    """Whether nothing has this name; a name that cannot be looked up counts as present."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def regular_file(path: Path) -> os.stat_result:
    """The status of a file that opens at once and ends somewhere; a DataError for a folder, a pipe, a device, or none."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is a folder, a pipe or a device; expected a file")
    return status


def read_text(path: Path) -> str:
    """A small text file, without a byte order mark and with "\\n" at the end of every line.

    A DataError that names it when it is absent, too large or not UTF-8.
    """
    size = regular_file(path).st_size
    if size > _LARGEST_TEXT:
        raise DataError(f"{path}: has {size} bytes; at most {_LARGEST_TEXT} are read")
    try:
        return decoded(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file, without empty ones at its end; a DataError as for :func:`read_text`."""
    text = read_text(path).rstrip()
    return text.split("\n") if text else []


def sha256(path: Path, read: Callable[[int], None] = quiet) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; ``read`` is told how many bytes more were read, now and then."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
                read(count)
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
