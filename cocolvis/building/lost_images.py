"""Images that a build lost because files were missing or unreadable: which shards lack some, and when a split lost too many."""

from collections.abc import Mapping
from typing import Any

from cocolvis.faults import Fault

LOST = ("missing image", "unreadable image", "missing mask", "unreadable mask")
"""Kinds of faults that cost an image because a file is not there or cannot be read."""

_NAMED = 3
"""Lost pictures that are named where a split lost too many."""

_LOST_SHARE, _LOST_LEAST = 0.01, 10
"""A split may lose this share of its pictures, and fewer than this number whatever the share."""

Reports = Mapping[str, Mapping[str, Any]]
"""Shard name -> report of a finished shard."""


def losses(planned: Mapping[str, int], reports: Reports, unusable: Mapping[str, int]) -> list[str]:
    """One line for each split that lost too much, in the finished shards that ``reports`` are of; none where all is well.

    ``planned`` has the images of each shard before anything was lost, ``unusable`` how many more the annotations of each split
    list in records that are none.
    """
    found = []
    for split in dict.fromkeys([*map(split_of, planned), *unusable]):
        own = [name for name in planned if split_of(name) == split and name in reports]
        images, kept = sum(planned[name] for name in own), sum(reports[name]["images"] for name in own)
        lost = [Fault(*fault) for name in own for fault in reports[name]["faults"] if fault[0] in LOST]
        first = "; ".join(f"image {fault.image_id}: {fault.reason}" for fault in lost[:_NAMED])
        said = f": {first}{'; ...' if len(lost) > _NAMED else ''}" if lost else ""
        if len(lost) >= _LOST_LEAST and len(lost) > _LOST_SHARE * images:
            found.append(f"split {split} lost {len(lost)} of {images} images to missing or unreadable files{said}")
        elif kept == 0 and (images := images + unusable.get(split, 0)) > 0:
            found.append(f"split {split} keeps none of its {images} images{said}")
    return found


def lossy(reports: Reports) -> list[str]:
    """The finished shards that lack an image because a file was missing or could not be read."""
    return [name for name, report in reports.items() if any(fault[0] in LOST for fault in report["faults"])]


def split_of(shard: str) -> str:
    """The split of a shard by its name."""
    return shard.rpartition("-")[0]
