"""Regions of things and stuff to one mask of class ids: what lies over what. Pure."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.masks import kernels
from cocolvis.masks.rasterize import Spans
from cocolvis.sources.annotations import Segment
from cocolvis.vocabulary import UNLABELLED

MASK_RULE = 2
"""The number of the rule by which annotations and label files become masks; a build never mixes the shards of two.

Raise it whenever the masks of some input change.
"""

OVERLAPS = ("first", "small-on-top")
"""Which of two overlapping regions of one source wins: the first in the file (as published), or the smaller one."""


class Region(NamedTuple):
    """The pixels of one annotation, and the class that they get."""

    class_id: int
    spans: Spans
    segment: Segment | None = None


def merge(stuff: Sequence[Region], things: Sequence[Region], height: int, width: int, *, overlap: str = "first") -> np.ndarray:
    """The (H, W) uint16 mask of an image, 0 = unlabelled: things over stuff, and within each source as ``overlap`` says.

    Both sequences are in file order. Under "first" the earlier region wins; under "small-on-top" the one with fewer pixels
    does, ties going to the earlier. A region of class 0 (stuff "other") hides what lies under it as any other does.
    """
    columns = np.full((width, height), UNLABELLED, dtype=np.uint16)
    flat = columns.reshape(-1)
    for region in reversed(stacked(stuff, things, overlap)):
        kernels.paint(flat, *region.spans, region.class_id)
    return cv2.transpose(columns)


def stacked(stuff: Sequence[Region], things: Sequence[Region], overlap: str) -> list[Region]:
    """All regions from top to bottom, as :func:`merge` lays them."""
    if overlap == "small-on-top":
        stuff, things = (sorted(regions, key=lambda region: region.spans.area) for regions in (stuff, things))
    return [*things, *stuff]
