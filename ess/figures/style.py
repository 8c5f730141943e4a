"""The manner of the figures: their colours, short and safe texts, and pictures of a size that fits."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from cocolvis.figures.long_tail import COLOURS, PLAIN, plain
from cocolvis.inspection.render import overlay
from cocolvis.vocabulary import ClassInfo, Vocabulary

RUNS = (PLAIN, "#e0a030", "#b5394f", "#7a8f5a", "#6b4c9a", "0.4")
"""The colours of the curves of several runs, in turn."""

WIDE, HIGH = 560, 840
"""The columns of a mask in a figure, unless it would have more rows than HIGH; pictures have at most as many."""


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure, in inches, whose parts are laid out so that they do not overlap."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def colour_of(info: ClassInfo) -> str:
    """The colour of the class's frequency group."""
    return COLOURS.get(info.group or "", PLAIN)


def group_legend(axes: Any, classes: Sequence[ClassInfo], **where: Any) -> None:
    """Add a legend with the groups that occur, if there are any."""
    from matplotlib.patches import Patch

    groups = [group for group in COLOURS if any(c.group == group for c in classes)]
    if groups:
        axes.legend([Patch(color=COLOURS[group]) for group in groups], groups, frameon=False, **where)


def clean(axes: Any, grid: str = "both") -> None:
    """Remove the upper and the right spine, and draw a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="0.9", zorder=0)
    axes.set_axisbelow(True)


def fitted(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3), reduced if it is larger than the figures need."""
    size = _size(picture.shape)
    return picture if size[0] >= picture.shape[1] else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def named_mask(mask: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """The class ids (H, W) in the colours of their classes, the largest named, 0 black: (h, w, 3) uint8 RGB.

    All masks get the same width, so that the names in a figure are about equally large.
    """
    resized = cv2.resize(mask, _size(mask.shape), interpolation=cv2.INTER_NEAREST)
    return overlay(np.zeros((*resized.shape, 3), np.uint8), resized, vocabulary, opacity=1.0)


def show_picture(axes: Any, picture: np.ndarray, title: str = "") -> None:
    """Show a picture without axes."""
    axes.imshow(picture, interpolation="antialiased")
    axes.axis("off")
    if title:
        axes.set_title(plain(title), fontsize=10, loc="left")


def _size(shape: Sequence[int]) -> tuple[int, int]:
    """(width, height) of a mask in a figure."""
    height, width = shape[:2]
    scale = min(WIDE / width, HIGH / height)
    return max(1, round(width * scale)), max(1, round(height * scale))
