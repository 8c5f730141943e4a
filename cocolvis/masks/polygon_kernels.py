"""The compiled loops that turn polygons into spans of pixels, bit for bit as pycocotools paints them.

The rule of pycocotools, in full:

1. The vertices are rounded to a grid with ``_SCALE`` = 5 points per pixel side: p becomes int(5 p + 1/2).
2. An edge visits one grid point per step of its longer axis, x if both are equal; the other coordinate is rounded, halves up.
   It starts at the end where the longer axis is smaller.
3. Where two successive points are on different sides of the centre 5 c + 2.5 of a pixel column c, the outline crosses the
   column, at the upper of the two points.
4. The row of a crossing is the first one whose centre 5 r + 2.5 is below that point, at least 0 and at most the height.
5. In each column, the pixels from the first crossing to the second, from the third to the fourth, and so on, are inside.

``rasterize`` passes on only polygons that :func:`outline_length` accepts, so that all memory here is bounded.
"""

import numpy as np

from cocolvis.compiled import entry, inner

_SCALE = 5
"""Grid points per pixel side, odd, so that grid points are never on the centre of a pixel."""


@entry()
def outline_length(points, bounds, height, width):
    """The length in pixels of the closed outlines of all polygons: the sum over the edges of the larger of |dx| and |dy|.

    ``points`` (n, 2) float64 are x, y; polygon i consists of points[bounds[i]:bounds[i + 1]], ``bounds`` int64. The result is
    -1.0 if a coordinate is NaN or more than one image side outside the image.
    """
    length = 0.0
    for polygon in range(len(bounds) - 1):
        before = bounds[polygon + 1] - 1
        for i in range(bounds[polygon], bounds[polygon + 1]):
            x, y = points[i, 0], points[i, 1]
            if not (-width <= x <= 2 * width and -height <= y <= 2 * height):
                return -1.0
            length += max(abs(x - points[before, 0]), abs(y - points[before, 1]))
            before = i
    return length


@inner()
def _to_grid(value):
    """A coordinate in pixels, rounded to the grid as C converts it: towards 0 after adding 1/2."""
    return int(_SCALE * value + 0.5)


@inner()
def _next_centre(at):
    """The first column (or row) whose centre is beyond the grid point ``at``: the least c with 5 c + 2.5 > at."""
    return (max(at, 0) + _SCALE // 2) // _SCALE


@inner()
def _minor(start, slope, step):
    """The coordinate along the shorter axis of an edge, ``step`` steps after its start along the longer axis."""
    return int(start + slope * step + 0.5)


@inner()
def _steps_to_pass(x0, slope, inverse, steps, centre):
    """How many of the ``steps`` of a steep edge, at least 1, take its x from one side of a centre to the other.

    ``inverse``, 1 / slope, gives the number up to rounding. It is corrected until it agrees with :func:`_minor`.
    """
    step = min(max(int((centre - x0) * inverse), 1), steps)
    while step > 1 and (_minor(x0, slope, step - 1) > centre) == (slope > 0):
        step -= 1
    while step < steps and (_minor(x0, slope, step) > centre) != (slope > 0):
        step += 1
    return step


@inner(inline="always")  # a call would count references to the arrays of each edge
def _cross(x0, y0, x1, y1, height, width, columns, rows, count):
    """Append the crossings (column, row) of the edge between two grid points, by the rule above; the new count."""
    dx, dy = abs(x1 - x0), abs(y1 - y0)
    if dx == 0:
        return count
    steep = dy > dx
    if (y0 > y1) if steep else (x0 > x1):
        x0, y0, x1, y1 = x1, y1, x0, y0
    slope, inverse = ((x1 - x0) / dy, dy / (x1 - x0)) if steep else ((y1 - y0) / dx, 0.0)
    for column in range(_next_centre(min(x0, x1)), min(_next_centre(max(x0, x1)), width)):
        before = _SCALE * column + _SCALE // 2  # the grid point before the centre, which is half a step further
        if steep:
            y = y0 + _steps_to_pass(x0, slope, inverse, dy, before + 0.5) - 1
        else:
            y = min(_minor(y0, slope, before - x0), _minor(y0, slope, before - x0 + 1))
        columns[count], rows[count] = column, min(_next_centre(y), height)
        count += 1
    return count


@inner()
def _crossings(points, height, width):
    """(columns, rows, left, right) of the closed outline through ``points`` (n, 2).

    ``columns`` and ``rows`` are int64 and contain all crossings in no order. The columns are from ``left`` to before ``right``.
    """
    count = len(points)
    x, y = np.empty(count + 1, np.int64), np.empty(count + 1, np.int64)
    for i in range(count):
        x[i], y[i] = _to_grid(points[i, 0]), _to_grid(points[i, 1])
    x[count], y[count] = x[0], y[0]
    most, low, high = 0, x[0], x[0]
    for i in range(count):
        most += abs(x[i + 1] - x[i]) // _SCALE + 2
        low, high = min(low, x[i]), max(high, x[i])
    columns, rows = np.empty(most, np.int64), np.empty(most, np.int64)
    found = 0
    for i in range(count):
        found = _cross(x[i], y[i], x[i + 1], y[i + 1], height, width, columns, rows, found)
    return columns[:found], rows[:found], _next_centre(low), min(_next_centre(high), width)


@inner()
def _sort(values):
    """Sort in place, by insertion if there are few."""
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
def _group(columns, rows, left, right):
    """(grouped, bounds): the rows by column, those of the column left + i at grouped[bounds[i]:bounds[i + 1]]; both int64."""
    bounds = np.zeros(right - left + 2, np.int64)
    for column in columns:
        bounds[column - left + 2] += 1
    for i in range(2, len(bounds)):
        bounds[i] += bounds[i - 1]
    grouped = np.empty_like(rows)
    for i in range(len(rows)):
        place = columns[i] - left + 1  # where its first row goes; when all are there, this is where the next column begins
        grouped[bounds[place]] = rows[i]
        bounds[place] += 1
    return grouped, bounds[:-1]


@inner()
def _fill(columns, rows, left, right, height, starts, stops, count):
    """Append the spans between each odd crossing of a column and the next crossing; the new number of spans."""
    if len(columns) == 0:
        return count
    grouped, bounds = _group(columns, rows, left, right)
    for column in range(len(bounds) - 1):
        top, first, last = (left + column) * height, bounds[column], bounds[column + 1]
        if last - first == 2:  # most columns; no branch depends on which of the two is above
            one, other = grouped[first], grouped[first + 1]
            starts[count], stops[count] = top + min(one, other), top + max(one, other)
            count += one != other
            continue
        crossed = grouped[first:last]
        _sort(crossed)
        for i in range(0, len(crossed) - 1, 2):
            if crossed[i] < crossed[i + 1]:
                starts[count], stops[count] = top + crossed[i], top + crossed[i + 1]
                count += 1
    return count


@inner()
def _united(starts, stops):
    """The union of spans that may overlap, as ascending, disjoint spans."""
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
    """(starts, stops) int64 of the pixels inside any of the polygons, as column-major pixel numbers x * height + y.

    The spans [start, stop) are ascending and disjoint. The arguments are those of :func:`outline_length`, which must have
    accepted them.
    """
    most = 0
    for polygon in range(len(bounds) - 1):
        for i in range(bounds[polygon], bounds[polygon + 1]):
            following = i + 1 if i + 1 < bounds[polygon + 1] else bounds[polygon]
            most += int(abs(points[i, 0] - points[following, 0])) + 3
    starts, stops, count = np.empty(most, np.int64), np.empty(most, np.int64), 0
    for polygon in range(len(bounds) - 1):
        columns, rows, left, right = _crossings(points[bounds[polygon] : bounds[polygon + 1]], height, width)
        count = _fill(columns, rows, left, right, height, starts, stops, count)
    if len(bounds) > 2:
        return _united(starts[:count], stops[:count])
    return starts[:count], stops[:count]
