"""The compiled loop that stacks the regions of an image and finds the runs of the resulting mask.

The mask never exists, and no pixel is painted. Regions arrive as spans of columns. Each has a bit, the higher the further up it
lies, which is flipped at the pixels where a span starts and where it stops. Down a column, the highest bit that is set tells
which region is seen, so the column becomes a short list of changes. Where this list differs from that of the column before, a
run of a row can start; these pixels are sorted by row at the end. The time depends on the spans and the runs.
"""

import numpy as np

from cocolvis.compiled import entry, inner, leading_zeros, trailing_zeros
from cocolvis.masks.run_kernels import longer, split

_BLOCK = 2**12
"""Words of flipped bits that are kept at a time: 32 KiB."""

_CLASS_BITS = 16
"""The bits of a class at the lower end of a key; the column and then the row follow."""

_NONE, _ONE, _BITS = np.uint64(0), np.uint64(1), np.uint64(64)


@entry()
def merged_runs(starts, stops, bounds, class_ids, height, width):
    """(classes uint16, lengths uint16) of the row-major runs of a mask on which regions lie over each other.

    Region i has the class class_ids[i], uint16, on the spans [start, stop) from bounds[i] to bounds[i + 1], and covers those
    before it. ``starts`` and ``stops`` are int64 column-major pixel numbers, ascending in each region; ``bounds`` is int64. All
    other pixels are 0. Height and width are at least 1, and the number of pixels has at most 47 bits.
    """
    row_bits = _CLASS_BITS  # where the row begins in a key
    while width > 1 << (row_bits - _CLASS_BITS):
        row_bits += 1
    words = max(1, -(-len(class_ids) // 64))
    columns = max(1, _BLOCK // (height * words))
    flips = np.zeros((words, columns * height), np.uint64)  # of each pixel of a block: the regions that start or stop there
    flipped = np.zeros((columns, -(-height // 64)), np.uint64)  # a bit for each pixel that has any
    upper = np.empty(words, np.uint64)  # the regions that a pixel belongs to, from the 65th on
    following = bounds[:-1].copy()  # the first span of each region that may reach beyond the blocks so far
    ids = np.zeros(len(class_ids) + 1, np.int64)  # 0 is where no region is
    ids[1:] = class_ids
    rows, seen = np.empty((2, height + 1), np.int64), np.empty((2, height + 1), np.int64)  # changes of two columns in turn
    rows[1, 0], rows[1, 1], seen[1, 0] = 0, height, -1
    keys, count = np.empty(4 * height, np.int64), 0
    for left in range(0, width, columns):
        right = min(left + columns, width)
        _flip(flips, flipped, left * height, right * height, height, starts, stops, bounds, following)
        for column in range(left, right):
            here, now, before = column - left, column % 2, 1 - column % 2
            part = flips[:, here * height : (here + 1) * height]
            rows[now, _changes(part, flipped[here], upper, ids, rows[now], seen[now])] = height
            if count + height > len(keys):
                keys = longer(keys, 2 * len(keys))
            key = np.int64(column) << _CLASS_BITS
            count = _list(rows[before], seen[before], rows[now], seen[now], key, row_bits, keys, count)
    return _sorted_by_row(keys[:count], row_bits, height, width)


@inner()
def _flip(flips, flipped, first, last, height, starts, stops, bounds, following):
    """Flip the bits of all regions where their spans start and stop between two pixel numbers.

    These are the first pixel of the block and the one after it. Nothing is flipped at the end of a column: every column starts
    with no region.
    """
    for region in range(len(following)):
        bits, bit = flips[region // 64], _ONE << np.uint64(region % 64)
        span, end, column, top = following[region], bounds[region + 1], 0, first
        while span < end and starts[span] < last:
            start, stop = max(starts[span], first), min(stops[span], last)
            while start < stop:
                while start >= top + height:
                    column, top = column + 1, top + height
                bits[start - first] ^= bit
                _mark(flipped[column], start - top)
                start = min(stop, top + height)
                if start < top + height:
                    bits[start - first] ^= bit
                    _mark(flipped[column], start - top)
            if stops[span] > last:
                break
            span += 1
        following[region] = span


@inner()
def _mark(marks, row):
    """Set the bit of a row."""
    marks[row // 64] |= _ONE << np.uint64(row % 64)


@inner()
def _changes(flips, flipped, upper, ids, rows, seen):
    """The number of changes down a column, after writing the row where each begins and the class that is seen from there.

    ``flips`` (words, H) and ``flipped`` become zero again, and ``upper`` is overwritten. Every flip stores a change, and the
    next one overwrites it unless it shows another class: processors cannot predict which are covered.
    """
    lowest, upper[:] = _NONE, _NONE
    rows[0], seen[0], count, last = 0, 0, 1, 0
    for part in range(len(flipped)):
        left = flipped[part]
        flipped[part] = _NONE
        while left:
            row = 64 * part + np.int64(trailing_zeros(left))
            left &= left - _ONE
            lowest ^= flips[0, row]
            flips[0, row] = _NONE
            top = _BITS - leading_zeros(lowest)
            for word in range(1, len(flips)):  # of images with more than 64 regions
                upper[word] ^= flips[word, row]
                flips[word, row] = _NONE
                if upper[word]:
                    top = np.uint64(64 * word) + _BITS - leading_zeros(upper[word])
            shown = ids[top]
            count -= row == 0  # nothing is above
            rows[count], seen[count] = row, shown
            count += (count == 0) | (shown != last)
            last = shown
    return count


@inner()
def _list(rows_before, seen_before, rows, seen, column_key, row_bits, keys, count):
    """Append the keys of the pixels of a column that differ from those of the one before it; the new number of keys.

    The columns are given as changes; after the last one, the row is the height.
    """
    i, j, row, height = 0, 0, 0, len(rows) - 1
    while row < height:
        end_before, end = rows_before[i + 1], rows[j + 1]
        same = min(end_before, end)
        if seen_before[i] != seen[j]:
            for differing in range(row, same):
                keys[count] = (np.int64(differing) << row_bits) | column_key | seen[j]
                count += 1
        i, j, row = i + (end_before == same), j + (end == same), same
    return count


@inner()
def _sorted_by_row(keys, row_bits, height, width):
    """The runs that start at pixels, given as keys that are sorted by column, without those that continue the run before."""
    following = np.zeros(height + 1, np.int64)  # where the next pixel of each row goes
    for key in keys:
        following[(key >> row_bits) + 1] += 1
    for row in range(height):
        following[row + 1] += following[row]
    ordered = np.empty(len(keys), np.int64)
    for key in keys:
        row = key >> row_bits
        ordered[following[row]] = key
        following[row] += 1
    starts, classes, count = np.empty(len(keys), np.int64), np.empty(len(keys), np.uint16), 0
    for key in ordered:
        column = (key & ((1 << row_bits) - 1)) >> _CLASS_BITS
        starts[count], classes[count] = (key >> row_bits) * width + column, key & (2**_CLASS_BITS - 1)
        count += count == 0 or classes[count] != classes[count - 1]
    return split(starts[:count], classes[:count], height * width)
