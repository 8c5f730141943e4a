"""JPEG files: reads the size in the header, and checks that the compressed data of all pixels are complete and valid.

Decoders fill damaged parts with grey and at best print a warning. The check here follows the Huffman codes of all scans,
baseline and progressive, without computing pixels. Names follow ITU-T T.81.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

START = b"\xff\xd8"

_END_OF_IMAGE = b"\xff\xd9"
_MARKER = re.compile(rb"\xff([^\x00\xff])", re.DOTALL)
"""The next marker, found as libjpeg does: bytes before it are skipped. Any number of FF may precede its own."""

_FRAMES = frozenset((0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF))
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), 0xC2
_HUFFMAN_TABLES, _END, _SCAN, _RESTARTS = 0xC4, 0xD9, 0xDA, 0xDD
_APP1, _EXIF = 0xE1, b"Exif\0\0"
_BARE = frozenset((0x01, *range(0xD0, 0xDA)))
"""Markers that have no length: TEM, RST0..RST7, and the start and end of the image."""

_MOST_SEGMENTS = 2**16
"""The most segments that are read; a file with more is an attempt to waste time."""


def read_size(content: bytes) -> tuple[int, int]:
    """(height, width) as stored; raises ValueError without a frame header before the pixels and an end marker after them."""
    size, at = None, len(START)
    for _ in range(_MOST_SEGMENTS):
        segment = _segment(content, at)
        at = segment.end
        if segment.marker in _FRAMES:
            if size is not None:
                raise ValueError("the JPEG has two frame headers")
            size = _frame_size(segment.body)
        elif segment.marker in (_SCAN, _END):
            break
    if size is None:
        raise ValueError("the JPEG has no frame header")
    if segment.marker != _SCAN or content.rfind(_END_OF_IMAGE, at) < 0:
        raise ValueError("the JPEG breaks off")
    return size


def exif(content: bytes) -> bytes:
    """The EXIF data of a JPEG, which is a small TIFF; b"" if there is none or the JPEG is damaged."""
    at = len(START)
    try:
        for _ in range(_MOST_SEGMENTS):
            segment = _segment(content, at)
            if segment.marker in (_SCAN, _END):
                break
            if segment.marker == _APP1 and segment.body.startswith(_EXIF):
                return segment.body[len(_EXIF) :]
            at = segment.end
    except ValueError:
        pass
    return b""


def check(content: bytes) -> None:
    """Raise ValueError if the Huffman codes of a block are missing or invalid, or if there is data that belongs to no block.

    Only the header of arithmetic-coded and lossless files is checked; the rest is left to the decoder.
    """
    state, at = _State(), len(START)
    for _ in range(_MOST_SEGMENTS):
        segment = _segment(content, at)
        if state.frame is not None and segment.start > at:
            raise ValueError(f"the JPEG is damaged: unexpected data at byte {at}")
        at = segment.end
        if segment.marker in _FRAMES:
            state.frame = _frame(segment, state.frame)
            if segment.marker not in (*_SEQUENTIAL, _PROGRESSIVE):
                return
        elif segment.marker == _HUFFMAN_TABLES:
            _read_tables(segment.body, state.tables)
        elif segment.marker == _RESTARTS:
            state.restart = struct.unpack(">H", segment.body[:2])[0] if len(segment.body) >= 2 else 0
        elif segment.marker == _SCAN:
            at = _scan(content, segment, state)
        elif segment.marker == _END:
            break
    if state.frame is None or state.frame.components.keys() - state.seen:
        raise ValueError("the JPEG is damaged: it ends before all of its colour components")


class _Segment(NamedTuple):
    """A marker at byte ``start`` and the body that follows; the next segment should begin at ``end``."""

    marker: int
    body: bytes
    start: int
    end: int


@dataclass(slots=True)
class _Component:
    """One colour component, its sampling factors, and what progressive scans have transmitted of it so far.

    ``nonzero`` has, for each block, a bit for each coefficient that is not 0. ``low`` is, for each coefficient, how many of its
    lowest bits are still to come, or -1 if none of its bits has come yet.
    """

    across: int
    down: int
    nonzero: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    low: np.ndarray = field(default_factory=lambda: np.full(64, -1))


class _Frame(NamedTuple):
    height: int
    width: int
    progressive: bool
    components: dict[int, _Component]

    def blocks(self, component: _Component) -> int:
        """The number of blocks of a component in a scan of its own."""
        across, down = self.most()
        width, height = -(-self.width * component.across // across), -(-self.height * component.down // down)
        return -(-width // 8) * -(-height // 8)

    def units(self) -> int:
        """The number of minimum coded units (groups of blocks) in a scan of several components."""
        across, down = self.most()
        return -(-self.width // (8 * across)) * -(-self.height // (8 * down))

    def most(self) -> tuple[int, int]:
        """The largest sampling factors."""
        components = self.components.values()
        return max(c.across for c in components), max(c.down for c in components)


@dataclass(slots=True)
class _State:
    """The state after the segments so far: Huffman tables by class and number, and the components that were ``seen``."""

    frame: _Frame | None = None
    tables: dict[int, np.ndarray] = field(default_factory=dict)
    restart: int = 0
    seen: set[int] = field(default_factory=set)


def _segment(content: bytes, at: int) -> _Segment:
    match = _MARKER.search(content, at)
    if match is None:
        raise ValueError("the JPEG breaks off")
    marker, start, at = match[1][0], at + len(content[at : match.start()].rstrip(b"\xff")), match.end()
    if marker in _BARE:
        return _Segment(marker, b"", start, at)
    length = struct.unpack_from(">H", content, at)[0] if at + 2 <= len(content) else 0
    if length < 2 or at + length > len(content):
        raise ValueError("the JPEG breaks off" if length else "the JPEG has a segment without a length")
    return _Segment(marker, content[at + 2 : at + length], start, at + length)


def _frame_size(body: bytes) -> tuple[int, int]:
    if len(body) < 6:
        raise ValueError("the JPEG's frame header is too short")
    return struct.unpack_from(">HH", body, 1)


def _frame(segment: _Segment, before: _Frame | None) -> _Frame:
    height, width = _frame_size(segment.body)
    count, described = segment.body[5], segment.body[6:]
    components = {
        described[i]: _Component(described[i + 1] >> 4, described[i + 1] & 15) for i in range(0, len(described) - 2, 3)
    }
    sampled = all(1 <= c.across <= 4 and 1 <= c.down <= 4 for c in components.values())
    if before or not (height and width and sampled and 1 <= count <= 4 and len(components) == count == len(described) / 3):
        raise ValueError("the JPEG has two frame headers" if before else "the JPEG's frame header is damaged")
    return _Frame(height, width, segment.marker == _PROGRESSIVE, components)


def _read_tables(body: bytes, tables: dict[int, np.ndarray]) -> None:
    """Add tables by class and number, (65536,) uint16: next 16 bits -> 256 * code length + symbol, 0 for no code."""
    at = 0
    while at < len(body):
        counts = np.frombuffer(body[at + 1 : at + 17], np.uint8)
        symbols = np.frombuffer(body[at + 17 : at + 17 + int(counts.sum())], np.uint8)
        lengths = np.repeat(np.arange(1, len(counts) + 1), counts)
        if len(counts) < 16 or len(symbols) < len(lengths) or (body[at] & 0xEF) > 3 or (1 << (16 - lengths)).sum() > 2**16:
            raise ValueError("the JPEG has a damaged Huffman table")
        spread = np.repeat((lengths << 8 | symbols).astype(np.uint16), 1 << (16 - lengths))
        tables[body[at]] = np.concatenate([spread, np.zeros(2**16 - len(spread), np.uint16)])
        at += 17 + len(lengths)


def _scan(content: bytes, segment: _Segment, state: _State) -> int:
    """Follow the codes of a scan; return the byte after them."""
    from cocolvis.pictures import jpeg_scans as scans  # numba is slow to import, and reading headers does not need it

    frame, body = state.frame, segment.body
    count = body[0] if body else 0
    chosen = {body[1 + 2 * i]: body[2 + 2 * i] for i in range(count)} if len(body) == 4 + 2 * count else {}
    if frame is None or not chosen or len(chosen) < count or chosen.keys() - frame.components.keys():
        raise ValueError("the JPEG has a damaged scan header")
    first, last, high = (body[-3], body[-2], body[-1] >> 4) if frame.progressive else (0, 63, 0)
    kind = scans.WHOLE
    if frame.progressive:
        kind = (scans.AC_REFINED if high else scans.AC) if first else (scans.DC_REFINED if high else scans.DC)
        if last > 63 or first > last or (first == 0) != (last == 0) or (first and count > 1):
            raise ValueError("the JPEG has a damaged scan header")
    members = [frame.components[identity] for identity in chosen]
    for one in members if frame.progressive else ():
        if (np.maximum(one.low[first : last + 1], 0) != high).any():
            raise ValueError("the JPEG is damaged: its scans are out of order")
        one.low[first : last + 1] = body[-1] & 15
    blocks: list[tuple[int, int, int]] = []  # of each unit: (component, DC table, AC table)
    for number, (one, places) in enumerate(zip(members, chosen.values(), strict=True)):
        blocks += [(number, places >> 4, places & 15)] * (one.across * one.down if count > 1 else 1)
    tables = np.zeros((8, 2**16), np.uint16)
    _select_tables(tables, state.tables, blocks, dc=first == 0 and not high, ac=last > 0)
    if kind in (scans.AC, scans.AC_REFINED) and not len(members[0].nonzero):
        members[0].nonzero = np.zeros(frame.blocks(members[0]), np.uint64)
    units = frame.units() if count > 1 else frame.blocks(members[0])
    plan = np.array(blocks, np.int64)
    result, at = scans.follow(
        np.frombuffer(content, np.uint8), segment.end, tables, plan, units, state.restart, kind, first, last, members[0].nonzero
    )
    if result != scans.FINE:
        raise ValueError(f"the JPEG's pixels {scans.FAULTS[result]}, at byte {at}")
    if first == 0:
        state.seen |= chosen.keys()
    return at


def _select_tables(tables: np.ndarray, known: dict[int, np.ndarray], blocks: list, *, dc: bool, ac: bool) -> None:
    """Copy the tables that a scan needs into rows 0..3 for DC and 4..7 for AC."""
    needed = {name for _, name, _ in blocks if dc} | {0x10 | name for _, _, name in blocks if ac}
    for name in needed:
        if name not in known:
            raise ValueError("the JPEG lacks a Huffman table")
        tables[name % 16 + 4 * (name // 16)] = known[name]
