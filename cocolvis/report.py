"""What a build reports: its faults, counted, listed and kept in full; and whether it lost too much to be a data set."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cocolvis import checks
from cocolvis.annotations import Fault
from cocolvis.errors import DataError
from cocolvis.files import Unwritable, sha256, write_aside

FILE = "faults.jsonl"
"""All faults, one JSON object a line, where dataset.json lists some only."""

LISTED = 1000
"""Faults of a kind that dataset.json lists."""

LOST = ("missing image", "unreadable image", "missing mask", "unreadable mask")
"""Kinds of faults that cost an image because a file is not there or cannot be read."""

_NAMED = 3
"""Lost pictures that are named where a split lost too many."""

_LOST_SHARE, _LOST_LEAST = 0.01, 10
"""A split may lose this share of its pictures, and fewer than this number whatever the share."""


def write(folder: Path, faults: Sequence[Fault]) -> dict[str, Any]:
    """The report for dataset.json; all faults are written to a file beside it where it cannot list them all.

    A DataError where the file system refuses.
    """
    listed, seen = [], Counter()
    for fault in faults:
        seen[fault.kind] += 1
        if seen[fault.kind] <= LISTED:
            listed.append(fault._asdict())
    report = {"counts": dict(sorted(seen.items())), "faults": listed}
    if len(listed) == len(faults):
        try:
            (folder / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise Unwritable(f"{folder / FILE}: cannot be removed: {error.strerror}") from None
        return report
    with write_aside(folder / FILE) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(fault._asdict(), ensure_ascii=False) + "\n" for fault in faults)
    path = folder / FILE
    return report | {"file": {"bytes": path.stat().st_size, "sha256": sha256(path)}}


def read(folder: Path, report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All faults of a report, as dataset.json lists them; a DataError where the file that holds them is not as recorded."""
    if report.get("file") is None:
        yield from report["faults"]
        return
    path, seen = folder / FILE, Counter()
    if damage := check(folder, report):
        raise DataError(damage)
    for fault in checks.read_faults(path):
        seen[fault["kind"]] += 1
        yield fault
    if seen != Counter(report["counts"]):
        raise DataError(f"{path}: holds {seen.total()} faults, dataset.json counts {sum(report['counts'].values())} otherwise")


def check(folder: Path, report: Mapping[str, Any]) -> str | None:
    """What is wrong with the file of all faults; None where it is as recorded, or there is none."""
    recorded, path = report.get("file"), folder / FILE
    if recorded is None:
        return None
    try:
        size = checks.regular_file(path).st_size
        if size != recorded["bytes"]:
            return f"{path}: has {size} bytes, dataset.json says {recorded['bytes']}"
        if (found := sha256(path)) != recorded["sha256"]:
            return f"{path}: has SHA-256 {found}, dataset.json says {recorded['sha256']}"
    except DataError as error:
        return str(error)
    return None


def losses(planned: Mapping[str, int], reports: Mapping[str, Mapping[str, Any]], unusable: Mapping[str, int]) -> list[str]:
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


def lossy(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The finished shards that lack an image because a file was missing or could not be read."""
    return [name for name, report in reports.items() if any(fault[0] in LOST for fault in report["faults"])]


def split_of(shard: str) -> str:
    """The split of a shard by its name."""
    return shard.rpartition("-")[0]
