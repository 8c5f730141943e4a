"""Verifies a data set: the size and checksum of every shard, and its content against dataset.json."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import is_absent, regular_file, sha256
from cocolvis.errors import DataError
from cocolvis.pictures import encoded
from cocolvis.progress import Progress, ignore
from cocolvis.storage import digest, report
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.index import CHECKSUMS
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.text import one_line


def verify(dataset: Dataset, progress: Progress = ignore) -> list[str]:
    """The faults of a data set, one line each; empty if it is intact. ``progress`` counts bytes of shards.

    Reads everything, and computes the digest of each image and of the data set from the stored values.
    """
    faults: list[str] = []
    ids: dict[str, list[np.ndarray]] = {split: [] for split in dataset.splits}
    leaves: dict[str, list[bytes]] = {split: [] for split in dataset.splits}
    shards = dataset.index["shards"]
    meter = _ShardProgress(progress, sum(entry["bytes"] for entry in shards))
    for entry in shards:
        path = dataset.folder / entry["file"]
        meter.begin(entry["bytes"])
        wrong_size = list(_size_faults(path, entry))
        faults += wrong_size
        try:
            reader = ShardReader(path, len(dataset.vocabulary))
        except DataError as error:
            faults += [str(error)] if os.path.isfile(path) else []
        else:
            faults += [] if wrong_size else _checksum_faults(reader, entry, CHECKSUMS[dataset.index["version"]], meter)
            faults += [f"{path}: {fault}" for fault in _content_faults(reader, entry, dataset)]
            ids.setdefault(entry["split"], []).append(reader.image_ids())
            faults += _image_faults(reader, leaves.setdefault(entry["split"], []), meter)
            faults += _instance_faults(reader, dataset)
            reader.close()
    meter.begin(0)
    damage = report.find_damage(dataset.folder, dataset.index["report"])
    return faults + list(_index_faults(dataset, ids, leaves)) + ([damage] if damage else [])


def check_pictures(dataset: Dataset, threads: int = 1, progress: Progress = ignore) -> list[str]:
    """The faults of the pictures, one line each: every embedded or referenced picture is checked and decoded.

    :func:`cocolvis.pictures.encoded.check` says which faults are found. ``progress`` counts images. Each thread holds one
    picture at a time. Raises DataError if the data set has no pictures.
    """
    require_pictures(dataset)
    encoded.warm_up()
    faults: list[str] = []
    done, total = 0, sum(dataset.splits.values())
    with ThreadPoolExecutor(threads) as pool:
        for name in dataset.splits:
            split = dataset.split(name)
            for path in dataset.shard_paths(name):
                try:
                    reader = ShardReader(path, len(dataset.vocabulary))
                except DataError as error:
                    faults.append(str(error))
                    continue
                for fault in pool.map(partial(_picture_fault, split, reader), range(len(reader))):
                    faults += [fault] if fault else []
                    done += 1
                    progress(done, total)
                reader.close()
    return faults


def require_pictures(dataset: Dataset) -> None:
    """Raise DataError if a data set was built without pictures, and was opened without an ``image_root``."""
    if dataset.index["options"]["images"] == "none" and dataset.image_root is None:
        reason = "was built with --images none, so it has no pictures to check"
        raise DataError(f"{dataset.folder}: {reason}; pass the folder of its pictures with --image-root")


def _picture_fault(split: Split, reader: ShardReader, row: int) -> str | None:
    try:
        split.with_picture(reader.sample(row)).check_image()
    except DataError as error:
        return str(error)
    return None


class _ShardProgress:
    """Counts checked bytes over all shards: a byte of the file that is hashed counts half, the images count for the rest."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total = progress, total
        self._before = self._size = self._hashed = 0

    def begin(self, size: int) -> None:
        """Begin the next shard, which has ``size`` bytes."""
        self._before, self._size, self._hashed = self._before + self._size, size, 0
        self._progress(self._before, self._total)

    def hashed(self, count: int) -> None:
        """Report that ``count`` more bytes of the shard's file have been hashed."""
        self._hashed = min(self._hashed + count, self._size)
        self._progress(self._before + self._hashed // 2, self._total)

    def checked(self, share: float) -> None:
        """Report that this share of the shard's images has been checked."""
        first = self._hashed // 2
        self._progress(self._before + first + int((self._size - first) * share), self._total)


def _size_faults(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    if is_absent(path):
        yield f"{path}: does not exist; build the data set again with --overwrite"
        return
    try:
        size = regular_file(path).st_size
        if size != entry["bytes"]:
            yield f"{path}: has {size} bytes, dataset.json says {entry['bytes']}"
    except DataError as error:
        yield str(error)


def _checksum_faults(reader: ShardReader, entry: dict[str, Any], key: str, meter: _ShardProgress) -> Iterator[str]:
    try:
        actual = reader.checksum(meter.hashed) if key == "checksum" else sha256(reader.path, meter.hashed)
        if actual != entry[key]:
            yield f"{reader.path}: has {key} {actual}, dataset.json says {entry[key]}"
    except DataError as error:
        yield str(error)


def _content_faults(reader: ShardReader, entry: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    if len(reader) != entry["images"]:
        yield f"holds {len(reader)} images, dataset.json says {entry['images']}"
    for name, expected in (("split", entry["split"]), ("vocabulary", dataset.vocabulary.digest)):
        if reader.attributes.get(name) != expected:
            yield f"its {name} is {one_line(repr(reader.attributes.get(name)))}, dataset.json says {expected!r}"
    if reader.has_instances != dataset.records_instances:
        said = "records instances" if reader.has_instances else "does not record instances"
        yield f"{said}, dataset.json says otherwise"
    listed = reader.federated_classes()
    if listed.size and not 1 <= listed.min() <= listed.max() <= len(dataset.vocabulary):
        present = f"{listed.min()}..{listed.max()}"
        yield f"/neg and /not_exhaustive hold classes {present}, the vocabulary has 1..{len(dataset.vocabulary)}"


def _image_faults(reader: ShardReader, leaves: list[bytes], meter: _ShardProgress) -> Iterator[str]:
    """Compare each image with its digest and each mask with its entry in /present; append the digests to ``leaves``."""
    try:
        present = reader.present()
    except DataError as error:
        yield str(error)
        present = None
    for row, (image_id, recorded) in enumerate(zip(reader.image_ids(), reader.digests(), strict=True)):
        meter.checked(row / len(reader))
        try:
            leaves.append(reader.digest(row))
            if leaves[-1] != recorded.tobytes():
                fault = f"image {image_id} has the digest {leaves[-1].hex()}, the shard says {recorded.tobytes().hex()}"
                yield f"{reader.path}: {fault}"
            runs = reader.runs(row)
        except DataError as error:
            yield str(error)
            continue
        if present is not None:
            offsets, classes, pixels = present
            counted = np.bincount(runs.classes, runs.lengths)
            counted[0] = 0
            of_image = slice(int(offsets[row]), int(offsets[row + 1]))
            occurring = np.flatnonzero(counted)
            if not (np.array_equal(occurring, classes[of_image]) and np.array_equal(counted[occurring], pixels[of_image])):
                yield f"{reader.path}: image {image_id}: /present does not match the classes of its mask"


def _instance_faults(reader: ShardReader, dataset: Dataset) -> Iterator[str]:
    """Numbers of instances that are out of range, above 0 for stuff, or 0 for a class that only LVIS annotates."""
    try:
        instances = reader.instances()
    except DataError as error:
        yield str(error)
        return
    if instances is None or not dataset.is_coco_lvis:
        return
    try:
        offsets, classes, _ = reader.present()
    except DataError:  # reported with the images
        return
    kinds = np.array(["", *(c.kind for c in dataset.vocabulary)])[classes]
    wrong = (kinds == "stuff") & (instances > 0)
    if dataset.index["options"]["compat"] is None:  # the defects of the published masks turn some stuff into things
        wrong |= (kinds == "thing") & (instances == 0)
    if wrong.any():
        place = int(wrong.argmax())
        image_id = reader.image_ids()[np.searchsorted(offsets, place, "right") - 1]
        first = f"image {image_id} has {instances[place]} of class {classes[place]}, which is {kinds[place]}"
        yield f"{reader.path}: {int(wrong.sum())} numbers of instances are impossible, the first: {first}"


def _index_faults(dataset: Dataset, ids: dict[str, list[np.ndarray]], leaves: dict[str, list[bytes]]) -> Iterator[str]:
    actual = digest.of_dataset(leaves, dataset.vocabulary.digest)
    if actual != dataset.index["digest"]:
        yield f"{dataset.folder / 'dataset.json'}: its digest is {dataset.index['digest']}, but the contents give {actual}"
    for split, parts in ids.items():
        entries = [entry for entry in dataset.index["shards"] if entry["split"] == split]
        recorded = dataset.index["splits"].get(split)
        counted = {"images": sum(entry["images"] for entry in entries), "shards": len(entries)}
        if recorded != counted:
            yield f"{dataset.folder / 'dataset.json'}: split {split} is {recorded}, its shards have {counted}"
        repeated = [i for i, count in Counter(np.concatenate([np.zeros(0, np.int64), *parts]).tolist()).items() if count > 1]
        if repeated:
            yield f"split {split}: {len(repeated)} image ids occur more than once, the first: {repeated[0]}"
