"""A segmentation (polygons or run lengths) to the pixels it covers; refuses what would make pycocotools crash or lie."""

from typing import NamedTuple

import msgspec
import numpy as np
from pycocotools import mask as coco_mask

MAX_OUTLINE = 2**24
"""Longest polygon outline in pixels: pycocotools allocates in proportion to it."""


class _RunLengths(msgspec.Struct):
    counts: str | list[int]
    size: tuple[int, int]


class BadSegmentation(ValueError):
    """A segmentation that cannot be painted; the message is the reason."""


class Spans(NamedTuple):
    """The pixels of one region: intervals [starts[i], stops[i]) of the column-major pixel numbers x * H + y, ascending.

    Both are (n,) int64.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int((self.stops - self.starts).sum())


def rasterize(segmentation: bytes, height: int, width: int) -> Spans:
    """The pixels that a COCO or LVIS segmentation covers in an image of this size, exactly as pycocotools paints them.

    ``segmentation`` is JSON: a list of polygons [x0, y0, x1, y1, ...] whose union counts, or {"size": [H, W], "counts"}
    with run lengths, compressed (text) or not (list). Raises :class:`BadSegmentation` for anything else.
    """
    try:
        parsed = msgspec.json.decode(segmentation, type=list[list[float]] | _RunLengths)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise BadSegmentation(f"is neither polygons nor run lengths: {error}") from None
    if isinstance(parsed, list):
        return _spans(_polygon_runs(parsed, height, width))
    if parsed.size != (height, width):
        raise BadSegmentation(f"has run lengths for {parsed.size[0]} x {parsed.size[1]}, the image is {height} x {width}")
    runs = _decompress(parsed.counts) if isinstance(parsed.counts, str) else _integers(parsed.counts)
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise BadSegmentation(f"has run lengths that do not fill the image's {height * width} pixels")
    return _spans(runs)


def _polygon_runs(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    if not polygons:
        raise BadSegmentation("has no polygon")
    outline = 0.0
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadSegmentation(f"has a polygon of {len(polygon)} numbers; expected x, y pairs, 3 points or more")
        points = np.array(polygon).reshape(-1, 2)
        side = np.array([width, height])
        if not np.all((points >= -side) & (points <= 2 * side)):  # false for NaN too
            raise BadSegmentation(f"has a coordinate that is no number, or over one image side outside {height} x {width}")
        outline += np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
    if outline > MAX_OUTLINE:
        raise BadSegmentation(f"has an outline of {outline:.0f} pixels; at most {MAX_OUTLINE} are accepted")
    parts = coco_mask.frPyObjects(polygons, height, width)
    return _decompress(coco_mask.merge(parts)["counts"].decode("ascii"))


def _integers(counts: list[int]) -> np.ndarray:
    try:
        return np.array(counts, dtype=np.int64)
    except OverflowError:
        raise BadSegmentation("has a run length beyond 64 bits") from None


def _decompress(counts: str) -> np.ndarray:
    """COCO's compressed counts to run lengths.

    A character holds 5 bits, low bits first, and 32 when more follow; from the fourth on, a number is the difference to the run
    two places before.
    """
    try:
        symbols = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise BadSegmentation("has counts with characters outside ASCII") from None
    if symbols.size == 0 or symbols.min() < 0 or symbols.max() > 63 or symbols[-1] & 32:
        raise BadSegmentation("has corrupt compressed counts")
    last = np.flatnonzero(~symbols & 32)
    first = np.concatenate(([0], last[:-1] + 1))
    length = last - first + 1
    if length.max() > 8:
        raise BadSegmentation("has compressed counts beyond 40 bits")
    place = np.arange(symbols.size) - np.repeat(first, length)
    values = np.add.reduceat((symbols & 31) << (5 * place), first)
    values -= np.where(symbols[last] & 16, 1 << (5 * length), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _spans(runs: np.ndarray) -> Spans:
    """Runs alternate between outside and inside, starting outside."""
    ends = np.cumsum(runs)
    starts, stops = ends[0:-1:2], ends[1::2]
    inside = stops > starts
    return Spans(starts[inside], stops[inside])
