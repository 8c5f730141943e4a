"""What a build reports: its faults, counted, listed, and kept in full."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cocolvis.disk.files import Unwritable, sha256, write_aside
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.storage import checks
from cocolvis.text import one_line

FILE = "faults.jsonl"
"""All faults, one JSON object a line, where dataset.json lists some only."""

LISTED = 1000
"""Faults of a kind that dataset.json lists."""

_LARGEST, _LONGEST = 2**30, 2**16
"""Bytes of the largest list of faults, and of one of its lines; the former are some four million faults."""


def write(folder: Path, faults: Sequence[Fault], permit: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """The report for dataset.json; all faults are written to a file beside it where it cannot list them all.

    ``permit`` is that of :func:`cocolvis.disk.files.write_aside`. A DataError where the file system refuses.
    """
    listed, seen = [], Counter()
    for fault in faults:
        seen[fault.kind] += 1
        if seen[fault.kind] <= LISTED:
            listed.append(fault._asdict())
    report = {"counts": dict(sorted(seen.items())), "faults": listed}
    if len(listed) == len(faults):
        permit()
        try:
            (folder / FILE).unlink(missing_ok=True)
        except OSError as error:
            raise Unwritable(f"{folder / FILE}: cannot be removed: {error.strerror}") from None
        return report
    with write_aside(folder / FILE, permit) as aside, aside.open("w", encoding="utf-8") as file:
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
    for fault in _read(path):
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


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """The faults in a file of one JSON object a line; a DataError where a line is none, or the file is too large."""
    size = checks.regular_file(path).st_size
    if size > _LARGEST:
        raise DataError(f"{path}: has {size} bytes; at most {_LARGEST} are read")
    decode = msgspec.json.Decoder(checks.ReportedFault).decode
    try:
        with path.open("rb") as file:
            for number, text in enumerate(iter(lambda: file.readline(_LONGEST), b""), 1):
                if not text.endswith(b"\n"):
                    raise DataError(f"{path}: line {number} has no end, or more than {_LONGEST} bytes")
                yield msgspec.structs.asdict(decode(text))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise DataError(f"{path}: line {number} is no fault: {one_line(error)}") from None
