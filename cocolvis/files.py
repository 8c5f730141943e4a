"""Files that are either whole or absent: written aside, synced, renamed."""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cocolvis.errors import DataError


class Unwritable(DataError):
    """The file system refused: a full disk, a folder that cannot be written."""


@contextmanager
def write_aside(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on a clean exit it is synced and takes the name, otherwise it is removed.

    An Unwritable, which is a DataError, where the file system refuses.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]  # HDF5 writes paragraphs
        raise Unwritable(f"{path}: cannot be written: {reason}") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-written in a folder; nobody else may be at work."""
    for left in folder.glob(f".*.{'[0-9a-f]' * 12}.tmp"):
        with suppress(OSError):
            left.unlink()


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON, whole or not at all."""
    with write_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Parse a JSON file; a DataError that names it when it is absent or malformed."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {error}") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
