"""The faults that a build reports: counted, listed in dataset.json, and written to faults.jsonl in full if there are many."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from cocolvis.disk.files import Unwritable, reason, regular_file, sha256, write_aside
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.storage.index import ReportedFault
from cocolvis.text import one_line

FILE = "faults.jsonl"
"""All faults, one JSON object per line; written only if dataset.json cannot list them all."""

LISTED = 1000
"""How many faults of each kind dataset.json lists."""

_MAX_FILE, _MAX_LINE = 2**30, 2**16
"""The most bytes of a faults.jsonl that is read (about four million faults), and of a line in it."""


def write(folder: Path, faults: Sequence[Fault], permit: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Return the report for dataset.json, and write all faults to :data:`FILE` next to it if the report cannot list them all.

    ``permit`` is passed to :func:`cocolvis.disk.files.write_aside`. Raises DataError if the file system refuses.
    """
    listed: list[dict[str, Any]] = []
    seen: Counter[str] = Counter()
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
            raise Unwritable(f"{folder / FILE}: cannot be removed: {reason(error)}") from None
        return report
    with write_aside(folder / FILE, permit) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(fault._asdict(), ensure_ascii=False) + "\n" for fault in faults)
    path = folder / FILE
    return report | {"file": {"bytes": path.stat().st_size, "sha256": sha256(path)}}


def read(folder: Path, report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all faults of a report in order; raises DataError if :data:`FILE` is needed and differs from its record."""
    if report.get("file") is None:
        yield from report["faults"]
        return
    path = folder / FILE
    seen: Counter[str] = Counter()
    if damage := find_damage(folder, report):
        raise DataError(damage)
    for fault in _read_file(path):
        seen[fault["kind"]] += 1
        yield fault
    if seen != Counter(report["counts"]):
        found, counted = seen.total(), sum(report["counts"].values())
        raise DataError(f"{path}: holds {found} faults, whose kinds do not match the {counted} that dataset.json counts")


def find_damage(folder: Path, report: Mapping[str, Any]) -> str | None:
    """One line about the damage of :data:`FILE`; None if it is as recorded, or if the report does not need it."""
    recorded, path = report.get("file"), folder / FILE
    if recorded is None:
        return None
    try:
        size = regular_file(path).st_size
        if size != recorded["bytes"]:
            return f"{path}: has {size} bytes, dataset.json says {recorded['bytes']}"
        if (found := sha256(path)) != recorded["sha256"]:
            return f"{path}: has SHA-256 {found}, dataset.json says {recorded['sha256']}"
    except DataError as error:
        return str(error)
    return None


def _read_file(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the faults of a file with one JSON object per line; raises DataError if a line is invalid."""
    regular_file(path, _MAX_FILE)
    decode = msgspec.json.Decoder(ReportedFault).decode
    number = 0
    try:
        with path.open("rb") as file:
            for number, text in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if not text.endswith(b"\n"):
                    raise DataError(f"{path}: line {number} does not end, or has more than {_MAX_LINE} bytes")
                yield msgspec.structs.asdict(decode(text))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # a ValidationError is a DecodeError
        raise DataError(f"{path}: line {number} is not a fault: {one_line(error)}") from None
