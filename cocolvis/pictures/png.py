"""PNG files: reads the header, and checks that the file is complete and undamaged without decoding a pixel."""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Colour type -> channels, and the bits that each channel may have."""

_PALETTE = 3
"""The colour type whose pixels are palette indices."""

_LARGEST_SIDE = 2**31 - 1
_LAST_FILTER = 4
"""The largest filter; each row begins with the number of its filter, 0..4."""

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column, first row, column step, row step."""

_READ, _INFLATED = 2**16, 2**18
"""Compressed bytes that zlib is given at a time, and the most bytes that it may return at a time."""


class Header(NamedTuple):
    """The content of the chunk IHDR; each channel of a pixel has ``bits`` bits."""

    height: int
    width: int
    bits: int
    colour: int
    interlaced: bool

    def passes(self) -> list[tuple[int, int]]:
        """(rows, bytes of a row including its filter) of each pass; an interlaced picture has up to seven passes."""
        steps = _ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        sizes = ((-(-(self.height - y) // dy), -(-(self.width - x) // dx)) for x, y, dx, dy in steps)
        bits = _CHANNELS[self.colour] * self.bits
        return [(rows, 1 + (columns * bits + 7) // 8) for rows, columns in sizes if rows > 0 and columns > 0]


def read_header(content: bytes) -> Header:
    """Read the header of a PNG; raises ValueError unless its fields are valid and the chunks continue up to IEND.

    No CRC is computed, so this is cheap enough to do on every read.
    """
    chunks = _chunks(content)
    header = _header(next(chunks)[1])
    for _ in chunks:
        pass
    return header


def check(content: bytes) -> None:
    """Raise ValueError unless every decoder can read this PNG completely and with the same result.

    The CRC of each chunk must match, and the pixels must decompress to exactly the rows that the header declares. Memory use is
    small for any header. Bytes after IEND and the content of optional chunks are ignored.
    """
    chunks = _checked_chunks(content)
    header = _header(next(chunks)[1])
    palette, pixels, before = 0, _PixelStream(header), b"IHDR"
    for kind, body in chunks:
        if kind == b"PLTE" and header.colour == _PALETTE:
            if palette or len(body) % 3 or not 0 < len(body) <= 3 * 256:
                raise ValueError("the PNG has no valid palette")
            palette = len(body) // 3
        elif kind == b"IDAT":
            if header.colour == _PALETTE and not palette:
                raise ValueError("the PNG has no palette before its pixels")
            if pixels.begun and before != b"IDAT":
                raise ValueError("the PNG's pixels are interrupted by another chunk")
            pixels.add(body)
        elif kind not in (b"PLTE", b"IEND") and kind[:1].isupper():
            raise ValueError(f"the PNG has a chunk {kind.decode()}, which is unknown and must not be skipped")
        before = kind
    pixels.finish()


def essential(content: bytes) -> bytes:
    """A PNG without its optional chunks and the bytes after its end; raises ValueError as :func:`read_header` does.

    Only the pixels as stored remain: no transparent colour, no gamma, no animation.
    """
    return _with_chunks(content, lambda kind: kind[:1].isupper())


def without_profile(content: bytes) -> bytes:
    """A PNG without its colour profile, which no decoder here applies; libpng prints warnings about broken ones.

    Raises ValueError as :func:`read_header` does.
    """
    return _with_chunks(content, lambda kind: kind != b"iCCP") if b"iCCP" in content else content


def _with_chunks(content: bytes, wanted: Callable[[bytes], bool]) -> bytes:
    kept = (chunk for chunk in _chunks(content) if wanted(chunk[0]))
    parts = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc) for kind, body, crc in kept)
    return b"".join((SIGNATURE, *parts))


def exif(content: bytes) -> bytes:
    """The EXIF data of a PNG, which is a small TIFF; b"" if there is none or the PNG is damaged."""
    try:
        return next((bytes(body) for kind, body, _ in _chunks(content) if kind == b"eXIf"), b"")
    except ValueError:
        return b""


def is_animated(content: bytes) -> bool:
    """Whether a PNG holds several pictures, of which decoders return the first; False if it is damaged."""
    try:
        frames = next((body for kind, body, _ in _chunks(content) if kind == b"acTL"), b"")
    except ValueError:
        return False
    return int.from_bytes(frames[:4], "big") > 1


def _checked_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield (kind, body) of each chunk; raises ValueError if a CRC does not match."""
    for kind, body, crc in _chunks(content):
        if zlib.crc32(body, zlib.crc32(kind)) != crc:
            raise ValueError(f"the PNG is damaged: the CRC of its chunk {kind.decode()} does not match")
        yield kind, body


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yield (kind, body, recorded CRC) of each chunk up to IEND; raises ValueError unless only the first is IHDR."""
    if not content.startswith(SIGNATURE):
        raise ValueError("the PNG has no signature")
    view, at, kind = memoryview(content), len(SIGNATURE), b""
    while kind != b"IEND":
        if at + 12 > len(content):
            raise ValueError("the PNG breaks off")
        length, kind = struct.unpack_from(">I4s", content, at)
        if at + 12 + length > len(content):
            raise ValueError("the PNG breaks off")
        if not kind.isalpha() or (kind == b"IHDR") != (at == len(SIGNATURE)):
            raise ValueError("the PNG is damaged: " + ("two chunks have run together" if at > 8 else "it has no header"))
        yield kind, view[at + 8 : at + 8 + length], struct.unpack_from(">I", content, at + 8 + length)[0]
        at += 12 + length


def _header(body: memoryview) -> Header:
    if len(body) != 13:
        raise ValueError(f"the PNG's header has {len(body)} bytes; expected 13")
    width, height, bits, colour, compression, filters, interlaced = struct.unpack(">IIBBBBB", body)
    if bits not in _DEPTHS.get(colour, ()) or compression or filters or interlaced > 1:
        raise ValueError(
            f"the PNG's header declares bits {bits}, colour type {colour}, compression {compression}, filters {filters} and"
            f" interlacing {interlaced}, which is not a valid combination"
        )
    return Header(height, width, bits, colour, bool(interlaced))


class _PixelStream:
    """Decompresses the pixels piece by piece, counts them and checks the filters of their rows, without keeping them."""

    def __init__(self, header: Header):
        if not (0 < header.height <= _LARGEST_SIDE and 0 < header.width <= _LARGEST_SIDE):
            raise ValueError(f"the PNG's header declares {header.height} x {header.width} pixels")
        self.begun = False
        self._stream = zlib.decompressobj()
        self._passes: list[tuple[int, int, int]] = []  # (first byte, byte after the last, bytes of a row)
        self._expected = self._found = 0
        for rows, row in header.passes():
            self._passes.append((self._expected, self._expected + rows * row, row))
            self._expected += rows * row

    def add(self, body: memoryview) -> None:
        """Add an IDAT chunk; bytes after the end of the compressed stream are ignored."""
        self.begun = True
        for start in range(0, len(body), _READ):
            data: bytes | memoryview = body[start : start + _READ]
            inflated = b""
            while (data or len(inflated) == _INFLATED) and not self._stream.eof:
                try:
                    inflated = self._stream.decompress(data, _INFLATED)
                except zlib.error as error:
                    raise ValueError(f"the PNG's pixels are damaged: {str(error).rpartition(': ')[2]}") from None
                data = self._stream.unconsumed_tail
                self._check_rows(inflated)

    def finish(self) -> None:
        """Raise ValueError unless all pixels and the checksum after them have been added."""
        if self._found < self._expected or not self._stream.eof:
            raise ValueError(f"the PNG's pixels are truncated: {self._found} of {self._expected} bytes are there")

    def _check_rows(self, inflated: bytes) -> None:
        first, self._found = self._found, self._found + len(inflated)
        if self._found > self._expected:
            raise ValueError(f"the PNG holds more pixels than its header declares: more than {self._expected} bytes")
        for start, stop, row in self._passes:
            if start < self._found and first < stop:
                begin = max(0, start - first) if first <= start else -(first - start) % row
                if max(inflated[begin : stop - first : row], default=0) > _LAST_FILTER:
                    raise ValueError("the PNG's pixels are damaged: a row has a filter that does not exist")
