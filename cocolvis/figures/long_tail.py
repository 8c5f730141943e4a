"""The long tail as a figure: images and pixels per class by rank, for all classes and each group, and cumulative shares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import save_figure
from cocolvis.text import escaped

COLOURS = {"frequent": "#1f6f8b", "common": "#e0a030", "rare": "#b5394f", "stuff": "#7a8f5a"}
"""One colour per frequency group; they differ in lightness too."""

PLAIN = "#1f6f8b"
"""The colour of classes without a frequency group."""

_KEY = {
    "frequent": "frequent (over 100 images in LVIS)",
    "common": "common (11-100)",
    "rare": "rare (1-10)",
    "stuff": "stuff, not in LVIS",
}
_ALL = "0.87"
"""The grey under the steps of all classes."""

_CUMULATIVE = {"images": ("0.15", "solid"), "pixels": ("0.15", (0, (4, 2)))}
"""Colour and style of the lines of cumulative shares."""

_NAMED, _LONGEST = 3, 22
"""Names at each end of a ranking, and the most characters of each."""

Rows = Sequence[Mapping[str, Any]]


def plot(stats: Mapping[str, Any], path: Path) -> None:
    """Plot the result of ``statistics`` to a file: one row of panels per split in which classes occur.

    The panels show images and pixels of each class by rank, on a log scale, and the share of the first n classes. All rows have
    the same axes. Raises DataError if the file cannot be written, or if its suffix is not a picture format.
    """
    save_figure(draw(stats, ("images", "pixels")), path)


def draw(stats: Mapping[str, Any], quantities: Sequence[str]) -> Any:
    """The matplotlib figure of :func:`plot`, for one or both quantities, "images" and "pixels"."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    splits = {name: split for name, split in stats["splits"].items() if split["classes"]}
    columns, height = len(quantities) + 1, 0.7 + 3.3 * max(1, len(splits))
    figure = Figure(figsize=(0.5 + 4.6 * columns, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    if not splits:
        figure.text(0.5, 0.5, "no class occurs in any split", ha="center", va="center", color="0.4")
        return figure
    grid = figure.subplots(len(splits), columns, squeeze=False, sharex=True, sharey="col")
    for panels, (name, split) in zip(grid, splits.items(), strict=True):
        for axes, quantity in zip(panels, quantities, strict=False):
            _steps(axes, split["classes"], quantity)
            axes.set_ylim(_limits([row[quantity] for other in splits.values() for row in other["classes"]]))
        _cumulative(panels[-1], split["classes"], quantities)
        size = f"{split['classes_present']:,} of {len(split['classes']) + len(split['absent']):,} classes"
        panels[0].set_title(f"{name}: {split['images']:,} images, {size}", loc="left", weight="bold")
    widest = max(split["classes_present"] for split in splits.values())
    grid[0, 0].set_xlim(0, widest * 1.01 + 0.5)
    for axes in grid[-1]:
        axes.set_xlabel("rank among all classes, or in the group")
    grid[-1, -1].set_xlabel("n")
    figure.legend(*_legend(splits), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _limits(values: Sequence[int]) -> tuple[float, float]:
    """The range of a log axis, with room for names above the values."""
    low, high = max(1, min(values)), max(1, max(values))  # a damaged shard may hold zeros
    return low / 1.6, high * max(4, (high / low) ** 0.3)


def _steps(axes: Any, classes: Rows, quantity: str) -> None:
    """All classes as a grey staircase, highest first, and each group as a staircase of its own."""
    ranked = sorted(classes, key=lambda row: -row[quantity])
    values = [row[quantity] for row in ranked]
    edges = np.arange(len(values) + 1)
    axes.set_yscale("log")
    axes.stairs(values, edges, baseline=1e-3, fill=True, color=_ALL, zorder=1)
    groups = [group for group in COLOURS if any(row["group"] == group for row in ranked)]
    staircases = [(COLOURS[g], [row[quantity] for row in ranked if row["group"] == g]) for g in groups] or [(PLAIN, values)]
    for colour, own in staircases:
        axes.stairs(own, np.arange(len(own) + 1), baseline=None, color=colour, linewidth=1.8, zorder=3)
    axes.set_ylabel(f"{quantity} of the class")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", zorder=0)
    _name_ends(axes, ranked, quantity)


def _name_ends(axes: Any, ranked: Rows, quantity: str) -> None:
    """Write the names of the first and of the last classes above the staircase."""
    ends = (("most", ranked[:_NAMED], 0.06, "left"), ("fewest", ranked[_NAMED:][-_NAMED:], 1.0, "right"))
    for title, rows, place, side in ends:
        if rows:
            text = "\n".join([f"{title} {quantity}:", *(f"{plain(row['name'], _LONGEST)} {row[quantity]:,}" for row in rows)])
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            where = {"xycoords": "axes fraction", "ha": side, "va": "top"}
            axes.annotate(text, (place, 1), **where, fontsize=8, color="0.25", bbox=box, zorder=4)


def plain(text: str, most: int = 200) -> str:
    """A text that matplotlib draws as it is, with escapes for what cannot be drawn, shortened to ``most`` characters."""
    text = escaped(text)
    short = text if len(text) <= most else f"{text[: most - 1]}…"
    return short.replace("$", r"\$")


def _cumulative(axes: Any, classes: Rows, quantities: Sequence[str]) -> None:
    """The share of all images or pixels that the first n classes hold."""
    for quantity in quantities:
        values = np.sort([row[quantity] for row in classes])[::-1]
        share = np.cumsum(values) / max(1, values.sum())
        colour, style = _CUMULATIVE[quantity]
        axes.plot(np.arange(len(share) + 1), [0, *share], color=colour, linestyle=style, linewidth=1.5, label=quantity)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("share of the first n classes")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9", zorder=0)
    axes.legend(loc="lower right", frameon=False)


def _legend(splits: Mapping[str, Any]) -> tuple[list[Any], list[str]]:
    """Handles and labels: all classes, and the groups that occur."""
    from matplotlib.patches import Patch

    groups = [g for g in COLOURS if any(row["group"] == g for split in splits.values() for row in split["classes"])]
    handles = [Patch(color=_ALL), *(Patch(color=COLOURS[g]) for g in groups)]
    return handles, ["all classes", *(_KEY[g] for g in groups)]
