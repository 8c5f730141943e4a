"""Masks as plain files, one 16-bit PNG an image, and export.json beside them, which says what they were exported from."""

import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import msgspec

from cocolvis.ahead import ahead
from cocolvis.disk.files import read_json, reason, regular_file, sweep, sync_disk, write_json
from cocolvis.errors import DataError
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import png
from cocolvis.pictures.encoded import write_png
from cocolvis.progress import Progress, ignore
from cocolvis.storage import checks
from cocolvis.storage.dataset import Dataset

RECORD = "export.json"
"""Lies in the folder of an export, and is written before the first mask."""

_MASK = re.compile(r"[0-9]{12,19}\.png")
"""The names of masks."""


class _Record(msgspec.Struct):
    """``digest`` is that of the data set, ``splits`` its splits, a folder each."""

    digest: str
    splits: list[str]
    format: str = "png"


def export_png(
    dataset: Dataset, out: Path, progress: Progress = ignore, *, workers: int = 1, resume: bool = False, overwrite: bool = False
) -> int:
    """Write each mask to ``out/{split}/{image_id:012d}.png`` (16-bit grayscale, the value is the class); the number of masks.

    ``workers`` threads encode and write; each file is whole or absent. ``resume`` leaves alone what an interrupted export of
    the same data set has written, as far as it is whole. Masks of another data set, or of which nobody knows, are replaced with
    ``overwrite``, and otherwise a DataError, as is a file that cannot be written.
    """
    _begin(dataset, out, resume, overwrite)
    total, done = sum(dataset.splits.values()), 0

    def write(task: tuple[Path, Runs]) -> None:
        path, runs = task
        if not (resume and _is_whole(path, (runs.height, runs.width))):
            write_png(path, runs.mask(), sync=False)

    progress(0, total)
    for done, _ in zip(count(1), ahead(write, _tasks(dataset, out), workers), strict=False):
        progress(done, total)
    sync_disk(out)
    return done


def _tasks(dataset: Dataset, out: Path) -> Iterator[tuple[Path, Runs]]:
    """The file of each mask, and its run lengths."""
    for name in dataset.splits:
        for shard in dataset.split(name).shards():
            for row, image_id in enumerate(shard.image_ids().tolist()):
                yield out / name / f"{image_id:012d}.png", shard.runs(row)


def _begin(dataset: Dataset, out: Path, resume: bool, overwrite: bool) -> None:
    """Note what the masks are exported from, unless that is noted; a DataError where other masks are there."""
    record = _Record(dataset.index["digest"], list(dataset.splits))
    found = _recorded(out, overwrite)
    if found == record:
        for name in record.splits if resume or overwrite else ():
            _sweep(out / name)
        return
    others = {*record.splits, *(found.splits if found else ())}
    masks = [path for name in sorted(others) for path in _masks(out / name)]
    if masks and not overwrite:
        whose = "of another data set" if found else f"of which no {RECORD} says where they are from"
        raise DataError(
            f"{out}: holds masks {whose}, such as {masks[0]}; choose another --out, or replace them with --overwrite"
        )
    _remove(masks)  # before the new record: with it they would pass for masks of this data set
    for name in others:
        _sweep(out / name)
    write_json(out / RECORD, msgspec.to_builtins(record))


def _recorded(out: Path, overwrite: bool) -> _Record | None:
    """What an earlier export noted; a DataError where that cannot be read and is not to be replaced."""
    path = out / RECORD
    try:
        if checks.absent(path):
            return None
        regular_file(path)
        found = msgspec.convert(read_json(path), _Record)
        if not all(re.fullmatch(r"\w[\w-]*", name) for name in found.splits):
            raise msgspec.ValidationError("it names splits that are none")
        return found
    except (DataError, msgspec.ValidationError) as error:
        if overwrite:
            return None
        said = error if isinstance(error, DataError) else f"{path}: is no record of an export: {error}"
        raise DataError(f"{said}; choose another --out, or replace the masks with --overwrite") from None


def _masks(folder: Path) -> list[Path]:
    try:
        return [path for path in sorted(folder.iterdir()) if _MASK.fullmatch(path.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}") from None


def _remove(masks: list[Path]) -> None:
    for path in masks:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"{path}: cannot be removed: {reason(error)}") from None


def _sweep(folder: Path) -> None:
    sweep(folder, lambda name: bool(_MASK.fullmatch(name)))


def _is_whole(path: Path, size: tuple[int, int]) -> bool:
    """Whether a mask was written to its end: a power cut may leave the name of a file without its contents."""
    try:
        regular_file(path)
        content = path.read_bytes()
        png.check(content)
        return png.read_header(content)[:3] == (*size, 16)
    except (DataError, OSError, ValueError):
        return False
