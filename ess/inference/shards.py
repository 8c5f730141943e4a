"""Writes the predictions for a split of a data set as shards: a folder like a data set, whose masks are the predictions.

Every command that reads data sets reads it too: ``cocolvis view DATA --predictions DIR``, ``cocolvis diff``, ``cocolvis show``.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cocolvis.ahead import ahead
from cocolvis.disk import lock
from cocolvis.disk.files import is_absent, read_json, reason, write_json
from cocolvis.disk.lock import Lease
from cocolvis.errors import DamagedImage, DataError
from cocolvis.faults import Fault
from cocolvis.masks.runlength import Runs
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.storage import digest, report
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.index import FORMAT, INDEX, VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter
from ess.inference.predictor import Predictor

_KEY = "predictions"
"""The key of dataset.json that says what was predicted, and by which run; data sets of labels lack it."""

_EMPTY = np.zeros(0, np.uint16)


def predict_split(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    out: Path,
    *,
    skip_existing: bool = False,
    progress: Progress = ignore,
    announce: Announce = ignore,
) -> list[str]:
    """Write the predictions for a split to the folder ``out``, and return a line for each damaged image, which is left out.

    There is one shard for each shard of the split, and dataset.json is written last. Its key "predictions" has the digest of
    the data set, the run, the step, the weights, the added classes, the calibration and the views. With ``skip_existing``,
    shards that the same model finished with the same views for the same data set are kept, unless they lack an image that can
    be read now; the batch size and the name of the run do not matter.
    ``announce`` is called with a line if this waits for a sign of life from another process. Raises DataError if the model has
    other classes than the data set, if ``out`` holds something else, such as predictions for another split, if no image of the
    split can be read, if another process writes there, or if a disk fails.
    """
    if predictor.without_added_classes().vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{dataset.folder}: has another vocabulary than the model was trained with; predict its data set")
    images = dataset.split(split)
    _check_folder(out, split)
    _check_readable(images, dataset.folder)
    with lock.held(out, None, announce, "a prediction") as lease:
        return _Writing(predictor, dataset, images, out, lease, progress).write(skip_existing)


@dataclass(frozen=True)
class _Writing:
    """The predictions for a split of a data set, written to the folder ``out`` as long as the lease is valid."""

    predictor: Predictor
    dataset: Dataset
    images: Split
    out: Path
    lease: Lease
    progress: Progress

    def write(self, skip_existing: bool) -> list[str]:
        """Write all shards, except finished ones with ``skip_existing``, and the index; a line for each damaged image."""
        split, made_by = self.images.name, _made_by(self.predictor, self.dataset)
        vocabulary = self.predictor.vocabulary.digest
        attributes = {"split": split, "images": "none", "vocabulary": vocabulary, _KEY: _digest(_decisive(made_by))}
        _remove(self.out / INDEX)
        faults: list[Fault] = []
        readers = []
        for number, (first, last) in enumerate(itertools.pairwise(self.images.starts.tolist())):
            path, ids = self.out / "shards" / f"{split}-{number:05d}.h5", self.images.shard(number).image_ids()
            damaged = self._damaged_in(range(first, last), ids, path, attributes) if skip_existing else None
            if damaged is None:
                damaged = self._write_shard(range(first, last), path, attributes)
            readers.append(ShardReader(path))
            faults += [_fault(int(ids[row - first]), error) for row, error in damaged.items()]
            self.progress(last, len(self.images))
        self._write_index(made_by, readers, faults)
        return [fault.reason for fault in faults]

    def _damaged_in(
        self, rows: range, ids: np.ndarray, path: Path, attributes: dict[str, str]
    ) -> dict[int, DamagedImage] | None:
        """Row -> the fault of each image that a finished shard lacks; None if the shard must be written.

        ``ids`` are the image ids of the rows. A missing image may be one that could not be reached at that time.
        """
        damaged: dict[int, DamagedImage] = {}
        found = _finished_ids(path, attributes)
        if found is None or not np.isin(found, ids).all():
            return None
        for row in np.asarray(rows)[~np.isin(ids, found)].tolist():
            fault = _damage(self.images, row)
            if fault is None:
                return None
            damaged[row] = fault
        return damaged

    def _write_shard(self, rows: range, path: Path, attributes: dict[str, str]) -> dict[int, DamagedImage]:
        """Predict the images of one shard; row -> the fault of each damaged image, which is missing from it."""
        done, total = itertools.count(rows.start + 1), len(self.images)
        damaged: dict[int, DamagedImage] = {}

        def load(row: int) -> tuple[Sample, np.ndarray] | DamagedImage:
            try:
                sample = self.images[row]
                return sample, sample.image()
            except DamagedImage as error:
                return error

        def pictures() -> Iterator[tuple[tuple[int, Sample], np.ndarray]]:
            for row, loaded in zip(rows, ahead(load, rows, threads=1), strict=True):
                if isinstance(loaded, DamagedImage):
                    damaged[row] = loaded
                    self.progress(next(done), total)
                else:
                    yield (row, loaded[0]), loaded[1]

        predicted: dict[int, Sample] = {}
        for (row, sample), _, mask in self.predictor.stream(pictures()):
            predicted[row] = Sample(
                image_id=sample.image_id,
                path=sample.path,
                runs=Runs.of(mask),
                content=b"",
                neg=_EMPTY,
                not_exhaustive=_EMPTY,
            )
            self.progress(next(done), total)
        with ShardWriter(path, attributes, self.lease.check) as writer:
            for row in sorted(predicted):
                writer.add(predicted[row])
        return damaged

    def _write_index(self, made_by: dict[str, Any], readers: list[ShardReader], faults: list[Fault]) -> None:
        """Write dataset.json, which makes the folder a data set."""
        split, leaves = self.images.name, [row.tobytes() for reader in readers for row in reader.digests()]
        index = {
            "format": FORMAT,
            "version": VERSION,
            "digest": digest.of_dataset({split: leaves}, self.predictor.vocabulary.digest),
            "splits": {split: {"images": len(leaves), "shards": len(readers)}},
            "shards": [_entry(reader, split) for reader in readers],
            "options": {"images": "none", "limit": None, "dataset": _KEY},
            "inputs": {split: self.dataset.index["digest"]},
            "report": report.write(self.out, faults, self.lease.check),
            _KEY: made_by,
            "vocabulary": self.predictor.vocabulary.to_json(),
        }
        write_json(self.out / INDEX, index, self.lease.check)


def _check_folder(out: Path, split: str) -> None:
    """Raise DataError if the folder holds anything that these predictions would replace, except earlier ones of the split."""
    advice = "choose another --out"
    if not is_absent(out / INDEX):
        index = read_json(out / INDEX)
        if not isinstance(index, dict) or _KEY not in index:
            raise DataError(f"{out}: holds a data set that is not predictions; {advice}")
        splits = index.get("splits")
        if isinstance(splits, dict) and {*splits} - {split}:
            raise DataError(f"{out}: holds predictions for the split {min({*splits} - {split})}, which would be lost; {advice}")
    if not is_absent(out / ".build"):
        raise DataError(f"{out}: holds an unfinished build, whose shards would be lost; {advice}")
    if not is_absent(out) and not os.path.isdir(out):
        raise DataError(f"{out}: is a file; expected a folder to write the predictions to")


def _check_readable(images: Split, folder: Path) -> None:
    """Raise DataError if no image of the split can be read, before earlier predictions are replaced by none."""
    first = None
    for row in range(len(images)):
        fault = _damage(images, row)
        if fault is None:
            return
        first = first or fault
    if first is not None:
        raise DataError(f"{folder}: none of the {len(images)} images of split {images.name} can be read; the first: {first}")


def _damage(images: Split, row: int) -> DamagedImage | None:
    """What is wrong with an image of a split, None if it can be read."""
    try:
        images[row].image()
    except DamagedImage as error:
        return error
    return None


def _remove(index: Path) -> None:
    """Remove the index of earlier predictions, which will be replaced; raises DataError if that fails."""
    try:
        index.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{index}: cannot be removed: {reason(error)}") from None


def _made_by(predictor: Predictor, dataset: Dataset) -> dict[str, Any]:
    """How the predictions are made, as it is recorded in dataset.json."""
    checkpoint = predictor.checkpoint
    return {
        "of": dataset.index["digest"],
        "run": checkpoint.folder.resolve().parent.parent.name if checkpoint else None,
        "step": checkpoint.step if checkpoint else None,
        "weights": checkpoint.weights_digest() if checkpoint else "",
        "added": _digest([[new.name, new.radius, new.embedding] for new in predictor.added]) if predictor.added else None,
        "calibration": None if predictor.bias is None else _digest(predictor.bias.tolist()),
        "views": asdict(predictor.inference),
    }


def _decisive(made_by: dict[str, Any]) -> dict[str, Any]:
    """What the predictions depend on: not the names of the weights, nor how many images are predicted at a time."""
    views = {name: value for name, value in made_by["views"].items() if name != "batch_size"}
    return {name: made_by[name] for name in ("of", "weights", "added", "calibration")} | {"views": views}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _finished_ids(path: Path, attributes: dict[str, str]) -> np.ndarray | None:
    """The image ids (N,) in a shard; None unless it was written completely, by the same model with the same views."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            same = all(file.attrs.get(name) == np.bytes_(text.encode()) for name, text in attributes.items())
        return ShardReader(path).image_ids() if same else None
    except (OSError, DataError):
        return None


def _fault(image_id: int, error: DamagedImage) -> Fault:
    return Fault("damaged image", "image", image_id, None, str(error))


def _entry(reader: ShardReader, split: str) -> dict[str, Any]:
    """The entry of a shard in dataset.json."""
    path = reader.path
    return {
        "file": f"{path.parent.name}/{path.name}",
        "split": split,
        "images": len(reader),
        "bytes": path.stat().st_size,
        "checksum": reader.checksum(),
        "hdf5": h5py.version.hdf5_version,
    }
