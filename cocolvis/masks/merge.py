"""Merge the regions of things and stuff into one mask of class ids. Pure functions."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec
import numpy as np

from cocolvis.masks import image_kernels, merge_kernels
from cocolvis.masks.rasterize import MAX_OUTLINE, Spans, joined
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
    regions = stacked(stuff, things, overlap)
    starts = np.concatenate([_NONE.starts, *[region.spans.starts for region in regions]])
    stops = np.concatenate([_NONE.stops, *[region.spans.stops for region in regions]])
    bounds = np.array([0, *accumulate([len(region.spans.starts) for region in regions])], np.int64)
    class_ids = np.array([region.class_id for region in regions], np.uint16)
    classes, lengths = merge_kernels.merged_runs(starts, stops, bounds, class_ids, height, width)
    return Runs(classes, lengths, height, width)


def merge_at_once(
    segmentations: Sequence[bytes | msgspec.Raw], class_ids: Sequence[int], height: int, width: int
) -> tuple[Runs, list[bool]] | None:
    """(the mask of an image, which of the segmentations cover any pixel), from top to bottom; None if one of them is unusual.

    The mask is what :func:`merge` makes of what :func:`rasterize_all` finds, in one compiled call. Both read what is unusual.
    """
    text, bounds = joined(segmentations)
    ids = np.array(class_ids, np.uint16)
    classes, lengths, ends = image_kernels.runs_of_image(text, bounds, ids, MAX_OUTLINE, height, width)
    if not len(classes):
        return None
    return Runs(classes, lengths, height, width), (ends[1:] > ends[:-1]).tolist()


def stacked(stuff: Sequence[Region], things: Sequence[Region], overlap: str) -> list[Region]:
    """All regions from top to bottom, in the order in which :func:`merge` stacks them."""
    if overlap == "small-on-top":
        stuff, things = (sorted(regions, key=lambda region: region.spans.area) for regions in (stuff, things))
    return [*things, *stuff]
