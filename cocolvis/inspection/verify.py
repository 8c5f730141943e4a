"""The integrity of a data set: every shard against its recorded size and SHA-256, and what it holds against the index."""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import sha256
from cocolvis.errors import DataError
from cocolvis.pictures import encoded
from cocolvis.progress import Progress, ignore
from cocolvis.storage import checks, digest, report
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.shards import ShardReader
from cocolvis.text import one_line


def verify(dataset: Dataset, progress: Progress = ignore) -> list[str]:
    """The faults of a data set, one line each; empty when it is whole. ``progress`` counts bytes of shards.

    Reads everything: the digest of each image, and of the data set, is computed anew from the contents.
    """
    faults = []
    ids: dict[str, list[np.ndarray]] = {split: [] for split in dataset.splits}
    leaves: dict[str, list[bytes]] = {split: [] for split in dataset.splits}
    shards = dataset.index["shards"]
    read = _Read(progress, sum(entry["bytes"] for entry in shards))
    for entry in shards:
        path = dataset.folder / entry["file"]
        read.begin(entry["bytes"])
        faults += _file_faults(path, entry, read)
        try:
            reader = ShardReader(path, len(dataset.vocabulary))
        except DataError as error:
            faults += [str(error)] if os.path.isfile(path) else []
        else:
            faults += [f"{path}: {fault}" for fault in _content_faults(reader, entry, dataset)]
            ids.setdefault(entry["split"], []).append(reader.image_ids())
            faults += _image_faults(reader, leaves.setdefault(entry["split"], []), read)
            reader.close()
    read.begin(0)
    lost = report.check(dataset.folder, dataset.index["report"])
    return faults + list(_index_faults(dataset, ids, leaves)) + ([lost] if lost else [])


def check_pictures(dataset: Dataset, threads: int = 1, progress: Progress = ignore) -> list[str]:
    """The faults of the pictures, one line each: those stored, or the files that are referred to, are checked and decoded.

    What can be found is told by :func:`encoded.check`. ``progress`` counts images. Each thread holds one picture at a time. A
    DataError where the data set knows no pictures.
    """
    if dataset.index["options"]["images"] == "none":
        raise DataError(f"{dataset.folder}: was built with --images none; there are no pictures to look into")
    encoded.warm_up()
    done, total, faults = 0, sum(dataset.splits.values()), []
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


def _picture_fault(split: Split, reader: ShardReader, row: int) -> str | None:
    try:
        split.with_picture(reader.sample(row)).check_image()
    except DataError as error:
        return str(error)
    return None


class _Read:
    """Tells how many bytes of all shards were checked: half of a shard's when its file was hashed, half image by image."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total = progress, total
        self._before = self._size = self._read = 0

    def begin(self, size: int) -> None:
        """The next shard, of so many bytes; what came before is done."""
        self._before, self._size, self._read = self._before + self._size, size, 0
        self._progress(self._before, self._total)

    def hashed(self, count: int) -> None:
        """So many bytes more of the shard's file."""
        self._read += count
        self._progress(self._before + min(self._read, self._size) // 2, self._total)

    def checked(self, share: float) -> None:
        """A share of the shard's images."""
        self._progress(self._before + int(self._size * (1 + share) / 2), self._total)


def _file_faults(path: Path, entry: dict[str, Any], read: _Read) -> Iterator[str]:
    if checks.absent(path):
        yield f"{path}: does not exist; build the data set again with --overwrite"
        return
    try:
        size = checks.regular_file(path).st_size
        if size != entry["bytes"]:
            yield f"{path}: has {size} bytes, dataset.json says {entry['bytes']}"
        elif (found := sha256(path, read.hashed)) != entry["sha256"]:
            yield f"{path}: has SHA-256 {found}, dataset.json says {entry['sha256']}"
    except DataError as error:
        yield str(error)


def _content_faults(reader: ShardReader, entry: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    if len(reader) != entry["images"]:
        yield f"holds {len(reader)} images, dataset.json says {entry['images']}"
    for name, expected in (("split", entry["split"]), ("vocabulary", dataset.vocabulary.digest)):
        if reader.attributes.get(name) != expected:
            yield f"its {name} is {one_line(repr(reader.attributes.get(name)))}, dataset.json says {expected!r}"
    absent = reader.absent()
    if absent.size and not 1 <= absent.min() <= absent.max() <= len(dataset.vocabulary):
        yield f"excludes classes {absent.min()}..{absent.max()}, the vocabulary has 1..{len(dataset.vocabulary)}"


def _image_faults(reader: ShardReader, leaves: list[bytes], read: _Read) -> Iterator[str]:
    """Compare each image with its digest, and its mask with the classes that it counts; add the digests to ``leaves``."""
    try:
        offsets, classes, pixels = reader.present()
    except DataError as error:
        yield str(error)
        offsets = None
    for row, (image_id, recorded) in enumerate(zip(reader.image_ids(), reader.digests(), strict=True)):
        read.checked(row / len(reader))
        try:
            leaves.append(reader.digest(row))
            if leaves[-1] != recorded.tobytes():
                found = f"image {image_id} has the digest {leaves[-1].hex()}, the shard says {recorded.tobytes().hex()}"
                yield f"{reader.path}: {found}"
            runs = reader.runs(row)
        except DataError as error:
            yield str(error)
            continue
        if offsets is not None:
            counted = np.bincount(runs.classes, runs.lengths)
            counted[0] = 0
            of_image = slice(int(offsets[row]), int(offsets[row + 1]))
            found = np.flatnonzero(counted)
            if not (np.array_equal(found, classes[of_image]) and np.array_equal(counted[found], pixels[of_image])):
                yield f"{reader.path}: image {image_id}: /present does not count the classes of its mask"


def _index_faults(dataset: Dataset, ids: dict[str, list[np.ndarray]], leaves: dict[str, list[bytes]]) -> Iterator[str]:
    found = digest.of_dataset(leaves, dataset.vocabulary.digest)
    if found != dataset.index["digest"]:
        yield f"{dataset.folder / 'dataset.json'}: its digest is {dataset.index['digest']}, the contents make {found}"
    for split, parts in ids.items():
        entries = [entry for entry in dataset.index["shards"] if entry["split"] == split]
        recorded = dataset.index["splits"].get(split)
        counted = {"images": sum(entry["images"] for entry in entries), "shards": len(entries)}
        if recorded != counted:
            yield f"{dataset.folder / 'dataset.json'}: split {split} is {recorded}, its shards make {counted}"
        repeated = [i for i, count in Counter(np.concatenate([np.zeros(0, np.int64), *parts]).tolist()).items() if count > 1]
        if repeated:
            yield f"split {split}: {len(repeated)} image ids occur more than once, the first: {repeated[0]}"
