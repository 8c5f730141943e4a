"""Writes the predictions for a split of a data set as shards: a folder like a data set, whose masks are the predictions.

Every command that reads data sets reads it too: ``cocolvis view DATA --predictions DIR``, ``cocolvis diff``, ``cocolvis show``.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cocolvis.ahead import ahead
from cocolvis.disk.files import is_absent, read_json, reason, write_json
from cocolvis.errors import DamagedImage, DataError
from cocolvis.faults import Fault
from cocolvis.masks.runlength import Runs
from cocolvis.progress import Progress, ignore
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
) -> list[str]:
    """Write the predictions for a split to the folder ``out``, and return a line for each damaged image, which is left out.

    There is one shard for each shard of the split, and dataset.json is written last. Its key "predictions" has the digest of
    the data set, the run, the step, the weights and the views. With ``skip_existing``, shards that the same model finished for
    the same data set are kept. Raises DataError if the model has other classes than the data set, if ``out`` holds something
    else, such as predictions for another split, or if a disk fails.
    """
    if predictor.without_added_classes().vocabulary.digest != dataset.vocabulary.digest:
        raise DataError(f"{dataset.folder}: has another vocabulary than the model was trained with; predict its data set")
    _check_folder(out, split)
    images, made_by = dataset.split(split), _made_by(predictor, dataset)
    attributes = {"split": split, "images": "none", "vocabulary": predictor.vocabulary.digest, _KEY: _digest(made_by)}
    _remove(out / INDEX)
    faults: list[Fault] = []
    readers = []
    for number, (first, last) in enumerate(itertools.pairwise(images.starts.tolist())):
        path = out / "shards" / f"{split}-{number:05d}.h5"
        ids = images.shard(number).image_ids()
        if not (skip_existing and _is_finished(path, attributes, ids)):
            _write_shard(predictor, images, range(first, last), path, attributes, progress)
        readers.append(ShardReader(path))
        faults += [_fault(int(image_id)) for image_id in np.setdiff1d(ids, readers[-1].image_ids())]
        progress(last, len(images))
    _write_index(out, split, dataset, predictor, made_by, readers, faults)
    return [fault.reason for fault in faults]


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


def _write_shard(
    predictor: Predictor, images: Split, rows: range, path: Path, attributes: dict[str, str], progress: Progress
) -> None:
    """Predict the images of one shard; damaged ones are missing from it."""
    done = itertools.count(rows.start + 1)

    def load(row: int) -> tuple[Sample, np.ndarray] | None:
        try:
            sample = images[row]
            return sample, sample.image()
        except DamagedImage:
            return None

    def pictures() -> Iterator[tuple[tuple[int, Sample], np.ndarray]]:
        for row, loaded in zip(rows, ahead(load, rows, threads=1), strict=True):
            if loaded is None:
                progress(next(done), len(images))
            else:
                yield (row, loaded[0]), loaded[1]

    predicted: dict[int, Sample] = {}
    for (row, sample), _, mask in predictor.stream(pictures()):
        predicted[row] = Sample(
            image_id=sample.image_id,
            path=sample.path,
            runs=Runs.of(mask),
            content=b"",
            neg=_EMPTY,
            not_exhaustive=_EMPTY,
        )
        progress(next(done), len(images))
    with ShardWriter(path, attributes) as writer:
        for row in sorted(predicted):
            writer.add(predicted[row])


def _fault(image_id: int) -> Fault:
    return Fault("damaged image", "image", image_id, None, f"image {image_id}: is damaged; `cocolvis verify --decode` says how")


def _write_index(
    out: Path,
    split: str,
    dataset: Dataset,
    predictor: Predictor,
    made_by: dict[str, Any],
    readers: list[ShardReader],
    faults: list[Fault],
) -> None:
    """Write dataset.json, which makes the folder a data set."""
    leaves = [row.tobytes() for reader in readers for row in reader.digests()]
    index = {
        "format": FORMAT,
        "version": VERSION,
        "digest": digest.of_dataset({split: leaves}, predictor.vocabulary.digest),
        "splits": {split: {"images": len(leaves), "shards": len(readers)}},
        "shards": [_entry(reader, split) for reader in readers],
        "options": {"images": "none", "limit": None, "dataset": _KEY},
        "inputs": {split: dataset.index["digest"]},
        "report": report.write(out, faults),
        _KEY: made_by,
        "vocabulary": predictor.vocabulary.to_json(),
    }
    write_json(out / INDEX, index)


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
