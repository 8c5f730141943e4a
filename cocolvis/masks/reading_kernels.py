"""The compiled loop that turns the segmentations of an image, still in JSON, into spans of pixels.

It reads what official annotation files contain: polygons with plain numbers, and compressed run lengths. Everything else is
left to ``rasterize``, which is slower, reads more, and knows the reason for a refusal.
"""

import numpy as np

from cocolvis.compiled import entry, inner
from cocolvis.masks.number_kernels import append_numbers
from cocolvis.masks.polygon_kernels import outline_length, polygon_spans
from cocolvis.masks.run_kernels import CORRUPT, FILLED, decompressed, longer
from cocolvis.sources.json_kernels import after_blank

_COMMA, _COLON, _QUOTE = b',:"'
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"

_COUNTS, _SIZE = (np.frombuffer(key, np.uint8) for key in (b'"counts"', b'"size"'))


@entry()
def read_all(text, bounds, longest, height, width):
    """(read, starts, stops, ends): the spans of n segmentations, those of segmentation i from ends[i] to ends[i + 1].

    Segmentation i is text[bounds[i]:bounds[i + 1]], with ``text`` uint8 that is read-only and ``bounds`` (n + 1,) int64.
    ``read`` (n,) bool tells which of them were read; the others have no spans. ``ends`` is (n + 1,) int64. The spans are those
    of :func:`polygon_spans` or :func:`run_spans`. A segmentation is not read if it is not plain, if :func:`outline_length`
    refuses its polygons or exceeds ``longest``, or if its run lengths are corrupt or those of another size.
    """
    count = len(bounds) - 1
    read, ends = np.zeros(count, np.bool_), np.zeros(count + 1, np.int64)
    starts, stops = np.empty(len(text) // 2 + 1, np.int64), np.empty(len(text) // 2 + 1, np.int64)
    for i in range(count):
        read[i], some_starts, some_stops = _read(text[bounds[i] : bounds[i + 1]], longest, height, width)
        first, last = ends[i], ends[i] + len(some_starts)
        if last > len(starts):
            starts, stops = longer(starts, 2 * last), longer(stops, 2 * last)
        for span in range(last - first):
            starts[first + span], stops[first + span] = some_starts[span], some_stops[span]
        ends[i + 1] = last
    return read, starts[: ends[count]], stops[: ends[count]], ends


@inner()
def _read(text, longest, height, width):
    """(whether it was read, starts, stops) of one segmentation."""
    if _symbol(text, 0) == _OPEN_OBJECT:
        return _read_runs(text, height, width)
    points, bounds = read_polygons(text)
    length = outline_length(points, bounds, height, width)
    if len(points) == 0 or not 0 <= length <= longest:
        return False, bounds[:0], bounds[:0]
    starts, stops = polygon_spans(points, bounds, height, width)
    return True, starts, stops


@inner()
def _read_runs(text, height, width):
    """(whether it was read, starts, stops) of a JSON object with compressed "counts" and the "size" [height, width]."""
    starts, stops = np.empty(0, np.int64), np.empty(0, np.int64)
    finding, sized, at = CORRUPT, False, 1
    for closing in (_COMMA, _CLOSE_OBJECT):
        at = after_blank(text, at)
        if _begins(text, at, _COUNTS):
            at = _after(text, _after(text, at + len(_COUNTS), _COLON), _QUOTE)
            if at < 0:
                return False, starts[:0], stops[:0]
            finding, starts, stops, at = decompressed(text, at, True, height * width)
            at = _after(text, at, _QUOTE)
        elif _begins(text, at, _SIZE):
            at = _after_size(text, _after(text, at + len(_SIZE), _COLON), height, width)
            sized = at >= 0
        else:
            at = -1
        at = _after(text, at, closing)
    if finding != FILLED or not sized or at < 0 or after_blank(text, at) != len(text):
        return False, starts[:0], stops[:0]
    return True, starts, stops


@inner()
def _begins(text, at, word):
    """Whether the text has the bytes ``word`` at an offset."""
    for i in range(len(word)):  # noqa: SIM110 (numba compiles a loop better than a generator)
        if _symbol(text, at + i) != word[i]:
            return False
    return True


@inner()
def _after(text, at, symbol):
    """The offset after a symbol that follows, or -1 if another one follows or ``at`` is -1."""
    if at < 0:
        return at
    at = after_blank(text, at)
    return at + 1 if _symbol(text, at) == symbol else -1


@inner()
def _after_size(text, at, height, width):
    """The offset after the list [height, width], or -1 if another value follows or ``at`` is -1."""
    if at < 0:
        return at
    numbers = np.empty(len(text) // 2 + 1)
    count, at = append_numbers(text, after_blank(text, at), numbers, 0)
    return at if count == 2 and numbers[0] == height and numbers[1] == width else -1


@inner()
def read_polygons(text):
    """(points (n, 2) float64, bounds int64) of a JSON list of polygons [x0, y0, x1, y1, ...]; no points unless all are plain.

    A polygon is plain if it has 3 points or more and :func:`append_numbers` reads it.
    """
    numbers, bounds = np.empty(len(text) // 2 + 1), np.zeros(len(text) // 12 + 2, np.int64)
    none = numbers[:0].reshape(-1, 2), bounds[:1]
    if _symbol(text, 0) != _OPEN_LIST:
        return none
    count, polygons, at, after = 0, 0, 1, _COMMA
    while after == _COMMA:
        count, at = append_numbers(text, after_blank(text, at), numbers, count)
        if at < 0 or count % 2 or count // 2 - bounds[polygons] < 3:
            return none
        polygons += 1
        bounds[polygons] = count // 2
        at = after_blank(text, at)
        after, at = _symbol(text, at), at + 1
    if after != _CLOSE_LIST or after_blank(text, at) != len(text):
        return none
    return numbers[:count].reshape(-1, 2), bounds[: polygons + 1]


@inner()
def _symbol(text, at):
    """The byte at an offset, 0 after the end."""
    return text[at] if at < len(text) else np.uint8(0)
