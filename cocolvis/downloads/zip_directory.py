"""The central directory at the end of a zip, checked before the file is believed: it is whole, and points into the file."""

import struct
from pathlib import Path
from typing import BinaryIO

_END, _END64, _LOCATOR64, _MEMBER = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_RECORD = struct.Struct("<4s4x2xHLLH")
"""Signature, members, bytes and place of the directory, bytes of the comment."""

_END64_RECORD = struct.Struct("<4s28xQQQ")
_LOCATOR_RECORD = struct.Struct("<4s4xQ4x")
_MEMBER_RECORD = struct.Struct("<4s16xLLHHH8xL")
"""Signature, packed and unpacked bytes, lengths of name, extra field and comment, place of the member."""

_LOCAL_HEADER = 30
_LONGEST_COMMENT = 2**16
_FULL_16, _FULL_32 = 2**16 - 1, 2**32 - 1
"""What stands where the number is found in a record of 64 bits."""


def fault(path: Path) -> str | None:
    """What is wrong with the directory of a zip, in words; None where it is whole. Members are not looked into.

    The directory must end the file and hold as many members as it says, each within the bytes before it. An OSError where the
    file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            members, start, end = _directory(file, size)
            _check_members(file, members, start, end)
        except ValueError as error:
            return str(error)
        except struct.error:
            return "its central directory breaks off"
    return None


def _directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """How many members the directory says it has, and where it begins and ends; a ValueError where there is none."""
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
        raise ValueError("it has no central directory at its end: it is cut short, or none at all")
    end = first + at
    if members == _FULL_16 or _FULL_32 in (length, start):
        members, length, start, end = _directory64(file, end)
    if start + length > end:
        raise ValueError(f"its central directory points outside: to bytes {start:,}..{start + length:,} of {size:,}")
    return members, start, start + length


def _directory64(file: BinaryIO, end: int) -> tuple[int, int, int, int]:
    """Members, length and beginning of a directory, and where its last record begins, by the 64-bit records before ``end``."""
    file.seek(max(0, end - _LOCATOR_RECORD.size))
    signature, at = _LOCATOR_RECORD.unpack(file.read(_LOCATOR_RECORD.size))
    if signature != _LOCATOR64 or at > end:
        raise ValueError("its central directory points outside: there is no record of 64 bits where one is announced")
    file.seek(at)
    signature, members, length, start = _END64_RECORD.unpack(file.read(_END64_RECORD.size))
    if signature != _END64:
        raise ValueError("its central directory points outside: there is no record of 64 bits where one is announced")
    return members, length, start, at


def _check_members(file: BinaryIO, members: int, start: int, end: int) -> None:
    """A ValueError unless so many members are listed between two places, and lie before the first of them."""
    file.seek(start)
    found, at = 0, start
    while at < end:
        signature, packed, unpacked, name, extra, comment, place = _MEMBER_RECORD.unpack(file.read(_MEMBER_RECORD.size))
        if signature != _MEMBER:
            raise ValueError(f"its central directory is damaged at byte {at:,}")
        words = file.read(name + extra + comment)[name : name + extra]
        if _FULL_32 in (packed, unpacked, place):
            packed, place = _numbers64(words, packed, unpacked, place)
        if place + _LOCAL_HEADER + packed > start:
            raise ValueError(f"its central directory points outside: to {packed:,} bytes at {place:,} for member {found + 1}")
        at += _MEMBER_RECORD.size + name + extra + comment
        found += 1
    if (found, at) != (members, end):
        raise ValueError(f"its central directory lists {found:,} members, and says {members:,}")


def _numbers64(extra: bytes, packed: int, unpacked: int, place: int) -> tuple[int, int]:
    """Packed bytes and place of a member, those that do not fit 32 bits from its extra field."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            numbers = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            unpacked, packed, place = (next(numbers, 0) if n == _FULL_32 else n for n in (unpacked, packed, place))
            break
        at += 4 + length
    return packed, place
