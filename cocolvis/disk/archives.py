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

from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.limits import MAX_PICTURE
from cocolvis.text import Buffer

_T = TypeVar("_T")


_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of name and extra field: what stands between a member's header and its bytes."""

_BLOCK = 2**24


_METHODS = {
    1: "Shrink",
    6: "Implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    20: "Zstandard",
    93: "Zstandard",
    95: "XZ",
    97: "WavPack",
    98: "PPMd",
}
"""How the members of a zip may be packed, by the numbers in the table of contents."""

_AES = 99
"""The number of those that are encrypted in a newer way than a flag tells."""

UNPACK = "unpack the zip, or pack it again with Deflate"
"""What to do about members that are packed otherwise."""

_EXPANSION = 1100
"""Deflate never shrinks by more than 1032; who declares more has no such bytes."""

_BROKEN = (OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged zip raises."""


class Place(NamedTuple):
    """A file: ``path`` itself, or the member of the zip ``path`` whose header begins at ``offset``.

    Holds all that reading takes, so that a worker needs no table of contents; pickles small. ``folder`` is the folder that
    holds a file beside others like it, by default the one in which it lies; without it, no file of it is missing by itself.
    ``stamp`` tells the zip that was looked into from one that takes its place, ``unread`` says how the member is packed where
    that is not read here.
    """

    path: str
    member: str | None = None
    offset: int = 0
    packed: int = 0
    size: int = 0
    deflated: bool = False
    crc: int = 0
    folder: str = ""
    stamp: tuple[int, int, int] | None = None
    unread: str = ""

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}: {self.member}"

    def read(self) -> bytes:
        """The bytes of a small file, read patiently; an OSError or ValueError that says what is wrong with it.

        A DataError where something else is wrong: with the disk, its folder, or the zip that holds it.
        """
        if self.unread:
            raise ValueError(f"it is {self.unread} in {self.path}, which is not read; {UNPACK}")
        if max(self.size, self.packed) > MAX_PICTURE:
            raise ValueError(f"the zip declares {self.size} bytes for it; at most {MAX_PICTURE} are read")
        try:
            return self._patiently(self._whole if self.member is None else self._member)
        except ValueError:
            if self.stamp not in (None, _stamp(os.stat(self.path))):
                reason = "was changed or replaced after the build had looked into it; build again"
                raise ValueError(f"{self.path} {reason}") from None
            raise

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
        if self.unread:
            raise ValueError(f"it is {self.unread}, which is not read; {UNPACK}")
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


def members(archive: Path) -> dict[str, Place]:
    """Member name -> place, of the files in a zip, with "/" between folders; a DataError when it is no zip.

    Asked again, the table of contents is read again only where the zip was changed or replaced since.
    """
    try:
        return reading.patiently(lambda: _members(archive, _stamp(os.stat(archive))), str(archive), reading.of_the_system)
    except _BROKEN as error:
        raise DataError(f"{archive}: cannot be read as a zip: {_in_words(error)}; download it again") from None


def _in_words(error: Exception) -> str:
    """What is wrong with a file, whatever a library says of it."""
    if isinstance(error, OSError):
        return reading.strerror(error)
    if isinstance(error, ValueError):  # these are ours, or the system's
        return str(error)
    return "memory does not suffice" if isinstance(error, MemoryError) else "its bytes are damaged"


@lru_cache(maxsize=8)
def _members(archive: Path, stamp: tuple[int, int, int]) -> dict[str, Place]:
    with zipfile.ZipFile(archive) as opened:
        return {
            m.filename.replace("\\", "/"): Place(
                path=str(archive),
                member=m.filename,
                offset=m.header_offset,
                packed=m.compress_size,
                size=m.file_size,
                deflated=m.compress_type != zipfile.ZIP_STORED,
                crc=m.CRC,
                stamp=stamp,
                unread=_unread(m),
            )
            for m in opened.infolist()
            if not m.filename.endswith(("/", "\\"))
        }


def _unread(member: zipfile.ZipInfo) -> str:
    """How a member is packed that is not read; empty where it is read."""
    if member.flag_bits & 1 or member.compress_type == _AES:
        return "encrypted"
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return ""
    return f"packed with {_METHODS.get(member.compress_type, f'method {member.compress_type}')}"


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from one that takes its place."""
    return status.st_mtime_ns, status.st_size, status.st_ino
