"""The compiled loops between run lengths, spans and masks.

They check all lengths and bounds, and stay inside their arrays for any input. Faults are returned as values, which
``rasterize`` describes in words.
"""

import numpy as np

from cocolvis.compiled import entry, inner

FILLED, CORRUPT, TOO_LONG, UNFILLED = range(4)
"""The findings of :func:`compressed_spans` and :func:`run_spans`."""

_FOUR_PIXELS = np.uint64(0x0001000100010001)
"""A uint16 multiplied by this is four copies of it side by side."""

_LONGEST_RUN = 2**16 - 1
"""Pixels that the uint16 length of one run can count."""

_QUOTE, _BACKSLASH = b'"\\'

_WRITTEN = 128
"""Pixels that are written at a time: more than most runs have, and so many that the compiler vectorises the loop."""

_MOST_BITS = 40
"""The most bits of one compressed run length, more than any image needs."""


@entry()
def compressed_spans(counts, pixels):
    """(finding, starts, stops) of COCO's compressed counts, (n,) uint8 of ASCII, for an image of ``pixels`` pixels.

    Each character, less 48, holds 5 bits of a number, the lowest first, and has bit 32 set if more follow. Numbers are signed;
    from the fourth on, a number is the difference to the run two places before. The result is that of :func:`run_spans`.
    """
    finding, starts, stops, end = decompressed(counts, 0, False, pixels)
    stopped = end < len(counts) and finding != TOO_LONG  # at a quote
    return (CORRUPT if stopped else finding), starts, stops


@inner()
def decompressed(text, at, escaped, pixels):
    """(finding, starts, stops, end) of compressed counts in the text, from ``at`` to ``end``, which is a quote or the end.

    If they are ``escaped``, two backslashes stand for one, as in JSON. Every number stores a span, and the next one overwrites
    it unless it counts.
    """
    starts, stops = np.empty((len(text) - at) // 2 + 2, np.int64), np.empty((len(text) - at) // 2 + 2, np.int64)
    number = last = last_but_one = covered = count = 0
    corrupt, unfilled = False, False
    while at < len(text) and text[at] != _QUOTE:
        value, bits, symbol = 0, 0, 32
        while symbol & 32:
            if at >= len(text):
                return CORRUPT, starts[:0], stops[:0], at
            if bits == _MOST_BITS:
                return (CORRUPT if corrupt else TOO_LONG), starts[:0], stops[:0], at
            if escaped and text[at] == _BACKSLASH:
                at += 1
                corrupt |= at == len(text) or text[at] != _BACKSLASH
            symbol = int(text[min(at, len(text) - 1)]) - 48
            corrupt |= symbol < 0 or symbol > 63
            value |= (symbol & 31) << bits
            bits += 5
            at += 1
        run = value - (((symbol >> 4) & 1) << bits) + (last_but_one if number > 2 else 0)
        starts[count], stops[count] = covered, covered + run
        unfilled |= run < 0 or run > pixels - covered
        count += number & (run > 0)
        covered += run
        last_but_one, last = last, run
        number += 1
    if corrupt or number == 0:
        return CORRUPT, starts[:0], stops[:0], at
    return (UNFILLED if unfilled or covered != pixels else FILLED), starts[:count], stops[:count], at


@entry()
def run_spans(runs, pixels):
    """(finding, starts, stops) of (n,) int64 run lengths in column-major order, for an image of ``pixels`` pixels.

    Runs alternate between outside and inside, starting outside. The spans [start, stop) of the pixels inside are int64,
    ascending and disjoint. The finding is FILLED if the runs cover the image exactly.
    """
    starts, stops = np.empty(len(runs) // 2 + 1, np.int64), np.empty(len(runs) // 2 + 1, np.int64)
    at = count = 0
    for i in range(len(runs)):
        if runs[i] < 0 or runs[i] > pixels - at:
            return UNFILLED, starts[:0], stops[:0]
        if i % 2 and runs[i]:
            starts[count], stops[count] = at, at + runs[i]
            count += 1
        at += runs[i]
    return (FILLED if at == pixels else UNFILLED), starts[:count], stops[:count]


@inner()
def _bounds(flat, words):
    """(n + 1,) int64: where the n runs of a flat (P,) uint16 array start, and P; ``words`` (P // 4,) uint64 is the same memory.

    The first loop lists the words that are not four copies of the pixel before them, the second looks at their pixels. Both
    store every candidate, and the next one overwrites it unless it counts: processors cannot predict where runs end.
    """
    listed, count, before = np.empty(len(words) + 1, np.int32), 0, flat[0]
    for word in range(len(words)):
        listed[count] = word
        count += words[word] != np.uint64(before) * _FOUR_PIXELS
        before = flat[4 * word + 3]
    listed[count] = len(words)  # the pixels after the last word
    starts, found = np.empty(4 * count + 6, np.int64), 1
    starts[0] = 0
    for word in listed[: count + 1]:
        for i in range(4 * word, min(4 * word + 4, len(flat))):
            starts[found] = i
            found += flat[i] != flat[max(i - 1, 0)]
    starts[found] = len(flat)
    return starts[: found + 1]


@entry()
def run_lengths(flat, words):
    """(classes uint16, lengths uint16) of the runs of equal value in a flat (P,) uint16 array, P >= 1.

    ``words`` (P // 4,) uint64 is the same memory, in which four pixels are compared at a time. A run of more than 65535 pixels
    is split into several.
    """
    bounds = _bounds(flat, words)
    return split(bounds, flat[bounds[:-1]])


@inner()
def split(bounds, values):
    """(classes uint16, lengths uint16) of the runs [bounds[i], bounds[i + 1]) of the classes ``values`` (n,) uint16.

    ``bounds`` is (n + 1,) int64. A run of more than 65535 pixels is split into several.
    """
    lengths, longest = np.empty(len(values), np.uint16), 0
    for i in range(len(values)):
        length = bounds[i + 1] - bounds[i]
        lengths[i], longest = length, max(length, longest)
    if longest <= _LONGEST_RUN:
        return values.copy(), lengths
    most = len(values) + (bounds[-1] - bounds[0]) // _LONGEST_RUN
    classes, lengths, run = np.empty(most, np.uint16), np.empty(most, np.uint16), 0
    for i in range(len(values)):
        left = bounds[i + 1] - bounds[i]
        while left > 0:
            classes[run], lengths[run] = values[i], min(left, _LONGEST_RUN)
            left -= _LONGEST_RUN
            run += 1
    return classes[:run].copy(), lengths[:run].copy()


@inner()
def longer(values, length):
    """The same values (n,) with room for ``length``; what follows them is undefined."""
    copy = np.empty(length, values.dtype)
    for i in range(len(values)):
        copy[i] = values[i]
    return copy


@entry()
def expand(classes, lengths, pixels):
    """The runs as a flat (pixels,) uint16 array, or an empty array if they do not cover it exactly.

    Every run is written ``_WRITTEN`` pixels at a time. What this writes past the end of a run, the next run overwrites.
    """
    flat = np.empty(pixels + _WRITTEN, np.uint16)
    at = 0
    for run in range(len(classes)):
        class_id, end, place = classes[run], at + lengths[run], at
        if end > pixels:
            return flat[:0]
        while place < end:
            for i in range(_WRITTEN):
                flat[place + i] = class_id
            place += _WRITTEN
        at = end
    return flat[: pixels if at == pixels else 0]


@entry()
def window(classes, lengths, width, top, bottom, left, right):
    """(classes uint16, lengths int32) of the runs of mask[top:bottom, left:right], row-major.

    ``classes`` and ``lengths`` cover a mask of ``width`` columns. Neighbouring runs of the result differ in class.
    """
    most = len(classes) + bottom - top  # every run of the result starts where a run or a row of the mask starts
    shown, sizes, count = np.empty(most, np.uint16), np.empty(most, np.int32), 0
    at, row, last = 0, top * width, bottom * width
    for run in range(len(classes)):
        start, end = max(at, row), min(at + lengths[run], last)
        while start < end:
            low, high = max(start, row + left), min(end, row + right)
            if low < high and count and shown[count - 1] == classes[run]:
                sizes[count - 1] += high - low
            elif low < high:
                shown[count], sizes[count] = classes[run], high - low
                count += 1
            start = min(end, row + width)
            if start == row + width:
                row = start
        at += lengths[run]
        if at >= last:
            break
    return shown[:count], sizes[:count]


@entry()
def pixels_of(classes, lengths):
    """(classes (n,) uint16 that occur in the runs, ascending and without 0; their pixels (n,) uint32)."""
    pixels = np.zeros(int(classes.max()) + 1 if len(classes) else 1, np.uint32)
    for i in range(len(classes)):
        pixels[classes[i]] += lengths[i]
    pixels[0] = 0
    present = np.flatnonzero(pixels)
    return present.astype(np.uint16), pixels[present]
