"""Assembles PNGs by hand: every colour type and depth, interlaced or not, with any chunks that a test needs."""

import struct
import zlib

import numpy as np

KINDS = [
    (0, 1),
    (0, 2),
    (0, 4),
    (0, 8),
    (0, 16),
    (2, 8),
    (2, 16),
    (3, 1),
    (3, 2),
    (3, 4),
    (3, 8),
    (4, 8),
    (4, 16),
    (6, 8),
    (6, 16),
]
"""(colour type, bits)"""

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def join(*chunks: tuple[bytes, bytes], end: bool = True) -> bytes:
    return SIGNATURE + b"".join(chunk(*c) for c in chunks) + (chunk(b"IEND") if end else b"")


def header(height: int, width: int, bits: int = 8, colour: int = 2, interlaced: int = 0) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)


def rows(height: int, width: int, bits: int = 8, colour: int = 2, interlaced: int = 0, seed: int = 0) -> bytes:
    """Random pixels with random filters; every value is valid."""
    rng = np.random.default_rng(seed)
    lines = []
    for x, y, dx, dy in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns = len(range(x, width, dx))
        for _ in range(y, height, dy) if columns else ():
            lines.append(bytes([rng.integers(5)]) + rng.bytes(-(-columns * _CHANNELS[colour] * bits // 8)))
    return b"".join(lines)


def made(
    height: int, width: int, bits: int = 8, colour: int = 2, interlaced: int = 0, seed: int = 0
) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG without IEND; the pixels are split over two chunks."""
    packed = zlib.compress(rows(height, width, bits, colour, interlaced, seed))
    palette = [(b"PLTE", np.random.default_rng(seed).bytes(3 << bits))] if colour == 3 else []
    return [header(height, width, bits, colour, interlaced), *palette, (b"IDAT", packed[:20]), (b"IDAT", packed[20:])]


def bomb(height: int, width: int, colour: int = 2) -> bytes:
    """A PNG of black 8-bit pixels, a thousand times smaller than they are."""
    stream, row = zlib.compressobj(9), bytes(1 + _CHANNELS[colour] * width)
    packed = b"".join(stream.compress(row) for _ in range(height)) + stream.flush()
    palette = [(b"PLTE", bytes(768))] if colour == 3 else []
    return join(header(height, width, colour=colour), *palette, (b"IDAT", packed))
