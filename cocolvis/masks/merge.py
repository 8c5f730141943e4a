"""Merge the regions of things and stuff into one mask of class ids. Pure functions."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.masks import run_kernels
from cocolvis.masks.rasterize import Spans
from cocolvis.sources.annotations import Segment
from cocolvis.vocabulary import UNLABELLED

MASK_RULE = 2
"""The version of the rules that turn annotations and label files into masks. A build never mixes shards of two versions.

Increase it with every change that alters the mask of some input.
"""

OVERLAPS = ("first", "small-on-top")
"""Which of two overlapping regions of one source wins: the first in the file, as published, or the smaller one."""


class Region(NamedTuple):
    """The pixels of one annotation and the class they get."""

    class_id: int
    spans: Spans
    segment: Segment | None = None


def merge(stuff: Sequence[Region], things: Sequence[Region], height: int, width: int, *, overlap: str = "first") -> np.ndarray:
    """The (H, W) uint16 mask of an image, 0 = unlabelled. Things cover stuff; ``overlap`` decides within each source.

    Both sequences are in file order. With "first", the earlier region wins. With "small-on-top", the region with fewer pixels
    wins, and ties go to the earlier one. A region of class 0 (stuff "other") hides what it covers like any other region.
    """
    columns = np.full((width, height), UNLABELLED, dtype=np.uint16)
    flat = columns.reshape(-1)
    for region in reversed(stacked(stuff, things, overlap)):
        run_kernels.paint(flat, *region.spans, region.class_id)
    return cv2.transpose(columns)


def stacked(stuff: Sequence[Region], things: Sequence[Region], overlap: str) -> list[Region]:
    """All regions from top to bottom, in the order in which :func:`merge` stacks them."""
    if overlap == "small-on-top":
        stuff, things = (sorted(regions, key=lambda region: region.spans.area) for regions in (stuff, things))
    return [*things, *stuff]
