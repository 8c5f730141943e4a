"""One matrix of numbers from a MATLAB 5 file; nothing else in it is looked at, and no size is believed before it is checked.

The layout is that of "MAT-File Format" by The MathWorks: a header of 128 bytes, then elements, each a tag (type, size) and its
body.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from cocolvis.limits import MAX_PIXELS

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of an element -> how its numbers are stored; MATLAB takes the smallest that holds them."""

_NUMERIC = range(6, 16)
"""Classes of arrays of numbers; others are cells, structures, text and sparse."""

_START = 512
"""Bytes in which an array says what it is: flags, two dimensions, and a name of at most 63 letters."""


def is_matlab(content: bytes) -> bool:
    """Whether these are the bytes of a MATLAB 5 or 7.3 file."""
    return len(content) >= _HEADER and content[126:128] in (b"IM", b"MI") and content.startswith(b"MATLAB")


class Matrix(NamedTuple):
    """A matrix that was found: its (H, W), and what reads it, so that who knows the size that it must have can look first.

    ``read`` returns (H, W) uint16, or raises a ValueError that says why not.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_matrix(content: bytes, name: str) -> Matrix:
    """The variable ``name`` of a MATLAB file, of which no more is inflated than the few bytes that say what it is.

    A ValueError unless it is a matrix of numbers whose declared size is one that is read.
    """
    order = "<" if content[126:128] == b"IM" else ">"
    version = struct.unpack(order + "H", content[124:126])[0]
    if version != 0x0100:
        raise ValueError(f"it is a MATLAB file of version {version:#06x}; expected version 5: save it with -v7")
    try:
        for kind, body in _elements(content, _HEADER, order):
            if kind == _MATRIX and (size := _declared(body[:_START], order, name)):
                return Matrix(size, partial(_values, body, order))
            if kind == _COMPRESSED:
                start = zlib.decompressobj().decompress(body, _START + 8)
                kind, length = struct.unpack_from(order + "II", start)
                if kind == _MATRIX and (size := _declared(start[8:], order, name, length)):
                    return Matrix(size, partial(_inflated_values, body, order, length))
    except (struct.error, zlib.error):
        raise ValueError("the MATLAB file is damaged") from None
    raise ValueError(f"the MATLAB file has no matrix {name}")


class _Element(NamedTuple):
    kind: int
    body: bytes


def _elements(data: bytes, at: int, order: str) -> Iterator[_Element]:
    """The elements one after another; a ValueError where one breaks off."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        start = at + 8
        if kind >> 16:  # a small element: its size stands beside its type, its body in the place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > (len(data) - start if start == at + 8 else 4):
            raise ValueError("the MATLAB file breaks off")
        yield _Element(kind, data[start : start + size])
        at = at + 8 if start == at + 4 else start + size + (-size % 8 if kind != _COMPRESSED else 0)


def _declared(start: bytes, order: str, name: str, length: int = 0) -> tuple[int, int] | None:
    """(H, W) of a matrix of numbers by its first bytes; None for every other array and name.

    A ValueError where that is no size, or its ``length`` in bytes is more than so many numbers take.
    """
    elements = _elements(start, 0, order)
    try:
        flags, dimensions, label = next(elements), next(elements), next(elements)
    except (StopIteration, ValueError):
        return None
    if len(flags.body) != 8 or len(dimensions.body) != 8 or flags.body[0 if order == "<" else 3] not in _NUMERIC:
        return None
    if label.body.decode("latin-1") != name:
        return None
    height, width = struct.unpack(order + "ii", dimensions.body)
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise ValueError(f"{height} x {width} pixels are not in 1..{MAX_PIXELS}")
    if length > 8 * height * width + _START:
        raise ValueError(f"the MATLAB file declares a matrix of {length} bytes for {height} x {width} numbers")
    return height, width


def _inflated_values(packed: bytes, order: str, length: int) -> np.ndarray:
    """The values of a matrix that takes so many bytes, once it is inflated."""
    stream = zlib.decompressobj()
    try:
        matrix = stream.decompress(packed, length + 8 + 1)[8:]
    except zlib.error:
        raise ValueError("the MATLAB file is damaged") from None
    if len(matrix) != length or not stream.eof:  # only at its end are the checksums compared
        raise ValueError("the MATLAB file breaks off")
    return _values(matrix, order)


def _values(matrix: bytes, order: str) -> np.ndarray:
    _, dimensions, name, *parts = _elements(matrix, 0, order)
    height, width = struct.unpack(order + "ii", dimensions.body)
    if len(parts) != 1 or parts[0].kind not in _STORED:  # a second part is imaginary
        raise ValueError(f"{name.body.decode('latin-1')} holds no whole numbers")
    kind = np.dtype(_STORED[parts[0].kind]).newbyteorder(order)
    if len(parts[0].body) % kind.itemsize:
        raise ValueError(f"the MATLAB file stores {len(parts[0].body)} bytes of numbers with {kind.itemsize} each")
    stored = np.frombuffer(parts[0].body, kind)
    if stored.size != height * width:
        raise ValueError(f"the MATLAB file stores {stored.size} numbers for {height} x {width}")
    if not (stored.min() >= 0 and stored.max() < 2**16):  # NaN is neither
        raise ValueError(f"labels are {stored.min()}..{stored.max()}; expected 0..65535")
    labels = stored.astype(np.uint16)
    if not np.array_equal(labels, stored):
        raise ValueError(f"{name.body.decode('latin-1')} holds no whole numbers")
    return np.ascontiguousarray(labels.reshape((height, width), order="F"))
