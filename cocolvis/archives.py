"""Files as they lie on disk or inside a zip that nobody unpacked: found once, read from any process."""

import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from cocolvis import reading
from cocolvis.errors import DataError

_T = TypeVar("_T")

Buffer = bytes | bytearray | mmap.mmap

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of name and extra field: what stands between a member's header and its bytes."""

_BLOCK = 2**24

MAX_PICTURE = 2**28
"""Bytes of the largest picture that is read; more is an attack on memory."""

_EXPANSION = 1100
"""Deflate never shrinks by more than 1032; who declares more has no such bytes."""

_BROKEN = (OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged zip raises."""


class Place(NamedTuple):
    """A file: ``path`` itself, or the member of the zip ``path`` whose header begins at ``offset``.

    Holds all that reading takes, so that a worker needs no table of contents; pickles small. ``folder`` is the folder that
    holds a file beside others like it, by default the one in which it lies; without it, no file of it is missing by itself.
    """

    path: str
    member: str | None = None
    offset: int = 0
    packed: int = 0
    size: int = 0
    deflated: bool = False
    crc: int = 0
    folder: str = ""

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}: {self.member}"

    def read(self) -> bytes:
        """The bytes of a small file, read patiently; an OSError or ValueError that says what is wrong with it.

        A DataError where something else is wrong: with the disk, its folder, or the zip that holds it.
        """
        if max(self.size, self.packed) > MAX_PICTURE:
            raise ValueError(f"the zip declares {self.size} bytes for it; at most {MAX_PICTURE} are read")
        return self._patiently(self._whole if self.member is None else self._member)

    def _patiently(self, read: Callable[[], _T]) -> _T:
        folder = self.folder or os.path.dirname(self.path) or "."
        reason = reading.of_a_file(self.path, folder) if self.member is None else reading.of_an_archive
        return reading.patiently(read, str(self), reason)

    def _member(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            header = file.read(_LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
                raise ValueError(f"{self.path} is damaged or was changed: no member begins at byte {self.offset}")
            _, name, extra = _LOCAL_HEADER.unpack(header)
            file.seek(name + extra, 1)
            content = file.read(self.packed)
        if self.deflated:
            content = _inflated(content, self.size)
        if len(content) != self.size or zlib.crc32(content) != self.crc:
            raise ValueError(f"its bytes in {self.path} do not have the recorded size and CRC-32")
        return content

    def _whole(self) -> bytes:
        found = os.stat(self.path)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no file")  # opening a named pipe would wait for ever
        if found.st_size > MAX_PICTURE:
            raise ValueError(f"it has {found.st_size} bytes; at most {MAX_PICTURE} are read")
        with open(self.path, "rb") as file:
            return file.read()

    def length(self) -> int:
        """The bytes that :meth:`read` will bring; 0 where something is wrong with the file. A DataError as there."""
        try:
            size = self.size if self.member is not None else self._patiently(lambda: os.stat(self.path)).st_size
        except OSError:
            return 0
        return size if size <= MAX_PICTURE else 0

    def map(self) -> Buffer:
        """The bytes of a large file: a memory map where it lies unpacked. A DataError that names it where that fails."""
        try:
            return reading.patiently(self._mapped if self.member is None else self._unpacked, str(self), reading.of_the_system)
        except _BROKEN as error:
            raise DataError(f"{self}: cannot be read: {_in_words(error)}") from None

    def _mapped(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _unpacked(self) -> bytearray:
        if self.packed > os.stat(self.path).st_size or self.size > _EXPANSION * self.packed:
            raise ValueError(f"the zip declares {self.size} bytes, packed into {self.packed}; download it again")
        content = bytearray(self.size)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as member, memoryview(content) as view:
            at = 0
            while read := member.readinto(view[at : at + _BLOCK]):
                at += read
        if at != self.size:
            raise ValueError(f"holds {at} bytes, the zip declares {self.size}")
        return content


def _inflated(packed: bytes, size: int) -> bytes:
    """At most ``size`` + 1 bytes of a raw deflate stream, whatever it would grow to."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error:
        raise ValueError("its compressed bytes are damaged") from None


@lru_cache(maxsize=8)
def members(archive: Path) -> dict[str, Place]:
    """Member name -> place, of the files in a zip that can be read; a DataError when it is no zip."""
    try:
        return reading.patiently(lambda: _listed(archive), str(archive), reading.of_the_system)
    except _BROKEN as error:
        raise DataError(f"{archive}: cannot be read as a zip: {_in_words(error)}; download it again") from None


def _listed(archive: Path) -> dict[str, Place]:
    with zipfile.ZipFile(archive) as opened:
        return {
            m.filename: Place(
                str(archive), m.filename, m.header_offset, m.compress_size, m.file_size, m.compress_type != 0, m.CRC
            )
            for m in opened.infolist()
            if not m.is_dir() and m.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not m.flag_bits & 1
        }


def _in_words(error: Exception) -> str:
    """What is wrong with a file, whatever a library says of it."""
    if isinstance(error, OSError):
        return reading.strerror(error)
    if isinstance(error, ValueError):  # these are ours, or the system's
        return str(error)
    return "memory does not suffice" if isinstance(error, MemoryError) else "its bytes are damaged"
