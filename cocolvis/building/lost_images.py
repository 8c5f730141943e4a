"""Images that a build left out because of their files: which shards lack some, and whether a split lost too many."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from cocolvis.faults import Fault

LOST = ("missing image", "unreadable image", "missing mask", "unreadable mask")
"""Kinds of faults that lose an image because a file is missing or cannot be read."""

_LEFT_OUT = (*LOST, "wrong image size")
"""Kinds of faults that leave out an image which other files would bring back."""

_NAMED = 3
"""How many lost images a message names."""

_SHARE, _COUNT = 0.01, 10
"""A split has lost too many images if it lost more than this share and at least this number of them."""

Reports = Mapping[str, Mapping[str, Any]]
"""Shard name -> report of the finished shard."""


def reasons_to_refuse(
    planned: Mapping[str, int], reports: Reports, unusable: Mapping[str, int], faults: Sequence[Fault] = ()
) -> list[str]:
    """One line for each split that lost too many images in the finished shards; an empty list if none did.

    ``planned`` maps each shard to the number of images that it holds if none is lost, and ``unusable`` each split to the number
    of its image records that are too malformed to be planned; ``faults``, those of the plan, say what is wrong with them.
    """
    reasons, broken = [], _unusable_records(unusable, faults)
    for split in dict.fromkeys([*map(split_of, planned), *unusable]):
        names = [name for name in planned if split_of(name) == split and name in reports]
        images, kept = sum(planned[name] for name in names), sum(reports[name]["images"] for name in names)
        left_out = [Fault(*fault) for name in names for fault in reports[name]["faults"] if fault[0] in _LEFT_OUT]
        lost = [fault for fault in left_out if fault.kind in LOST]
        if len(lost) >= _COUNT and len(lost) > _SHARE * images:
            reasons.append(f"split {split} lost {len(lost)} of {images} images to missing or unreadable files{_named(lost)}")
        elif kept == 0 and (images := images + unusable.get(split, 0)) > 0:
            reasons.append(f"split {split} keeps none of its {images} images{_named(left_out + broken.get(split, []))}")
    return reasons


def _unusable_records(unusable: Mapping[str, int], faults: Sequence[Fault]) -> dict[str, list[Fault]]:
    """The faults of the records that each split lists in vain; a plan has them in the order of its splits."""
    malformed = (fault for fault in faults if (fault.kind, fault.source) == ("malformed image", "lvis"))
    return {split: list(islice(malformed, count)) for split, count in unusable.items()}


def _named(lost: Sequence[Fault]) -> str:
    """The first few lost images and their reasons, as the end of a line; "" if there are none."""
    if not lost:
        return ""
    which = ("an image" if fault.image_id is None else f"image {fault.image_id}" for fault in lost[:_NAMED])
    examples = "; ".join(f"{image}: {fault.reason}" for image, fault in zip(which, lost, strict=False))
    return f": {examples}{'; ...' if len(lost) > _NAMED else ''}"


def incomplete(reports: Reports) -> list[str]:
    """The names of the finished shards that lack an image because a file was missing, unreadable, or of a wrong size."""
    return [name for name, report in reports.items() if any(fault[0] in _LEFT_OUT for fault in report["faults"])]


def split_of(shard: str) -> str:
    """The split of a shard, from its name."""
    return shard.rpartition("-")[0]
