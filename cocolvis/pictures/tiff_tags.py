"""Reads integer tags from the first directory of a TIFF, or of EXIF data, which has the same format."""

import struct
from collections.abc import Collection
from typing import NamedTuple

ORIENTATION = 274
BITS, SAMPLES, FORMAT = 258, 277, 339
"""Tags: bits per sample, samples per pixel, and the sample format."""

_HEADERS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
"""First bytes of a TIFF -> its byte order, and whether it is a BigTIFF, whose offsets have 8 bytes."""

_SHORT, _LONG = 3, 4
_TYPES = {_SHORT: "H", _LONG: "I"}
_MOST_ENTRIES, _MOST_VALUES = 2**12, 64

_SIGNED, _FLOAT, _COMPLEX = 2, 3, (5, 6)
"""Sample formats: signed integers, floating point, and complex numbers of either kind."""


def read_tags(content: bytes, wanted: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Tag -> its integers, for the ``wanted`` tags that the first directory holds; damaged tags are left out."""
    return {tag: values for tag, (values, _) in _directory(content).tags.items() if tag in wanted}


def has_more(content: bytes) -> bool:
    """Whether a TIFF has more than one directory, which means more than one picture."""
    return _directory(content).after > 0


def upright(content: bytes) -> bytes:
    """A TIFF with its orientation set to 1, so that decoders return the pixels as stored."""
    values, at = _directory(content).tags.get(ORIENTATION, ((1,), 0))
    if values == (1,):
        return content
    return content[:at] + struct.pack(_HEADERS[content[:4]][0] + "H", 1) + content[at + 2 :]


def numbers(content: bytes) -> str:
    """Describe the pixels of a TIFF, such as "32-bit floating-point numbers"; "" if its tags are missing."""
    tags = read_tags(content, (BITS, SAMPLES, FORMAT))
    if BITS not in tags and SAMPLES not in tags:
        return ""
    bits, kind = tags.get(BITS, (1,)), tags.get(FORMAT, (1,))[0]
    words = "complex " if kind in _COMPLEX else "signed " if kind == _SIGNED else ""
    words += "floating-point numbers" if kind == _FLOAT else "numbers" if kind in _COMPLEX else "integers"
    many = tags.get(SAMPLES, (len(bits),))[0]
    return f"{'- and '.join(map(str, sorted(set(bits))))}-bit {words}" + (f", {many} a pixel" if many > 1 else "")


class _Directory(NamedTuple):
    """``tags``: tag -> (its integers, the offset of the first); ``after`` is the offset of the next directory, or 0."""

    tags: dict[int, tuple[tuple[int, ...], int]]
    after: int = 0


def _directory(content: bytes) -> _Directory:
    """Read the first directory of a TIFF as far as possible; tags that are not integers are skipped."""
    directory = _Directory({})
    if content[:4] not in _HEADERS:
        return directory
    order, big = _HEADERS[content[:4]]
    place, entry = order + ("Q" if big else "I"), struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    try:
        start = struct.unpack_from(place, content, 8 if big else 4)[0]
        count = min(_MOST_ENTRIES, struct.unpack_from(order + ("Q" if big else "H"), content, start)[0])
        at = start + (8 if big else 2)
        for _ in range(count):
            tag, kind, many, inline = entry.unpack_from(content, at)
            at += entry.size
            if tag not in directory.tags and kind in _TYPES and 0 < many <= _MOST_VALUES:
                layout = f"{order}{many}{_TYPES[kind]}"
                inside = struct.calcsize(layout) <= len(inline)
                where = at - len(inline) if inside else struct.unpack(place, inline)[0]
                directory.tags[tag] = struct.unpack_from(layout, content, where), where
        return directory._replace(after=struct.unpack_from(place, content, at)[0])
    except (struct.error, OverflowError):  # an offset outside the file
        return directory
