"""Statistics of a data set, computed from the class counts in its shards without decoding a mask."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import save_figure
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

COLOURS = {"frequent": "#1f6f8b", "common": "#e0a030", "rare": "#b5394f", "stuff": "#7a8f5a"}
"""One colour per frequency group; they differ in lightness too."""

_UNGROUPED_COLOUR = "#1f6f8b"
"""Colour of classes without a frequency group."""


def statistics(dataset: Dataset, progress: Progress = ignore) -> dict[str, Any]:
    """Return ``{"splits": {name: {"images", "classes_present", "classes", ...}}}`` with plain numbers and texts.

    ``classes`` lists the classes that occur, with "class", "name", "group", "images" and "pixels", sorted by images in
    descending order, then by class. ``image_quantiles`` and ``pixel_quantiles`` (over these classes) and ``classes_an_image``
    map a quantile such as "0.5" to its value. ``groups`` holds, for each frequency group of the vocabulary, its classes, how
    many of them occur, their pixels, and their images (summed over classes). ``pixels`` counts all pixels, ``labelled`` those
    that have a class. ``progress`` counts images.
    """
    done, total, splits = 0, sum(dataset.splits.values()), {}
    for name, images in dataset.splits.items():
        before = done
        splits[name] = _split_statistics(dataset, name, lambda read: progress(before + read, total))  # noqa: B023 (called now)
        done += images
    return {"splits": splits}


def _split_statistics(dataset: Dataset, name: str, read: Callable[[int], None]) -> dict[str, Any]:
    split, size = dataset.split(name), len(dataset.vocabulary) + 1
    rows, classes, class_pixels = split.present(read)
    images = np.bincount(classes, minlength=size)
    pixels = np.zeros(size, np.int64)
    np.add.at(pixels, classes, class_pixels)
    present = np.flatnonzero(images)
    order = present[np.lexsort((present, -images[present]))]
    listed = [_class_row(dataset.vocabulary[i], images[i], pixels[i]) for i in order.tolist()]
    return {
        "images": len(split),
        "classes_present": len(listed),
        "pixels": int(split.sizes().astype(np.int64).prod(axis=1).sum()),
        "labelled": int(pixels.sum()),
        "image_quantiles": _quantiles(images[present]),
        "pixel_quantiles": _quantiles(pixels[present]),
        "classes_an_image": _quantiles(np.bincount(rows, minlength=len(split))),
        "groups": _groups(dataset, images, pixels),
        "classes": listed,
    }


def _class_row(info, images: np.integer, pixels: np.integer) -> dict[str, Any]:
    return {"class": info.id, "name": info.name, "group": info.group, "images": int(images), "pixels": int(pixels)}


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not values.size:
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def _groups(dataset: Dataset, images: np.ndarray, pixels: np.ndarray) -> dict[str, dict[str, int]]:
    table = {}
    for group in dataset.vocabulary.groups:
        members = np.array([c.id for c in dataset.vocabulary if c.group == group], dtype=np.int64)
        table[group] = {
            "classes": members.size,
            "classes_present": int((images[members] > 0).sum()),
            "images": int(images[members].sum()),
            "pixels": int(pixels[members].sum()),
        }
    return table


def plot(stats: Mapping[str, Any], path: Path) -> None:
    """Plot the long tail to a file: images and pixels of each class, sorted, on a log scale, with one row per split.

    Raises DataError if the file cannot be written, or if its suffix is not a picture format.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    splits = stats["splits"]
    figure = Figure(figsize=(11, 0.6 + 3.2 * max(1, len(splits))), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
    grid = figure.subplots(max(1, len(splits)), 2, squeeze=False)
    for (left, right), (name, split) in zip(grid, splits.items(), strict=False):
        for axes, what in ((left, "images"), (right, "pixels")):
            _panel(axes, split["classes"], what)
        left.set_title(f"{name}: {split['images']:,} images, {split['classes_present']:,} classes", loc="left", weight="bold")
    figure.align_ylabels()
    if any(split["groups"] for split in splits.values()):
        figure.legend(*_key(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    save_figure(figure, path)


def _panel(axes, classes: list[dict[str, Any]], what: str) -> None:
    """Draw one histogram with a bar for each class, highest first."""
    from matplotlib.collections import PolyCollection

    ranked = sorted(classes, key=lambda row: -row[what])
    heights = np.array([row[what] for row in ranked], dtype=np.float64)
    axes.set_xlabel(f"classes, by number of {what}")
    axes.set_ylabel(f"{what} of the class")
    axes.spines[["top", "right"]].set_visible(False)
    if not ranked:
        axes.text(0.5, 0.5, "no classes occur", ha="center", va="center", transform=axes.transAxes, color="0.5")
        return
    axes.set_yscale("log")
    axes.set_xlim(0.5, len(ranked) + 0.5)
    axes.set_ylim(heights.min() * 0.7, heights.max() * 1.6)
    left, bottom = np.arange(len(ranked)) + 0.5, np.full(len(ranked), heights.min() * 0.1)
    corners = np.transpose([(left, bottom), (left, heights), (left + 1, heights), (left + 1, bottom)], (2, 0, 1))
    colours = [COLOURS.get(row["group"], _UNGROUPED_COLOUR) for row in ranked]
    edge, width = ("white", 0.4) if len(ranked) <= 150 else ("face", 0.2)
    bars = PolyCollection(list(corners), facecolors=colours, edgecolors=edge, linewidths=width, zorder=2)
    axes.add_collection(bars)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    between = {2, 5} if heights.max() < 100 * heights.min() else set()
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if int(f"{value:e}"[0]) in between else "")
    axes.grid(axis="y", color="0.88", zorder=0)
    median = np.median(heights)
    axes.axhline(median, color="0.25", linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    axes.annotate(
        f"median {median:,.0f}",
        (1, median),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=9,
        color="0.25",
    )


def _key():
    """Handles and labels of the legend of frequency groups."""
    from matplotlib.patches import Patch

    labels = {"frequent": "frequent (over 100 images in LVIS)", "common": "common (11-100)", "rare": "rare (1-10)"}
    return [Patch(color=COLOURS[g]) for g in COLOURS], [labels.get(g, "stuff, not in LVIS") for g in COLOURS]
