"""The compiled loop that turns the segmentations of an image, still in JSON, into spans of pixels.

It reads what official annotation files contain: polygons with plain numbers, and compressed run lengths. Everything else is
left to ``rasterize``, which is slower, reads more, and knows the reason for a refusal.
"""

import numpy as np

from cocolvis.compiled import entry, inner
from cocolvis.masks.polygon_kernels import outline_length, polygon_spans
from cocolvis.masks.run_kernels import CORRUPT, FILLED, decompressed, longer
from cocolvis.sources.json_kernels import after_blank

_COMMA, _COLON, _QUOTE, _ZERO_BYTE = b',:"0'
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = b"[]{}"

_MOST_DIGITS = 18
"""Digits that an int64 holds, whatever they are."""

_POWERS = 10.0 ** np.arange(_MOST_DIGITS + 1)
"""Powers of ten, all of which float64 holds exactly: 1e22 is the largest."""

_ZERO, _DIGIT, _MINUS, _POINT, _BLANK, _NEXT, _END, _OTHER = range(8)
"""What a byte can be in a list of numbers. From _NEXT on, it ends a number."""

_BEFORE, _SIGNED, _LEADING_ZERO, _WHOLE, _POINTED, _DECIMALS, _AFTER, _CLOSED, _REFUSED = range(9)
"""How far a list of numbers has been read: before a number, after its sign, and so on; _CLOSED and _REFUSED end it."""

_KINDS = np.full(256, _OTHER, np.uint8)
for _kind, _bytes in {
    _ZERO: b"0",
    _DIGIT: b"123456789",
    _MINUS: b"-",
    _POINT: b".",
    _BLANK: b" \t\n\r",
    _NEXT: b",",
    _END: b"]",
}.items():
    _KINDS[list(_bytes)] = _kind

_ENDED = {_NEXT: _BEFORE, _END: _CLOSED, _BLANK: _AFTER}
_STATES = np.full((9, 8), _REFUSED, np.uint8)
"""The state after a byte, by the state before it and the kind of the byte: the grammar of JSON without exponents."""
for _state, _rules in {
    _BEFORE: {_BLANK: _BEFORE, _MINUS: _SIGNED, _ZERO: _LEADING_ZERO, _DIGIT: _WHOLE},
    _SIGNED: {_ZERO: _LEADING_ZERO, _DIGIT: _WHOLE},
    _LEADING_ZERO: {_POINT: _POINTED, **_ENDED},
    _WHOLE: {_ZERO: _WHOLE, _DIGIT: _WHOLE, _POINT: _POINTED, **_ENDED},
    _POINTED: {_ZERO: _DECIMALS, _DIGIT: _DECIMALS},
    _DECIMALS: {_ZERO: _DECIMALS, _DIGIT: _DECIMALS, **_ENDED},
    _AFTER: _ENDED,
}.items():
    _STATES[_state, list(_rules)] = list(_rules.values())

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
        starts[first:last], stops[first:last] = some_starts, some_stops
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
    count, at = _numbers(text, after_blank(text, at), numbers, 0)
    return at if count == 2 and numbers[0] == height and numbers[1] == width else -1


@inner()
def read_polygons(text):
    """(points (n, 2) float64, bounds int64) of a JSON list of polygons [x0, y0, x1, y1, ...]; no points unless all are plain.

    A polygon is plain if it has 3 points or more and :func:`_numbers` reads it.
    """
    numbers, bounds = np.empty(len(text) // 2 + 1), np.zeros(len(text) // 12 + 2, np.int64)
    none = numbers[:0].reshape(-1, 2), bounds[:1]
    if _symbol(text, 0) != _OPEN_LIST:
        return none
    count, polygons, at, after = 0, 0, 1, _COMMA
    while after == _COMMA:
        count, at = _numbers(text, after_blank(text, at), numbers, count)
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


@inner()
def _numbers(text, at, numbers, count):
    """(the new count, the offset after it) of a JSON list at an offset, whose numbers are appended; the offset may be -1.

    It is -1 unless all numbers are decimals without an exponent, of at most 18 digits which, as a whole number, are at most
    2**53. Both this number and the power of ten that divides it are exact in float64, so the quotient is rounded once: it is
    the float64 nearest to the decimal, which is what any correct parser returns.
    """
    if _symbol(text, at) != _OPEN_LIST:
        return count, -1
    at, state, fits = at + 1, np.uint8(_BEFORE), True
    while state < _CLOSED and at < len(text):
        value, digits, decimals, negative, kind = 0, 0, 0, False, np.uint8(_BLANK)
        while kind < _NEXT and at < len(text):
            kind = _KINDS[text[at]]
            state = _STATES[state, kind]
            value = 10 * value + (text[at] - _ZERO_BYTE) if kind <= _DIGIT else value
            digits += kind <= _DIGIT
            decimals += state == _DECIMALS
            negative |= kind == _MINUS
            at += 1
        fits &= digits <= _MOST_DIGITS and value <= 2**53
        number = value / _POWERS[min(decimals, _MOST_DIGITS)]
        numbers[count] = -number if negative else number
        count += 1
    return count, (at if state == _CLOSED and fits else -1)
