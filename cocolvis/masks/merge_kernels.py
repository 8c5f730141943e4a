"""The compiled loops that stack the regions of an image and find the runs of the resulting mask.

The mask never exists, and no pixel is painted. Regions arrive as spans of pixels that are numbered down the columns. The pixels
where a span starts or stops are marked in a map of one bit per pixel, and listed from it in order. Each region has a bit, the
lower the further up it lies, which is flipped at these pixels. From one to the next, the lowest bit that is set tells which
region is seen, which gives the runs of the columns. They are compared with themselves, one column later: where a pixel differs
from the one on its left, a run of a row can start. These pixels are sorted by row at the end. The time depends on the spans and
the runs, and hardly on the pixels.

Processors cannot predict where spans end, so the loops avoid branches that depend on it: they store what may not count, and
overwrite it then.
"""

import numpy as np

from cocolvis.compiled import entry, inner, set_bits, trailing_zeros
from cocolvis.masks.run_kernels import split

_BLOCK = 2**20
"""Words of flipped bits that are kept at a time, at most: 8 MiB. A million pixels with up to 64 regions are one block."""

_AT_ONCE = 2
"""Pixels that are listed without asking whether a word of the map marks so many; few words mark more."""

_CLASS_BITS = 16
"""The bits of a class at the lower end of a key; the column follows."""

_NONE, _ONE, _BITS = np.uint64(0), np.uint64(1), np.uint64(64)


@entry()
def merged_runs(starts, stops, bounds, class_ids, height, width):
    """(classes uint16, lengths uint16) of the row-major runs of a mask on which regions lie over each other.

    Region i has the class class_ids[i], uint16, on the spans [start, stop) from bounds[i] to bounds[i + 1], and covers those
    after it. ``starts`` and ``stops`` are int64 column-major pixel numbers, ascending in each region; ``bounds`` is int64. All
    other pixels are 0. Height and width are at least 1, and the number of pixels has at most 47 bits.
    """
    firsts, classes = _column_runs(starts, stops, bounds, class_ids, height, width)
    return _row_runs(firsts, classes, height, width)


@inner()
def _column_runs(starts, stops, bounds, class_ids, height, width):
    """(firsts (n + 1,), classes (n,)), both int64: the column-major runs [firsts[i], firsts[i + 1]) of the mask.

    A column of class -1 comes before it, at the pixels from -height on, so that all of the first column differs from it. The
    run at pixel 0 may be empty.
    """
    pixels, words = height * width, max(1, -(-len(class_ids) // 64))
    size = max(64, _BLOCK // words // 64 * 64)
    covering = np.zeros(words, np.uint64)  # the regions that the pixel belongs to
    next_starts, next_stops = bounds[:-1].copy(), bounds[:-1].copy()  # the first edges of each region beyond the blocks so far
    ids = np.zeros(64 * words + 1, np.int64)  # 0 is where no region is
    for region in range(len(class_ids)):
        ids[region] = class_ids[region]
    firsts, classes = np.empty(2 * len(starts) + 3, np.int64), np.empty(2 * len(starts) + 3, np.int64)
    firsts[0], firsts[1], classes[0], classes[1], count = -height, 0, -1, 0, 2
    for first in range(0, pixels, size):
        last = min(first + size, pixels)
        marked = np.zeros(-(-(last - first) // 64), np.uint64)  # a bit for each pixel where any region starts or stops
        _mark(marked, first, last, starts, bounds, next_starts)
        _mark(marked, first, last, stops, bounds, next_stops)
        before, places = _listed(marked, 2 * len(starts))
        flips = np.zeros((words, len(places)), np.uint64)  # of each of these pixels: the regions that start or stop there
        _flip(flips, marked, before, first, last, starts, bounds, next_starts)
        _flip(flips, marked, before, first, last, stops, bounds, next_stops)
        count = _changes(flips, places, covering, ids, first, firsts, classes, count)
    firsts[count] = pixels
    return firsts[: count + 1], classes[:count]


@inner()
def _end(edges, edge, end, last):
    """The first of the ascending edges[edge:end] that is not before the pixel ``last``."""
    if edge == end or edges[end - 1] < last:
        return end
    return edge + np.searchsorted(edges[edge:end], last)


@inner()
def _mark(marked, first, last, edges, bounds, following):
    """Mark the edges of all regions, which are the starts or the stops of spans, in a block of pixels.

    These are the first pixel of the block and the one after it. The edges of region i are those before bounds[i + 1]; the next
    one is ``following[i]``.
    """
    for region in range(len(following)):
        edge = following[region]
        for i in range(edge, _end(edges, edge, bounds[region + 1], last)):
            at = np.uint64(edges[i] - first)
            marked[at // _BITS] |= _ONE << (at % _BITS)


@inner()
def _listed(marked, most):
    """(before, places), both int32: how many pixels are marked before each word, and which; no more than ``most``."""
    before, places = np.empty(len(marked), np.int32), np.empty(min(64 * len(marked), most) + _AT_ONCE, np.int32)
    listed = np.int64(0)
    for part in range(len(marked)):
        before[part] = listed
        left = marked[part]
        count = np.int64(set_bits(left))
        for i in range(_AT_ONCE):
            places[listed + i] = 64 * part + np.int64(trailing_zeros(left))
            left &= left - _ONE
        for i in range(_AT_ONCE, count):
            places[listed + i] = 64 * part + np.int64(trailing_zeros(left))
            left &= left - _ONE
        listed += count
    return before, places[:listed]


@inner()
def _flip(flips, marked, before, first, last, edges, bounds, following):
    """Flip the bits of all regions at their edges, which are marked. ``following`` moves on; the arguments are as above."""
    for region in range(len(following)):
        bits, bit = flips[region // 64], _ONE << np.uint64(region % 64)
        edge = following[region]
        following[region] = _end(edges, edge, bounds[region + 1], last)
        for i in range(edge, following[region]):
            at = np.uint64(edges[i] - first)
            word, below = at // _BITS, (_ONE << (at % _BITS)) - _ONE
            bits[np.uint64(before[word]) + set_bits(marked[word] & below)] ^= bit


@inner()
def _changes(flips, places, covering, ids, first, firsts, classes, count):
    """Append the runs that begin in a block, whose first pixel is given; the new number of runs.

    ``flips`` is (words, n), for the n ``places``. ``covering`` passes from block to block.
    """
    first_word, last = covering[0], classes[count - 1]
    for at in range(len(places)):
        first_word ^= flips[0, at]
        top = trailing_zeros(first_word)
        if len(flips) > 1:  # more than 64 regions
            below = _lowest_of_others(flips, covering, at)
            top = top if first_word else below
        firsts[count], classes[count] = first + places[at], ids[top]
        count += ids[top] != last
        last = ids[top]
    covering[0] = first_word
    return count


@inner()
def _lowest_of_others(flips, covering, at):
    """The lowest bit of ``covering`` after its first word, all of which changes here; 64 times the words if none is set."""
    top = _BITS * np.uint64(len(flips))
    for word in range(len(flips) - 1, 0, -1):
        covering[word] ^= flips[word, at]
        if covering[word]:
            top = _BITS * np.uint64(word) + trailing_zeros(covering[word])
    return top


@inner()
def _differing(firsts, classes, height, width):
    """(columns, begins, ends, seen), all int64: stretches of pixels that differ in class from those on their left.

    A stretch is the rows [begin, end) of a column; its pixels have the class ``seen``.
    """
    columns, begins, ends, seen = np.empty((4, 2 * len(classes) + width), np.int64)
    before, here = 0, 1  # the run on the left of the pixel, and its own
    pixel, column, top, count = 0, 0, 0, 0  # ``top`` is the first pixel of the column
    while pixel < firsts[-1]:
        end_before, end, bottom = firsts[before + 1] + height, firsts[here + 1], top + height
        same = min(end_before, end, bottom)
        columns[count], begins[count], ends[count], seen[count] = column, pixel - top, same - top, classes[here]
        count += (classes[before] != classes[here]) & (pixel < same)
        before, here, pixel = before + (end_before == same), here + (end == same), same
        column, top = column + (bottom == same), top + height * (bottom == same)
    return columns[:count], begins[:count], ends[:count], seen[:count]


@inner()
def _row_runs(firsts, classes, height, width):
    """The row-major runs of a mask, from what :func:`_column_runs` returns."""
    columns, begins, ends, seen = _differing(firsts, classes, height, width)
    following, total = _places(begins, ends, height)
    keys = np.empty(total, np.int64)  # column and class of each pixel at which a run of a row may start, by row
    for i in range(len(columns)):
        key = columns[i] << _CLASS_BITS | seen[i]
        for row in range(begins[i], ends[i]):
            keys[following[row]] = key
            following[row] += 1
    starts, ids, count, last, at = np.empty(total + 1, np.int64), np.empty(total, np.uint16), 0, -1, 0
    for row in range(height):
        while at < following[row]:  # which is now where those of the next row begin
            class_id = keys[at] & (2**_CLASS_BITS - 1)
            starts[count], ids[count] = row * width + (keys[at] >> _CLASS_BITS), class_id
            count += class_id != last
            last, at = class_id, at + 1
    starts[count] = height * width
    return split(starts[: count + 1], ids[:count])


@inner()
def _places(begins, ends, height):
    """((height,) int64, total): how many pixels of all stretches of rows [begin, end) lie above each row, and in all rows."""
    changes = np.zeros(height + 1, np.int64)
    for i in range(len(begins)):
        changes[begins[i]] += 1
        changes[ends[i]] -= 1
    total = inside = 0
    for row in range(height):
        inside += changes[row]
        changes[row] = total
        total += inside
    return changes, total
