"""Checks the central directory at the end of a zip: that it is complete and points into the file."""

import struct
from pathlib import Path
from typing import BinaryIO

from cocolvis.disk.files import reason
from cocolvis.errors import DataError

_END, _END64, _LOCATOR64, _MEMBER = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_RECORD = struct.Struct("<4s4x2xHLLH")
"""Signature, number of members, size and offset of the directory, size of the comment."""

_END64_RECORD = struct.Struct("<4s28xQQQ")
"""The same in 64 bits, without the comment."""

_LOCATOR_RECORD = struct.Struct("<4s4xQ4x")
_MEMBER_RECORD = struct.Struct("<4s16xLLHHH8xL")
"""Signature, packed and unpacked size, lengths of name, extra field and comment, offset of the member."""

_LOCAL_HEADER = 30
_LONGEST_COMMENT = 2**16
_FULL_16, _FULL_32 = 2**16 - 1, 2**32 - 1
"""Values that mean that the number is in a 64-bit record instead."""


def fault(path: Path) -> str | None:
    """The fault of the central directory of a zip, or None if it has none. The members themselves are not read.

    The directory must be at the end of the file and list as many members as it declares, each within the bytes before the
    directory. Raises DataError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            members, start, end = _directory(file, path.stat().st_size)
            _check_members(file, members, start, end)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except ValueError as error:
        return str(error)
    except struct.error:
        return "its central directory is cut short"
    return None


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """The number of members that the directory declares, and where it begins and ends; raises ValueError if there is none."""
    first = max(0, size - _END_RECORD.size - _LONGEST_COMMENT)
    file.seek(first)
    tail = file.read()
    at = tail.rfind(_END)
    while at >= 0:
        if at + _END_RECORD.size <= len(tail):
            _, members, length, start, comment = _END_RECORD.unpack_from(tail, at)
            if at + _END_RECORD.size + comment == len(tail):
                break
        at = tail.rfind(_END, 0, at)
    if at < 0:
        raise ValueError("it has no central directory at its end: it is cut short, or is not a zip")
    end = first + at
    if members == _FULL_16 or _FULL_32 in (length, start):
        members, length, start, end = _directory64(file, end)
    if start + length > end:
        raise ValueError(f"its central directory points outside the file: to bytes {start:,}..{start + length:,} of {size:,}")
    return members, start, start + length


def _directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """Number of members, size and offset of a directory, and the offset of its 64-bit record, found before ``end``."""
    file.seek(max(0, end - _LOCATOR_RECORD.size))
    signature, at = _LOCATOR_RECORD.unpack(file.read(_LOCATOR_RECORD.size))
    if signature != _LOCATOR64 or at > end:
        raise ValueError("its central directory points outside the file: its 64-bit record is missing")
    file.seek(at)
    signature, members, length, start = _END64_RECORD.unpack(file.read(_END64_RECORD.size))
    if signature != _END64:
        raise ValueError("its central directory points outside the file: its 64-bit record is missing")
    return members, length, start, at


def _check_members(file: BinaryIO, members: int, start: int, end: int) -> None:
    """Raise ValueError unless bytes ``start`` to ``end`` list ``members`` members that are all before ``start``."""
    file.seek(start)
    listed, at = 0, start
    while at < end:
        signature, packed, unpacked, name, extra, comment, offset = _MEMBER_RECORD.unpack(file.read(_MEMBER_RECORD.size))
        if signature != _MEMBER:
            raise ValueError(f"its central directory is damaged at byte {at:,}")
        extra_field = file.read(name + extra + comment)[name : name + extra]
        if _FULL_32 in (packed, unpacked, offset):
            packed, offset = _numbers64(extra_field, packed, unpacked, offset)
        if offset + _LOCAL_HEADER + packed > start:
            at_member = f"{packed:,} bytes at {offset:,} for member {listed + 1}"
            raise ValueError(f"its central directory points outside the file: to {at_member}")
        at += _MEMBER_RECORD.size + name + extra + comment
        listed += 1
    if (listed, at) != (members, end):
        raise ValueError(f"its central directory lists {listed:,} members but declares {members:,}")


def _numbers64(extra: bytes, packed: int, unpacked: int, offset: int) -> tuple[int, int]:
    """Packed size and offset of a member, taken from its extra field if they do not fit in 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            unpacked, packed, offset = (next(numbers, 0) if n == _FULL_32 else n for n in (unpacked, packed, offset))
            break
        at += 4 + length
    return packed, offset
