"""Writing files atomically (a temporary file, synced, then renamed), and reading small text and JSON files."""

import ctypes
import errno
import hashlib
import json
import os
import re
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from cocolvis.errors import DataError
from cocolvis.progress import ignore
from cocolvis.text import Buffer, decoded, one_line

_LARGEST_TEXT = 2**24
"""The most bytes of a hand-written text file that is read: settings, lists of images or classes."""

_BLOCK = 2**20
"""How many bytes are hashed at a time."""

LONGEST_NAME = 255
"""The most bytes of the name of a file, without its folders, that file systems accept."""

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)
"""Errors of file systems such as vboxsf, 9p and CIFS that do not sync folders; the renames in them have succeeded."""

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
"""The escape of a surrogate: half of a character, or a byte of a file name that is not UTF-8."""

_FOLDER = "it is a folder; expected the name of a file"


class Unwritable(DataError):
    """The file system refused to write, for example because the disk is full or the folder is read-only."""


@contextmanager
def write_aside(path: Path, permit: Callable[[], None] = lambda: None, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; on success it is synced and renamed to ``path``, on an exception it is removed.

    ``permit`` is called before anything is written and again before the rename; it raises an exception to prevent either.
    Without ``sync``, the caller must sync many files at once with :func:`sync_disk`; until then a power cut may leave ``path``
    without its contents. Raises Unwritable if the file system refuses.
    """
    with _aside(path, permit) as aside:
        yield aside
        if sync:
            _sync(aside)
        permit()
        os.replace(aside, path)
        if sync:
            sync_folder(path.parent)


def check_writable(path: Path) -> None:
    """Raise Unwritable if a file cannot be written to ``path``, so that hours of work are not lost in the end.

    A file that exists is not changed, and no folder is created. A disk that fills up later cannot be foreseen.
    """
    folder = next((folder for folder in path.absolute().parents if os.path.lexists(folder)), path)
    refusals = {
        _FOLDER: os.path.isdir(path),
        "it is not a regular file, and would be replaced by one": os.path.exists(path) and not os.path.isfile(path),
        f"a name has more than {LONGEST_NAME} bytes": any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts),
        f"{folder} is not a directory": not os.path.isdir(folder),
        f"{folder} is read-only, or belongs to another user": not os.access(folder, os.W_OK | os.X_OK),
    }
    if why := next((why for why, holds in refusals.items() if holds), None):
        raise Unwritable(f"{path}: cannot be written: {why}")


def create_json(path: Path, content: Any, permit: Callable[[], None] = lambda: None) -> bool:
    """Write indented JSON atomically unless ``path`` exists, and return whether it was written.

    If several processes do this at the same time, exactly one succeeds. Raises Unwritable if the file system refuses.
    """
    with _aside(path, permit) as aside:
        aside.write_bytes(pretty(content))
        _sync(aside)
        permit()
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # the file system does not support hard links
            if not _rename_once(aside, path):
                return False
        sync_folder(path.parent)
    return True


def _rename_once(aside: Path, path: Path) -> bool:
    """Rename ``aside`` to ``path`` unless that exists, without hard links; return whether it was renamed.

    A third file, which only one process at a time can create, keeps the others out in between. If it does not disappear for ten
    seconds, a killed process has left it.
    """
    claim = path.with_name(_aside_name(path.name, "0" * 12))
    for _ in range(100):
        try:
            claim.touch(exist_ok=False)
            break
        except FileExistsError:
            time.sleep(0.1)
    try:
        if is_absent(path):
            os.replace(aside, path)
            return True
        return False
    finally:
        claim.unlink(missing_ok=True)


@contextmanager
def _aside(path: Path, permit: Callable[[], None]) -> Iterator[Path]:
    """Create the folder of ``path``, yield a temporary path in it and remove that at the end; raises Unwritable for OSError.

    If ``permit`` refuses by then, as when another process has taken the folder over and swept it, its exception is the cause
    and is raised instead.
    """
    permit()
    if not path.name or path.name == "..":
        raise Unwritable(f"{path}: cannot be written: {_FOLDER}")
    aside = path.with_name(_aside_name(path.name, uuid.uuid4().hex[:12]))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        yield aside
    except OSError as error:
        permit()
        raise Unwritable(f"{path}: cannot be written: {reason(error)}") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def _aside_name(name: str, token: str) -> str:
    """The name of a temporary file of a file; a name that would become too long for file systems is cut."""
    room = LONGEST_NAME - len("..123456789012.tmp")
    return f".{os.fsencode(name)[:room].decode('utf-8', 'ignore')}.{token}.tmp"


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def reason(error: OSError) -> str:
    """The message of a failure, on one line."""
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]  # HDF5 writes paragraphs


def sweep(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Remove the temporary files of ``wanted`` names that killed processes left in a folder; nothing may be writing them."""
    for left in folder.glob(f".*.{'[0-9a-f]' * 12}.tmp"):
        if wanted(left.name[1:-17]):
            with suppress(OSError):
                left.unlink()


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames inside it survive a power cut; some file systems cannot, and only sync files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def sync_disk(folder: Path) -> None:
    """Sync the whole file system of a folder; raises Unwritable if that fails.

    This is one call for thousands of files; an fsync of each would wait for the disk and its journal every time.
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


def check_figure(path: Path) -> None:
    """Raise DataError if :func:`save_figure` cannot write to ``path``, as :func:`check_writable` does."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in known:
        raise DataError(f"{path}: the plot cannot be written: no format is named {path.suffix!r}; expected {', '.join(known)}")
    check_writable(path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure atomically; raises DataError if that fails or the suffix is not a known picture format."""
    try:
        with write_aside(path) as aside:
            figure.savefig(aside, dpi=160, format=path.suffix[1:] or "png")
    except ValueError as error:
        raise DataError(f"{path}: the plot cannot be written: {one_line(error)}") from None


def write_json(path: Path, content: Any, permit: Callable[[], None] = lambda: None) -> None:
    """Write indented JSON atomically; ``permit`` as for :func:`write_aside`."""
    with write_aside(path, permit) as aside:
        aside.write_bytes(pretty(content))


def pretty(content: Any) -> bytes:
    """Indented JSON in UTF-8; lone surrogates, as in file names that are not text, become escapes such as \\udcff.

    Python's encoder takes several times as long if it indents, so msgspec indents what it writes, if it is strict JSON.
    """
    try:
        return msgspec.json.format(json.dumps(content, ensure_ascii=False).encode(), indent=1) + b"\n"
    except (UnicodeEncodeError, msgspec.DecodeError):  # lone surrogates, or a number that is not finite
        return json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def read_json(path: Path) -> Any:
    """The contents of a JSON file; raises DataError if it is absent, malformed or not UTF-8."""
    try:
        return json.loads(decoded(path.read_bytes(), path))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None


def read_versioned(path: Path, name: str, version: int) -> dict[str, Any]:
    """The object in a JSON file that states this format and version; raises DataError if it does not, or cannot be read."""
    content = read_json(path)
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if found != (name, version):
        raise DataError(f"{path}: format and version are {one_line(str(found))}, expected {(name, version)}")
    return content


def parse_json(content: Buffer) -> Any:
    """The value of strict JSON in UTF-8, with the escapes of lone surrogates that :func:`write_json` writes.

    Raises msgspec.DecodeError if it is malformed.
    """
    try:
        return msgspec.json.decode(content)
    except msgspec.DecodeError:
        if not _SURROGATE.search(content):
            raise
        try:
            return json.loads(bytes(content), parse_constant=_refuse)
        except ValueError:
            pass
        raise


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def is_absent(path: Path) -> bool:
    """Whether nothing has this name; a name that cannot be looked up counts as present."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def regular_file(path: Path, most: int | None = None) -> os.stat_result:
    """The status of a regular file; raises DataError if ``path`` is absent, not a file, or has more than ``most`` bytes."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path}: does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is a folder, a pipe or a device; expected a file")
    if most is not None and status.st_size > most:
        raise DataError(f"{path}: has {status.st_size} bytes; at most {most} are read")
    return status


def read_text(path: Path) -> str:
    """The text of a small file, without a byte order mark and with "\\n" at the end of every line.

    Raises DataError if it is absent, too large or not UTF-8.
    """
    regular_file(path, _LARGEST_TEXT)
    try:
        return decoded(path.read_bytes(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file, without empty lines at the end; raises DataError as :func:`read_text` does."""
    text = read_text(path).rstrip()
    return text.split("\n") if text else []


def sha256(path: Path, read: Callable[[int], None] = ignore, skip: range = range(0)) -> str:
    """The SHA-256 of a file, in hexadecimal, as if the bytes at the positions ``skip`` were not there.

    ``read`` is called with the number of bytes in each block that was hashed. Raises DataError if the file cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            for start, stop in ((0, skip.start), (skip.stop, sys.maxsize)):
                file.seek(start)
                while count := file.readinto(block[: stop - start]):
                    digest.update(block[:count])
                    read(count)
                    start += count
        return digest.hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
