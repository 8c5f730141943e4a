"""Reads one matrix of numbers from a MATLAB 5 file, and checks every declared size before it is used.

The layout follows "MAT-File Format" by The MathWorks: a header of 128 bytes, then elements, each of which is a tag (type, size)
and a body.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

from cocolvis.limits import MAX_PIXELS

_Order = Literal["<", ">"]
"""Byte order: little-endian or big-endian."""

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Type of an element -> type of its numbers; MATLAB stores numbers in the smallest type that holds them."""

_NUMERIC = range(6, 16)
"""Array classes that hold numbers; the others are cells, structures, text and sparse arrays."""

_START = 512
"""Bytes at the start of an array that hold its flags, two dimensions, and a name of at most 63 letters."""


def is_matlab(content: bytes) -> bool:
    """Whether these bytes are a MATLAB 5 or 7.3 file."""
    return len(content) >= _HEADER and content[126:128] in (b"IM", b"MI") and content.startswith(b"MATLAB")


class Matrix(NamedTuple):
    """A matrix that is not read yet, so that callers can check its (H, W) first.

    ``read`` returns (H, W) uint16, and raises ValueError if the numbers cannot be read.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_matrix(content: bytes, name: str) -> Matrix:
    """Find the variable ``name`` of a MATLAB file; only the few bytes that describe it are decompressed.

    Raises ValueError unless it is a matrix of numbers with at most 2^27 of them.
    """
    order: _Order = "<" if content[126:128] == b"IM" else ">"
    version = struct.unpack(order + "H", content[124:126])[0]
    if version != 0x0100:
        raise ValueError(f"it is a MATLAB file of version {version:#06x}; expected version 5: save it with -v7")
    try:
        for kind, body in _elements(content, _HEADER, order):
            if kind == _MATRIX and (size := _read_size(body[:_START], order, name)):
                return Matrix(size, partial(_values, body, order))
            if kind == _COMPRESSED:
                start = zlib.decompressobj().decompress(body, _START + 8)
                kind, length = struct.unpack_from(order + "II", start)
                if kind == _MATRIX and (size := _read_size(start[8:], order, name, length)):
                    return Matrix(size, partial(_inflated_values, body, order, length))
    except (struct.error, zlib.error):
        raise ValueError("the MATLAB file is damaged") from None
    raise ValueError(f"the MATLAB file has no matrix {name}")


class _Element(NamedTuple):
    kind: int
    body: bytes


def _elements(data: bytes, at: int, order: _Order) -> Iterator[_Element]:
    """Yield the elements in order; raises ValueError if one breaks off."""
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        start = at + 8
        if kind >> 16:  # a small element packs size and type into one word, followed by the body
            kind, size, start = kind & 0xFFFF, kind >> 16, at + 4
        if size > (len(data) - start if start == at + 8 else 4):
            raise ValueError("the MATLAB file breaks off")
        yield _Element(kind, data[start : start + size])
        at = at + 8 if start == at + 4 else start + size + (-size % 8 if kind != _COMPRESSED else 0)


def _read_size(start: bytes, order: _Order, name: str, length: int = 0) -> tuple[int, int] | None:
    """The (H, W) of a matrix of numbers from its first bytes; None for any other kind of array or another name.

    Raises ValueError if the size is out of range, or if ``length`` bytes are more than so many numbers need.
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


def _inflated_values(packed: bytes, order: _Order, length: int) -> np.ndarray:
    """Decompress a matrix of ``length`` bytes and return its values."""
    stream = zlib.decompressobj()
    try:
        matrix = stream.decompress(packed, length + 8 + 1)[8:]
    except zlib.error:
        raise ValueError("the MATLAB file is damaged") from None
    if len(matrix) != length or not stream.eof:  # zlib compares the checksum at the end of the stream
        raise ValueError("the MATLAB file breaks off")
    return _values(matrix, order)


def _values(matrix: bytes, order: _Order) -> np.ndarray:
    _, dimensions, name, *parts = _elements(matrix, 0, order)
    height, width = struct.unpack(order + "ii", dimensions.body)
    if len(parts) != 1 or parts[0].kind not in _STORED:  # a second part is imaginary
        raise ValueError(f"{name.body.decode('latin-1')} holds numbers that are not integers")
    kind = np.dtype(_STORED[parts[0].kind]).newbyteorder(order)
    if len(parts[0].body) % kind.itemsize:
        raise ValueError(f"the MATLAB file stores {len(parts[0].body)} bytes of numbers with {kind.itemsize} each")
    stored = np.frombuffer(parts[0].body, kind)
    if stored.size != height * width:
        raise ValueError(f"the MATLAB file stores {stored.size} numbers for {height} x {width}")
    if not (stored.min() >= 0 and stored.max() < 2**16):  # NaN fails both comparisons
        raise ValueError(f"labels are {stored.min()}..{stored.max()}; expected 0..65535")
    labels = stored.astype(np.uint16)
    if not np.array_equal(labels, stored):
        raise ValueError(f"{name.body.decode('latin-1')} holds numbers that are not integers")
    return np.ascontiguousarray(labels.reshape((height, width), order="F"))
