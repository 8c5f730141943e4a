"""Turn a segmentation (polygons or run lengths) into the pixels it covers, or say why it cannot be painted."""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import msgspec
import numpy as np

from cocolvis.masks import polygon_kernels, reading_kernels, run_kernels
from cocolvis.sources.json_values import REFUSED, described, whole
from cocolvis.text import first_few

MAX_OUTLINE = 2**24
"""The longest polygon outline, in pixels, that is accepted. Memory and time grow with it."""


class _RunLengths(msgspec.Struct, gc=False):
    counts: str | list[int]
    size: tuple[int, int]


class BadSegmentation(ValueError):
    """A segmentation that cannot be painted. The message gives the reason."""


class Spans(NamedTuple):
    """The pixels of one region: intervals [starts[i], stops[i]) of the column-major pixel numbers x * H + y.

    Both are (n,) int64 and ascending. The intervals are disjoint.
    """

    starts: np.ndarray
    stops: np.ndarray

    @property
    def area(self) -> int:
        """The number of pixels."""
        return int(self.stops.sum(dtype=np.int64) - self.starts.sum(dtype=np.int64))


class _LooseRunLengths(msgspec.Struct, gc=False):
    """Run lengths whose whole numbers may also be written as 10.0."""

    counts: str | list[int | float]
    size: tuple[int | float, int | float]

    def whole(self) -> _RunLengths:
        counts = self.counts if isinstance(self.counts, str) else [whole(count) for count in self.counts]
        return _RunLengths(counts, (whole(self.size[0]), whole(self.size[1])))


_decode = msgspec.json.Decoder(list[list[float]] | _RunLengths).decode

_LONGEST_EXPLAINED = 2**16
"""The longest segmentation, in bytes, whose fault is described in the message."""


def rasterize(segmentation: bytes | msgspec.Raw, height: int, width: int) -> Spans:
    """The pixels that a COCO or LVIS segmentation covers in an image of this size, exactly as pycocotools paints them.

    ``segmentation`` is JSON: either a list of polygons [x0, y0, x1, y1, ...], of which the union is taken, or an object
    {"size": [H, W], "counts": ...} with run lengths, as compressed text or as a list. Raises :class:`BadSegmentation` for
    anything else.
    """
    (found,) = rasterize_all([segmentation], height, width)
    if isinstance(found, BadSegmentation):
        raise found
    return found


def rasterize_all(segmentations: Sequence[bytes | msgspec.Raw], height: int, width: int) -> list[Spans | BadSegmentation]:
    """What :func:`rasterize` finds for each of the segmentations of an image, the error where it raises one."""
    read, starts, stops, ends = reading_kernels.read_all(*joined(segmentations), MAX_OUTLINE, height, width)
    return [
        Spans(starts[first:last], stops[first:last]) if plain else _patiently(segmentation, height, width)
        for segmentation, plain, (first, last) in zip(segmentations, read.tolist(), pairwise(ends.tolist()), strict=True)
    ]


def joined(segmentations: Sequence[bytes | msgspec.Raw]) -> tuple[np.ndarray, np.ndarray]:
    """(text uint8, bounds (n + 1,) int64): segmentations for the compiled loops, i at text[bounds[i]:bounds[i + 1]]."""
    bounds = np.array([0, *accumulate(map(len, segmentations))], np.int64)
    return np.frombuffer(b"".join(segmentations) or b" ", np.uint8), bounds


def _patiently(segmentation: bytes | msgspec.Raw, height: int, width: int) -> Spans | BadSegmentation:
    """The pixels of a segmentation that the compiled loop does not read, or what is wrong with it."""
    try:
        return _parsed(segmentation, height, width)
    except BadSegmentation as error:
        return error


def _parsed(segmentation: bytes | msgspec.Raw, height: int, width: int) -> Spans:
    """The spans of a segmentation; raises BadSegmentation if it is none, or is for an image of another size."""
    try:
        parsed = _decode(segmentation)
    except REFUSED:
        try:
            parsed = msgspec.json.decode(segmentation, type=_LooseRunLengths).whole()
        except (*REFUSED, ValueError):
            raise BadSegmentation(f"is neither polygons nor run lengths: {_explained(segmentation)}") from None
    if isinstance(parsed, list):
        return _from_polygons(parsed, height, width)
    if parsed.size != (height, width):
        raise BadSegmentation(f"has run lengths for {parsed.size[0]} x {parsed.size[1]}, the image is {height} x {width}")
    return _from_runs(parsed.counts, height * width)


def _explained(segmentation: bytes | msgspec.Raw) -> str:
    """Say what is wrong with a segmentation that cannot be parsed."""
    if len(segmentation) > _LONGEST_EXPLAINED:
        return "it contains neither lists of numbers nor counts and size"
    try:
        parts = msgspec.json.decode(segmentation, type=list[msgspec.Raw] | dict[str, msgspec.Raw])
    except REFUSED:
        return f"it is {described(segmentation)}"
    if isinstance(parts, dict):
        return _explained_runs(parts)
    for part in parts:
        try:
            numbers = msgspec.json.decode(part, type=list[msgspec.Raw])
        except REFUSED:
            return f"it has {described(part)} where a polygon, a list of numbers, is expected"
        wrong = next((number for number in numbers if not _is_number(number)), None)
        if wrong is not None:
            return f"a coordinate of a polygon is {described(wrong)}; expected a number"
    return "its content cannot be read"


def _explained_runs(parts: dict[str, msgspec.Raw]) -> str:
    for name in ("size", "counts"):
        if name not in parts:
            return f"it is an object without {name}"
    expected = {"size": "two whole numbers, height and width", "counts": "text or a list of whole numbers"}
    try:
        msgspec.json.decode(parts["size"], type=tuple[int, int])
        name = "counts"
    except REFUSED:
        name = "size"
    try:
        items = msgspec.json.decode(parts[name], type=list[msgspec.Raw])
    except REFUSED:
        return f"its {name} is {described(parts[name])}; expected {expected[name]}"
    shown = first_few(map(described, items), 3) or "nothing"
    return f"its {name} is a list of {shown}; expected {expected[name]}"


def _is_number(raw: msgspec.Raw) -> bool:
    try:
        msgspec.json.decode(raw, type=float)
    except REFUSED:
        return False
    return True


def _from_polygons(polygons: list[list[float]], height: int, width: int) -> Spans:
    if not polygons:
        raise BadSegmentation("has no polygon")
    bounds = [0]
    for polygon in polygons:
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadSegmentation(f"has a polygon of {len(polygon)} numbers; expected x, y pairs, 3 points or more")
        bounds.append(bounds[-1] + len(polygon) // 2)
    points = np.array(polygons[0] if len(polygons) == 1 else list(chain.from_iterable(polygons))).reshape(-1, 2)
    ends = np.array(bounds)
    length = polygon_kernels.outline_length(points, ends, height, width)
    if length < 0:
        raise BadSegmentation(
            f"has a coordinate that is not a number, or is more than one image side outside {height} x {width}"
        )
    if length > MAX_OUTLINE:
        raise BadSegmentation(f"has an outline of {length:.0f} pixels; at most {MAX_OUTLINE} are accepted")
    return Spans(*polygon_kernels.polygon_spans(points, ends, height, width))


def _from_runs(counts: str | list[int], pixels: int) -> Spans:
    if isinstance(counts, str):
        try:
            finding, *spans = run_kernels.compressed_spans(np.frombuffer(bytearray(counts, "ascii"), np.uint8), pixels)
        except UnicodeEncodeError:
            raise BadSegmentation("has counts with characters outside ASCII") from None
    else:
        try:
            finding, *spans = run_kernels.run_spans(np.array(counts, dtype=np.int64), pixels)
        except OverflowError:
            raise BadSegmentation("has a run length beyond 64 bits") from None
    if finding == run_kernels.CORRUPT:
        raise BadSegmentation("has corrupt compressed counts")
    if finding == run_kernels.TOO_LONG:
        raise BadSegmentation("has compressed counts beyond 40 bits")
    if finding == run_kernels.UNFILLED:
        raise BadSegmentation(f"has run lengths that do not fill the image's {pixels} pixels")
    return Spans(*spans)
