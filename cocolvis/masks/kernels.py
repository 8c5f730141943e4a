"""The compiled loops of merging: outlines and run lengths to spans, spans to a mask. Each test compares them with a plain twin.

They trust their arguments as far as memory goes (lengths and bounds are checked here), and report what does not fit as a value;
``rasterize`` says it in words.
"""

import numpy as np

from cocolvis.compiled import entry, inner

FILLED, CORRUPT, TOO_LONG, UNFILLED = range(4)
"""What :func:`compressed_spans` and :func:`run_spans` found."""

_SCALE = 5
"""pycocotools walks along outlines in steps of a fifth of a pixel."""

_FOUR_PIXELS = np.uint64(0x0001000100010001)
"""Times a uint16, four of it side by side."""

_LONGEST_RUN = 2**16 - 1

_MOST_SYMBOLS = 8
"""Characters of one compressed run length; 40 bits are far beyond any image."""


@entry()
def outline_length(points, bounds, height, width):
    """Pixels along the closed outlines of all polygons, in the larger of x and y; -1.0 when a point is NaN or far outside.

    ``points`` (n, 2) float64 of x, y; polygon i has the points bounds[i]:bounds[i + 1]. Far is more than one image side.
    """
    length = 0.0
    for polygon in range(len(bounds) - 1):
        before = bounds[polygon + 1] - 1
        for i in range(bounds[polygon], bounds[polygon + 1]):
            x, y = points[i]
            if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
                return -1.0
            length += max(abs(x - points[before, 0]), abs(y - points[before, 1]))
            before = i
    return length


@inner()
def _fine(value):
    """A coordinate in steps of a fifth of a pixel, rounded as C does: towards 0 after adding a half."""
    return int(_SCALE * value + 0.5)


@inner()
def _row(low, height):
    """The first row whose centre lies below a boundary point between the fine steps ``low`` and low + 1, in 0..height."""
    return min((max(low, 0) + _SCALE // 2) // _SCALE, height)


@inner()
def _walk(start, slope, step):
    """Where a line is after so many steps along its longer axis."""
    return int(start + slope * step + 0.5)


@inner()
def _cross(x0, y0, x1, y1, height, width, columns, rows, count):
    """Add the (column, row) where one edge, in fine steps, passes the centre of a pixel column; the new count."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    if (dx >= dy and x0 > x1) or (dx < dy and y0 > y1):
        x0, y0, x1, y1 = x1, y1, x0, y0
    low, high = min(x0, x1), max(x0, x1)
    first = max(-(-(low - 2) // _SCALE), 0)
    last = min((high - 3) // _SCALE, width - 1)
    if dx >= dy:
        slope = (y1 - y0) / dx if dx else 0.0
        for column in range(first, last + 1):
            step = _SCALE * column + 2 - x0
            columns[count] = column
            rows[count] = _row(min(_walk(y0, slope, step), _walk(y0, slope, step + 1)), height)
            count += 1
        return count
    slope = (x1 - x0) / dy
    for column in range(first, last + 1):
        edge = _SCALE * column + 2.5
        step = min(max(int((edge - x0) / slope), 1), dy)
        while step > 1 and (_walk(x0, slope, step - 1) > edge) == (slope > 0):
            step -= 1
        while step < dy and (_walk(x0, slope, step) > edge) != (slope > 0):
            step += 1
        if (_walk(x0, slope, step) > edge) != (_walk(x0, slope, step - 1) > edge):
            columns[count] = column
            rows[count] = _row(y0 + step - 1, height)
            count += 1
    return count


@inner()
def _crossings(points, height, width):
    """(columns, rows), unordered, of all places where the closed outline through ``points`` passes the centre of a column."""
    count = len(points)
    x, y = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    for i in range(count):
        x[i], y[i] = _fine(points[i, 0]), _fine(points[i, 1])
    x[count], y[count] = x[0], y[0]
    most = 0
    for i in range(count):
        most += abs(x[i + 1] - x[i]) // _SCALE + 2
    columns, rows = np.empty(most, np.int64), np.empty(most, np.int64)
    found = 0
    for i in range(count):
        found = _cross(x[i], y[i], x[i + 1], y[i + 1], height, width, columns, rows, found)
    return columns[:found], rows[:found]


@inner()
def _sort(values):
    """Sort in place; the crossings of one column are mostly two."""
    if len(values) > 32:
        values.sort()
        return
    for i in range(1, len(values)):
        value, j = values[i], i
        while j > 0 and values[j - 1] > value:
            values[j] = values[j - 1]
            j -= 1
        values[j] = value


@inner()
def _fill(columns, rows, height, starts, stops, count):
    """Append the spans between every odd crossing of a column and the next one; the new number of spans."""
    if len(columns) == 0:
        return count
    left = columns.min()
    ends = np.zeros(columns.max() - left + 2, np.int64)
    for column in columns:
        ends[column - left + 1] += 1
    ends = np.cumsum(ends)
    places, ordered = ends.copy(), np.empty_like(rows)
    for i in range(len(rows)):
        place = columns[i] - left
        ordered[places[place]] = rows[i]
        places[place] += 1
    for place in range(len(ends) - 1):
        crossed = ordered[ends[place] : ends[place + 1]]
        _sort(crossed)
        top = (left + place) * height
        for i in range(0, len(crossed) - 1, 2):
            if crossed[i] < crossed[i + 1]:
                starts[count], stops[count] = top + crossed[i], top + crossed[i + 1]
                count += 1
    return count


@inner()
def _united(starts, stops):
    """Spans that may overlap to ascending, disjoint ones."""
    order = np.argsort(starts)
    united_starts, united_stops = np.empty_like(starts), np.empty_like(stops)
    count = 0
    for i in order:
        if count and starts[i] <= united_stops[count - 1]:
            united_stops[count - 1] = max(united_stops[count - 1], stops[i])
        else:
            united_starts[count], united_stops[count] = starts[i], stops[i]
            count += 1
    return united_starts[:count], united_stops[:count]


@entry()
def polygon_spans(points, bounds, height, width):
    """(starts, stops) int64 of the pixels inside any polygon, as pycocotools paints them: ascending, disjoint, column-major.

    Arguments as in :func:`outline_length`, which must have accepted them.
    """
    most = 0
    for polygon in range(len(bounds) - 1):
        for i in range(bounds[polygon], bounds[polygon + 1]):
            following = i + 1 if i + 1 < bounds[polygon + 1] else bounds[polygon]
            most += int(abs(points[i, 0] - points[following, 0])) + 3
    starts, stops, count = np.empty(most, np.int64), np.empty(most, np.int64), 0
    for polygon in range(len(bounds) - 1):
        columns, rows = _crossings(points[bounds[polygon] : bounds[polygon + 1]], height, width)
        count = _fill(columns, rows, height, starts, stops, count)
    if len(bounds) > 2:
        return _united(starts[:count], stops[:count])
    return starts[:count].copy(), stops[:count].copy()


@entry()
def compressed_spans(counts, pixels):
    """(finding, starts, stops) of COCO's compressed counts, ASCII bytes, for an image of so many pixels.

    A character holds 5 bits, low bits first, and 32 when more follow; from the fourth on, a number is the difference to the run
    two places before. Runs alternate between outside and inside, starting outside.
    """
    runs = np.empty(len(counts), np.int64)
    number = value = symbols = 0
    for character in counts:
        symbol = int(character) - 48
        if symbol < 0 or symbol > 63:
            return CORRUPT, runs[:0], runs[:0]
        value |= (symbol & 31) << (5 * symbols)
        symbols += 1
        if symbols > _MOST_SYMBOLS:
            return TOO_LONG, runs[:0], runs[:0]
        if not symbol & 32:
            if symbol & 16:
                value -= 1 << (5 * symbols)
            runs[number] = value + (runs[number - 2] if number > 2 else 0)
            number += 1
            value = symbols = 0
    if symbols or number == 0:
        return CORRUPT, runs[:0], runs[:0]
    return run_spans(runs[:number], pixels)


@entry()
def run_spans(runs, pixels):
    """(finding, starts, stops) of (n,) int64 run lengths; as above."""
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


@entry()
def paint(mask, starts, stops, class_id):
    """Set the spans of a flat column-major (W * H,) uint16 mask to a class."""
    for i in range(len(starts)):
        mask[starts[i] : stops[i]] = class_id


@inner()
def _starts(flat, words):
    """(n,) int64 places where a flat (P,) uint16 array changes, 0 first; ``words`` are its (P // 4,) uint64."""
    starts, count = np.empty(8192, np.int64), 1
    starts[0], current = 0, flat[0]
    four = np.uint64(current) * _FOUR_PIXELS
    for word in range(len(words) + 1):
        if word < len(words) and words[word] == four:
            continue
        if count + 4 > len(starts):
            starts = np.append(starts, np.empty_like(starts))
        for i in range(4 * word, min(4 * word + 4, len(flat))):
            if flat[i] != current:
                starts[count], current = i, flat[i]
                count += 1
        four = np.uint64(current) * _FOUR_PIXELS
    return starts[:count]


@entry()
def run_lengths(flat, words):
    """(classes uint16, lengths uint16) of the runs of equal value in a flat (P,) uint16 array, P >= 1.

    ``words`` are its (P // 4,) uint64: four pixels are compared at a time. A run of more than 65535 pixels is several.
    """
    starts = _starts(flat, words)
    most = len(starts) + len(flat) // _LONGEST_RUN
    classes, lengths, run = np.empty(most, np.uint16), np.empty(most, np.uint16), 0
    for i in range(len(starts)):
        left = (starts[i + 1] if i + 1 < len(starts) else len(flat)) - starts[i]
        while left > 0:
            classes[run], lengths[run] = flat[starts[i]], min(left, _LONGEST_RUN)
            left -= _LONGEST_RUN
            run += 1
    return classes[:run].copy(), lengths[:run].copy()


@entry()
def expand(classes, lengths, pixels):
    """The (pixels,) uint16 of runs, or nothing where they do not fill it exactly. Writes 16 pixels at a time, over ends."""
    flat = np.empty(pixels + 16, np.uint16)
    at = 0
    for run in range(len(classes)):
        class_id, end, place = classes[run], at + lengths[run], at
        if end > pixels:
            return flat[:0]
        while place < end:
            for i in range(16):
                flat[place + i] = class_id
            place += 16
        at = end
    return flat[: pixels if at == pixels else 0]


@entry()
def window(classes, lengths, width, top, bottom, left, right):
    """(classes uint16, lengths int32) of the runs of rows top:bottom and columns left:right of a mask that runs fill.

    Neighbouring runs differ in class.
    """
    most = len(classes) + bottom - top  # each begins where a run does, or a row
    found, sizes, count = np.empty(most, np.uint16), np.empty(most, np.int32), 0
    at, row, last = 0, top * width, bottom * width
    for run in range(len(classes)):
        start, end = max(at, row), min(at + lengths[run], last)
        while start < end:
            low, high = max(start, row + left), min(end, row + right)
            if low < high and count and found[count - 1] == classes[run]:
                sizes[count - 1] += high - low
            elif low < high:
                found[count], sizes[count] = classes[run], high - low
                count += 1
            start = min(end, row + width)
            if start == row + width:
                row = start
        at += lengths[run]
        if at >= last:
            break
    return found[:count], sizes[:count]


@entry()
def pixels_of(classes, lengths):
    """(classes that occur but 0, ascending uint16; their pixels uint32) of runs."""
    pixels = np.zeros(int(classes.max()) + 1 if len(classes) else 1, np.uint32)
    for i in range(len(classes)):
        pixels[classes[i]] += lengths[i]
    pixels[0] = 0
    present = np.flatnonzero(pixels)
    return present.astype(np.uint16), pixels[present]
