"""Files on disk or inside zips: located once, then read from any process without unpacking the zip."""

import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.limits import MAX_PICTURE
from cocolvis.text import Buffer

_T = TypeVar("_T")

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""A member's header: its signature, and the lengths of the name and extra field that follow it."""

_BLOCK = 2**24
"""How many bytes are unpacked at a time."""

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
"""Compression methods by their numbers in the central directory."""

_AES = 99
"""The method number of members that are encrypted with AES, which the encryption flag need not show."""

UNPACK = "unpack the zip, or pack it again with Deflate"
"""What to do about members with another compression method."""

_EXPANSION = 1100
"""The largest plausible ratio of unpacked to packed bytes: Deflate reaches 1032 at most."""

_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Suffixes under which a missing picture may exist, tried in lower and upper case."""

_BROKEN = (OSError, ValueError, EOFError, MemoryError, OverflowError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""The exceptions that reading a damaged zip raises."""


class Place(NamedTuple):
    """The location of a file: ``path`` itself, or the member of the zip ``path`` whose header begins at byte ``offset``.

    It holds everything needed to read the file, so that a worker does not read the central directory again, and it pickles to a
    few bytes. ``folder`` is the folder of all files of this kind, by default the parent of ``path``; if it is unusable, a
    missing file is not the fault of that file. ``stamp`` identifies the version of the zip that was indexed. ``unread`` says
    how the member is packed if that is not supported, and is empty otherwise.
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
        """The bytes of a small file, read with retries.

        Raises OSError or ValueError if the file itself is at fault, DataError if its disk, its folder or its zip is.
        """
        if self.unread:
            raise ValueError(f"it is {self.unread} in {self.path}, which is not supported; {UNPACK}")
        if max(self.size, self.packed) > MAX_PICTURE:
            raise ValueError(f"the zip declares {self.size} bytes for it; at most {MAX_PICTURE} are read")
        try:
            return self._with_retries(self._whole if self.member is None else self._member)
        except ValueError:
            if self.stamp not in (None, _stamp(os.stat(self.path))):
                reason = "was changed or replaced after the build had read its directory; build again"
                raise ValueError(f"{self.path} {reason}") from None
            raise

    def _with_retries(self, read: Callable[[], _T]) -> _T:
        folder = self.folder or os.path.dirname(self.path) or "."
        reason = reading.file_reason(self.path, folder) if self.member is None else reading.archive_reason
        return reading.with_retries(read, str(self), reason)

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
        status = os.stat(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")  # opening a named pipe would block forever
        if status.st_size > MAX_PICTURE:
            raise ValueError(f"it has {status.st_size} bytes; at most {MAX_PICTURE} are read")
        with open(self.path, "rb") as file:
            return file.read()

    def why_missing(self) -> str:
        """Why :meth:`read` raised FileNotFoundError; names a file in the same folder that differs only in its suffix."""
        if self.member is not None:
            return f"{self.path} no longer exists"
        stem = os.path.splitext(self.path)[0]
        others = (stem + written for suffix in _SUFFIXES for written in (suffix, suffix.upper()))
        similar = next((path for path in others if os.path.exists(path)), None)
        return "does not exist" + (f"; there is {os.path.basename(similar)}" if similar else "")

    def length(self) -> int:
        """The number of bytes that :meth:`read` will return, or 0 if the file is faulty.

        Raises DataError as :meth:`read` does.
        """
        try:
            size = self.size if self.member is not None else self._with_retries(lambda: os.stat(self.path)).st_size
        except OSError:
            return 0
        return size if size <= MAX_PICTURE else 0

    def map(self) -> Buffer:
        """The bytes of a large file: a memory map of a file on disk, a copy of a zip member. Raises DataError if that fails."""
        read: Callable[[], Buffer] = self._mapped if self.member is None else self._unpacked
        try:
            return reading.with_retries(read, str(self), reading.system_reason)
        except _BROKEN as error:
            raise DataError(f"{self}: cannot be read: {_in_words(error)}") from None

    def _mapped(self) -> mmap.mmap:
        with open(self.path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _unpacked(self) -> bytearray:
        if self.unread:
            raise ValueError(f"it is {self.unread}, which is not supported; {UNPACK}")
        if self.packed > os.stat(self.path).st_size or self.size > _EXPANSION * self.packed:
            raise ValueError(f"the zip declares {self.size} bytes, packed into {self.packed}; download it again")
        content = bytearray(self.size)
        with zipfile.ZipFile(self.path) as archive, archive.open(str(self.member)) as opened, memoryview(content) as view:
            member, at = cast(zipfile.ZipExtFile, opened), 0
            while read := member.readinto(view[at : at + _BLOCK]):
                at += read
        if at != self.size:
            raise ValueError(f"has {at} bytes, but the zip declares {self.size}")
        return content


def _inflated(packed: bytes, size: int) -> bytes:
    """A raw Deflate stream, unpacked to at most ``size`` + 1 bytes."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
    except zlib.error:
        raise ValueError("its compressed bytes are damaged") from None


def members(archive: Path) -> dict[str, Place]:
    """Member name, with "/" between folders, -> location of each file in a zip; raises DataError if the zip cannot be read.

    The central directory is cached, and read again only after the zip was changed or replaced.
    """
    try:
        return reading.with_retries(lambda: _members(archive, _stamp(os.stat(archive))), str(archive), reading.system_reason)
    except _BROKEN as error:
        raise DataError(f"{archive}: cannot be read as a zip: {_in_words(error)}; download it again") from None


def _in_words(error: Exception) -> str:
    """The fault of a file in our own words, not in those of a library."""
    if isinstance(error, OSError):
        return reading.strerror(error)
    if isinstance(error, ValueError):  # raised here or by the system
        return str(error)
    return "out of memory" if isinstance(error, MemoryError) else "its bytes are damaged"


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
    """How a member is packed if that is not supported; otherwise empty."""
    if member.flag_bits & 1 or member.compress_type == _AES:
        return "encrypted"
    if member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return ""
    return f"packed with {_METHODS.get(member.compress_type, f'method {member.compress_type}')}"


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    """Modification time, size and inode: differs between a file and its replacement."""
    return status.st_mtime_ns, status.st_size, status.st_ino
