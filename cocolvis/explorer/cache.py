"""The user's cache folder: arrays that are read without being loaded, and thumbnails under a size limit.

Nothing here is needed: a file that is missing, damaged or cannot be written is made again, or computed each time.
"""

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocolvis.disk.files import Unwritable, write_aside

if TYPE_CHECKING:
    import numpy as np

THUMBNAIL_BYTES = 2**28
"""The most bytes of thumbnails that are kept."""

KEPT_TABLES = 24
"""How many table files are kept; the ones used least recently are removed first."""

_MAGIC = b"cocolvis-tables\n"
_ALIGNMENT = 64
_MAX_HEADER = 2**27
_DIGEST = 32
_BUCKETS = 256
"""Thumbnails are spread over this many folders, each of which observes its share of the limit without knowing the others."""


def cache_folder() -> Path:
    """The folder for everything that can be made again: $COCOLVIS_CACHE, or ``cocolvis`` in the cache folder of the user."""
    if given := os.environ.get("COCOLVIS_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "cocolvis"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "cocolvis"


def _home() -> Path:
    """The user's home; a place where nothing can be written if the user has none, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


def key_of(*parts: str | bytes) -> str:
    """A name for a file of the cache: 32 hexadecimal digits, which depend on all parts and on their order."""
    found = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        found.update(len(content).to_bytes(8, "little") + content)
    return found.hexdigest()[:32]


class Tables:
    """Named arrays and a JSON object. From a file, an array is memory-mapped, and only once it is used.

    ``facts`` is the object; ``tables["name"]`` is a read-only NumPy array.
    """

    def __init__(self, facts: Mapping[str, Any], arrays: Callable[[str], "np.ndarray"]):
        self.facts = facts
        self._arrays = arrays

    def __getitem__(self, name: str) -> "np.ndarray":
        return self._arrays(name)

    @classmethod
    def open(cls, path: Path) -> "Tables | None":
        """The tables of a file that :func:`write_tables` wrote, or None if there is no such file or it is damaged."""
        try:
            found = _opened(path)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(path)  # marks it as used
        return found


def _opened(path: Path) -> Tables:
    """The tables of a file; raises an exception if it is not what was written."""
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = len(_MAGIC) + 8
    length = int.from_bytes(content[len(_MAGIC) : start], "little")
    if content[: len(_MAGIC)] != _MAGIC or length > min(_MAX_HEADER, len(content) - start):
        raise ValueError("not a file of tables")
    header = json.loads(content[start : start + length])
    first = _aligned(start + length)
    if len(content) != first + header["bytes"]:
        raise ValueError("the file was cut off")

    def array(name: str) -> "np.ndarray":
        import numpy as np  # imported late: the first page needs only the facts

        dtype, shape, offset = header["arrays"][name]
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(content, np.dtype(dtype), count, first + offset).reshape(shape)

    return Tables(header["facts"], array)


def write_tables(path: Path, facts: Mapping[str, Any], arrays: Mapping[str, "np.ndarray"]) -> Tables:
    """Keep arrays and a JSON object in a file and return them; they stay in memory if the file cannot be written.

    Files of tables that were not used for the longest time are removed if there are too many in the folder.
    """
    placed: dict[str, tuple[str, tuple[int, ...], int]] = {}
    size = 0
    for name, array in arrays.items():
        placed[name] = array.dtype.str, array.shape, size
        size = _aligned(size + array.nbytes)
    header = json.dumps({"facts": facts, "arrays": placed, "bytes": size}).encode()
    try:
        with write_aside(path, sync=False) as aside, aside.open("wb") as file:
            file.write(_MAGIC + len(header).to_bytes(8, "little") + header)
            first = _aligned(file.tell())
            for name, array in arrays.items():
                file.seek(first + placed[name][2])
                file.write(array.tobytes())
            file.truncate(first + size)
        _keep_newest(path.parent, "*.tables", KEPT_TABLES)
        return _opened(path)
    except (Unwritable, OSError, ValueError):
        return Tables(facts, arrays.__getitem__)


def _aligned(position: int) -> int:
    return -(-position // _ALIGNMENT) * _ALIGNMENT


def _keep_newest(folder: Path, pattern: str, most: int) -> None:
    with suppress(OSError):
        for old in sorted(folder.glob(pattern), key=lambda path: -path.stat().st_mtime)[most:]:
            old.unlink()


class Thumbnails:
    """Small pictures by key, in files below ``folder``, of at most about ``most`` bytes together.

    Each file ends in a digest of the picture, which reveals damage. A folder that cannot be written keeps nothing. Any number
    of threads and processes may use it at the same time.
    """

    def __init__(self, folder: Path, most: int = THUMBNAIL_BYTES):
        self._folder, self._most = folder, most // _BUCKETS

    def get(self, key: str) -> bytes | None:
        """The picture of a key, or None if there is none or it is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        picture = content[:-_DIGEST]
        if content != _with_digest(picture):
            return None
        with suppress(OSError):
            os.utime(path)  # marks it as used
        return picture

    def put(self, key: str, content: bytes) -> None:
        """Keep a picture, and remove the ones of its folder that were used least recently if they are too many."""
        path = self._path(key)
        with suppress(Unwritable):
            with write_aside(path, sync=False) as aside:
                aside.write_bytes(_with_digest(content))
            self._make_room(path.parent)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key[2:]}.jpg"

    def _make_room(self, bucket: Path) -> None:
        with suppress(OSError), os.scandir(bucket) as entries:
            found = [(status.st_mtime_ns, status.st_size, entry.path) for entry in entries if (status := entry.stat())]
            excess = sum(size for _, size, _ in found) - self._most
            for _, size, path in sorted(found):
                if excess <= 0:
                    break
                os.unlink(path)
                excess -= size


def _with_digest(content: bytes) -> bytes:
    """A picture followed by its digest."""
    return content + key_of(content).encode()
