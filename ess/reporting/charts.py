"""Lines over the steps of a training as small charts, in the coordinates of an SVG that the page draws in its own colours."""

import math
from typing import NamedTuple

from ess.reporting.curves import Points

WIDTH, HEIGHT = 460, 250
"""The size of a chart in units of its SVG."""

LEFT, RIGHT, TOP, BOTTOM = 46, 16, 12, 34
"""The margins around the lines."""

_POINTS = 400
"""The most points of a line; more are averaged."""


class Tick(NamedTuple):
    """A labelled position on an axis."""

    at: float
    text: str


class Chart(NamedTuple):
    """A line; ``points`` is for the attribute of a polyline, ``end`` its last point, ``text`` the same in words."""

    title: str
    text: str
    points: str
    end: tuple[float, float]
    across: list[Tick]
    upward: list[Tick]


def line_chart(title: str, points: Points, *, percent: bool = False) -> Chart | None:
    """The chart of a curve with values of 0 or more, or None if it has no points; ``percent`` shows shares as percentages."""
    if not points:
        return None
    factor = 100.0 if percent else 1.0
    values = [(step, factor * value) for step, value in points]
    last, highest = values[-1][0], max(value for _, value in values)
    across, upward = _ticks(last, whole=True), _ticks(highest)
    right, top = max(last, 1), max(highest, upward[-1])
    line = [(_x(step / right), _y(value / top)) for step, value in _averaged(values)]
    return Chart(
        title,
        _in_words(title, values, " %" if percent else ""),
        " ".join(f"{x:.1f},{y:.1f}" for x, y in line),
        line[-1],
        [Tick(_x(value / right), f"{value:,.0f}") for value in across],
        [Tick(_y(value / top), f"{value:g}") for value in upward],
    )


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _ticks(highest: float, *, whole: bool = False) -> list[float]:
    """Round numbers from 0 to ``highest`` or less, about four steps apart; at least two."""
    rough = max(highest, 1e-6) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    step = max(1, math.ceil(step)) if whole else step
    return [number * step for number in range(max(1, math.floor(highest / step * 1.001)) + 1)]


def _averaged(values: Points) -> Points:
    """At most :data:`_POINTS` points, each the mean of equally many neighbours."""
    size = math.ceil(len(values) / _POINTS)
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def _in_words(title: str, values: Points, unit: str) -> str:
    (first, at_first), (last, at_last) = values[0], values[-1]
    if first == last:
        return f"{title}: {at_last:.3g}{unit} at step {last:,}"
    return f"{title}: {at_first:.3g}{unit} at step {first:,}, {at_last:.3g}{unit} at step {last:,}"
