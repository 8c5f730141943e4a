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
    the data set, the run, the step, the weights and the views. With ``skip_existing``, shards that the same model finished for
    the same data set are kept. ``announce`` is called with a line if this waits for a sign of life from another process. Raises
    DataError if the model has other classes than the data set, if ``out`` holds something else, such as predictions for another
    split, if another process writes there, or if a disk fails.
    """
    if predictor.without_added_classes().vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{dataset.folder}: has another vocabulary than the model was trained with; predict its data set")
    images = dataset.split(split)
    _check_folder(out, split)
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
        attributes = {"split": split, "images": "none", "vocabulary": vocabulary, _KEY: _digest(made_by)}
        _remove(self.out / INDEX)
        faults: list[Fault] = []
        readers = []
        for number, (first, last) in enumerate(itertools.pairwise(self.images.starts.tolist())):
            path = self.out / "shards" / f"{split}-{number:05d}.h5"
            ids = self.images.shard(number).image_ids()
            if not (skip_existing and _is_finished(path, attributes, ids)):
                self._write_shard(range(first, last), path, attributes)
            readers.append(ShardReader(path))
            faults += [_fault(int(image_id)) for image_id in np.setdiff1d(ids, readers[-1].image_ids())]
            self.progress(last, len(self.images))
        self._write_index(made_by, readers, faults)
        return [fault.reason for fault in faults]

    def _write_shard(self, rows: range, path: Path, attributes: dict[str, str]) -> None:
        """Predict the images of one shard; damaged ones are missing from it."""
        done, total = itertools.count(rows.start + 1), len(self.images)

        def load(row: int) -> tuple[Sample, np.ndarray] | None:
            try:
                sample = self.images[row]
                return sample, sample.image()
            except DamagedImage:
                return None

        def pictures() -> Iterator[tuple[tuple[int, Sample], np.ndarray]]:
            for row, loaded in zip(rows, ahead(load, rows, threads=1), strict=True):
                if loaded is None:
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


def _remove(index: Path) -> None:
    """Remove the index of earlier predictions, which will be replaced; raises DataError if that fails."""
    try:
        index.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{index}: cannot be removed: {reason(error)}") from None


def _made_by(predictor: Predictor, dataset: Dataset) -> dict[str, Any]:
    """What the predictions depend on, as it is recorded in dataset.json."""
    checkpoint = predictor.checkpoint
    return {
        "of": dataset.index["digest"],
        "run": checkpoint.folder.resolve().parent.parent.name if checkpoint else None,
        "step": checkpoint.step if checkpoint else None,
        "weights": checkpoint.weights_digest() if checkpoint else "",
        "added": _digest([[new.name, new.radius, new.embedding] for new in predictor.added]) if predictor.added else None,
        "views": asdict(predictor.inference),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_finished(path: Path, attributes: dict[str, str], ids: np.ndarray) -> bool:
    """Whether a shard was written completely for these images, by the same model with the same views."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            same = all(file.attrs.get(name) == np.bytes_(text.encode()) for name, text in attributes.items())
        return same and bool(np.isin(ShardReader(path).image_ids(), ids).all())
    except (OSError, DataError):
        return False


def _fault(image_id: int) -> Fault:
    return Fault("damaged image", "image", image_id, None, f"image {image_id}: is damaged; `cocolvis verify --decode` says how")


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
