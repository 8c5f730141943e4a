"""The compiled loop that paints the regions of an image over each other and finds the runs of the resulting mask.

The mask never exists as a whole. Regions arrive as spans of columns and are painted into a block of a few columns, which fits
into the fastest cache. A run of a row can only start where a column differs from the one before it, so these pixels are listed
and sorted by row at the end.
"""

import numpy as np

from cocolvis.compiled import entry, inner
from cocolvis.masks.run_kernels import longer, split

_BLOCK = 2**13
"""Pixels of a block: 16 KiB."""

_WORD = 8
"""Pixels whose differences are looked at together, a byte each."""

_CLASS_BITS = 16
"""The bits of a class at the lower end of a key; the column and then the row follow."""


@entry()
def merged_runs(starts, stops, bounds, class_ids, height, width):
    """(classes uint16, lengths uint16) of the row-major runs of a mask on which regions are painted over each other.

    Region i paints class_ids[i], uint16, on the spans [start, stop) from bounds[i] to bounds[i + 1], over those before it.
    ``starts`` and ``stops`` are int64 column-major pixel numbers, ascending in each region; ``bounds`` is int64. All other
    pixels are 0. Height and width are at least 1, and the number of pixels has at most 47 bits.
    """
    row_bits = _CLASS_BITS  # where the row begins in a key
    while width > 1 << (row_bits - _CLASS_BITS):
        row_bits += 1
    columns = max(1, _BLOCK // height)
    block = np.zeros((columns + 1) * height, np.uint16)  # its first column is the last one of the block before
    differs = np.zeros(-(-height // _WORD) * _WORD, np.uint8)
    listed = np.empty(len(differs) // _WORD + 1, np.int32)
    following = bounds[:-1].copy()  # the first span of each region that may reach beyond the blocks so far
    keys, count = np.empty(4 * height, np.int64), 0
    for left in range(0, width, columns):
        right = min(left + columns, width)
        block[:height] = block[columns * height :]
        block[height:] = 0
        _paint(block[height:], left * height, right * height, starts, stops, bounds, class_ids, following)
        for column in range(left, right):
            if count + height > len(keys):
                keys = longer(keys, 2 * len(keys))
            here = (column - left + 1) * height
            shown, before = block[here : here + height], block[here - height : here]
            _compare(shown, before, column, differs)
            count = _list(shown, np.int64(column) << _CLASS_BITS, row_bits, differs, listed, keys, count)
    return _sorted_by_row(keys[:count], row_bits, height, width)


@inner()
def _paint(block, first, last, starts, stops, bounds, class_ids, following):
    """Paint the parts of all spans between two pixel numbers, which are the first one of the block and the one after it."""
    for region in range(len(class_ids)):
        span, end = following[region], bounds[region + 1]
        while span < end and starts[span] < last:
            block[max(starts[span], first) - first : min(stops[span], last) - first] = class_ids[region]
            if stops[span] > last:
                break
            span += 1
        following[region] = span


@inner()
def _compare(shown, before, column, differs):
    """Note in ``differs`` which pixels (H,) of a column differ from those of the one before it: all in the first column."""
    for row in range(len(shown)):
        differs[row] = shown[row] != before[row]
    if column == 0:
        differs[: len(shown)] = 1


@inner()
def _list(shown, column_key, row_bits, differs, listed, keys, count):
    """Append the keys of the pixels that differ; the new number of keys. ``listed`` has room for all words of ``differs``.

    Both loops store every candidate, and the next one overwrites it unless it counts: processors cannot predict where columns
    differ.
    """
    words, some = differs.view(np.uint64), 0
    for word in range(len(words)):
        listed[some] = word
        some += words[word] != 0
    for word in listed[:some]:
        for row in range(_WORD * word, min(_WORD * (word + 1), len(shown))):
            keys[count] = (np.int64(row) << row_bits) | column_key | np.int64(shown[row])
            count += differs[row]
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
