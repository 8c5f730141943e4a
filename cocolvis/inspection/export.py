"""Exports masks as 16-bit PNGs, one per image, with an export.json that records which data set they come from."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec

from cocolvis.ahead import ahead
from cocolvis.disk.files import is_absent, read_json, reason, regular_file, sweep, sync_disk, write_json
from cocolvis.disk.lock import Lease, held
from cocolvis.errors import DataError
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import png
from cocolvis.pictures.encoded import write_png
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.storage.dataset import Dataset

RECORD = "export.json"
"""The record of an export, in its folder; written before the first mask."""

_MASK = re.compile(r"[0-9]{12,19}\.png")
"""The file names of masks."""


class _Record(msgspec.Struct):
    """The digest of the exported data set, and its splits, each of which has a folder."""

    digest: str
    splits: list[str]
    format: str = "png"


def export_png(
    dataset: Dataset,
    out: Path,
    progress: Progress = ignore,
    *,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    announce: Announce = ignore,
) -> int:
    """Write each mask to ``out/{split}/{image_id:012d}.png``, 16-bit grayscale with classes as values; return their number.

    ``workers`` threads encode and write; no file is ever left half-written. ``resume`` keeps the intact masks of an interrupted
    export of the same data set. ``overwrite`` replaces masks of another or unknown data set. ``announce`` is called with a line
    while this waits for a process that may be writing there. Raises DataError if there are masks of another data set and
    ``overwrite`` is not set, if another process writes to ``out``, and if a file cannot be written.
    """
    total, done = sum(dataset.splits.values()), 0
    with held(out, None, announce, "an export") as lease:
        _begin(dataset, out, resume, overwrite, lease)

        def write(task: tuple[Path, Runs]) -> None:
            path, runs = task
            if not (resume and _is_intact(path, (runs.height, runs.width))):
                write_png(path, runs.mask(), lease.check, sync=False)

        progress(0, total)
        for done, _ in zip(count(1), ahead(write, _tasks(dataset, out), workers), strict=False):
            progress(done, total)
        sync_disk(out)
    return done


def _tasks(dataset: Dataset, out: Path) -> Iterator[tuple[Path, Runs]]:
    """Yield the file of each mask, and its runs."""
    for name in dataset.splits:
        for shard in dataset.split(name).shards():
            for row, image_id in enumerate(shard.image_ids().tolist()):
                yield out / name / f"{image_id:012d}.png", shard.runs(row)


def _begin(dataset: Dataset, out: Path, resume: bool, overwrite: bool, lease: Lease) -> None:
    """Write the record of this export, unless it is there already; raises DataError if there are masks of another data set."""
    record = _Record(dataset.index["digest"], list(dataset.splits))
    earlier = _read_record(out, overwrite)
    if earlier == record:
        for name in record.splits if resume or overwrite else ():
            _sweep(out / name)
        return
    others = {*record.splits, *(earlier.splits if earlier else ())}
    masks = [path for name in sorted(others) for path in _masks(out / name)]
    if masks and not overwrite:
        whose = "of another data set" if earlier else f"of unknown origin, because there is no {RECORD}"
        raise DataError(
            f"{out}: holds masks {whose}, such as {masks[0]}; choose another --out, or replace them with --overwrite"
        )
    _remove(masks, lease)  # before the new record is written, which would make them pass for masks of this data set
    for name in others:
        _sweep(out / name)
    write_json(out / RECORD, msgspec.to_builtins(record), lease.check)


def _read_record(out: Path, overwrite: bool) -> _Record | None:
    """Return the record of an earlier export; raises DataError if it cannot be read and ``overwrite`` is not set."""
    path = out / RECORD
    try:
        if is_absent(path):
            return None
        regular_file(path)
        record = msgspec.convert(read_json(path), _Record)
        if not all(re.fullmatch(r"\w[\w-]*", name) for name in record.splits):
            raise msgspec.ValidationError("it names an invalid split")
        return record
    except (DataError, msgspec.ValidationError) as error:
        if overwrite:
            return None
        message = error if isinstance(error, DataError) else f"{path}: is not a record of an export: {error}"
        raise DataError(f"{message}; choose another --out, or replace the masks with --overwrite") from None


def _masks(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if _MASK.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}") from None


def _remove(masks: list[Path], lease: Lease) -> None:
    for path in masks:
        lease.check()
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be removed: {reason(error)}") from None


def _sweep(folder: Path) -> None:
    sweep(folder, lambda name: bool(_MASK.fullmatch(name)))


def _is_intact(path: Path, size: tuple[int, int]) -> bool:
    """Whether a mask is completely written: after a power cut a file may exist without its contents."""
    try:
        regular_file(path)
        content = path.read_bytes()
        png.check(content)
        return png.read_header(content)[:3] == (*size, 16)
    except (DataError, OSError, ValueError):
        return False
