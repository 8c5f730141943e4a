"""Merge the regions of things and stuff into one mask of class ids. Pure functions."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from cocolvis.masks import merge_kernels
from cocolvis.masks.rasterize import Spans
from cocolvis.masks.runlength import Runs
from cocolvis.sources.annotations import Segment

MASK_RULE = 2
"""The version of the rules that turn annotations and label files into masks. A build never mixes shards of two versions.

Increase it with every change that alters the mask of some input.
"""

OVERLAPS = ("first", "small-on-top")
"""Which of two overlapping regions of one source wins: the first in the file, as published, or the smaller one."""

_NONE = Spans(np.empty(0, np.int64), np.empty(0, np.int64))


class Region(NamedTuple):
    """The pixels of one annotation and the class they get."""

    class_id: int
    spans: Spans
    segment: Segment | None = None


def merge(stuff: Sequence[Region], things: Sequence[Region], height: int, width: int, *, overlap: str = "first") -> Runs:
    """The mask of an image, 0 = unlabelled. Things cover stuff; ``overlap`` decides within each source.

    It is returned as run lengths, whose ``mask()`` is the (H, W) uint16 array. Height and width are at least 1.

    Both sequences are in file order. With "first", the earlier region wins. With "small-on-top", the region with fewer pixels
    wins, and ties go to the earlier one. A region of class 0 (stuff "other") hides what it covers like any other region.
    """
    regions = stacked(stuff, things, overlap)[::-1]
    starts = np.concatenate([_NONE.starts, *[region.spans.starts for region in regions]])
    stops = np.concatenate([_NONE.stops, *[region.spans.stops for region in regions]])
    bounds = np.array([0, *accumulate([len(region.spans.starts) for region in regions])], np.int64)
    class_ids = np.array([region.class_id for region in regions], np.uint16)
    classes, lengths = merge_kernels.merged_runs(starts, stops, bounds, class_ids, height, width)
    return Runs(classes, lengths, height, width)


def stacked(stuff: Sequence[Region], things: Sequence[Region], overlap: str) -> list[Region]:
    """All regions from top to bottom, in the order in which :func:`merge` stacks them."""
    if overlap == "small-on-top":
        stuff, things = (sorted(regions, key=lambda region: region.spans.area) for regions in (stuff, things))
    return [*things, *stuff]
