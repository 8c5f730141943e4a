"""The integrity of a data set: every shard against its recorded size and SHA-256, and what it holds against the index."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis import digest
from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from cocolvis.files import sha256
from cocolvis.shards import ShardReader


def verify(dataset: Dataset, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """The faults of a data set, one line each; empty when it is whole. ``progress`` counts shards.

    Reads everything: the digest of each image, and of the data set, is computed anew from the contents.
    """
    faults = []
    ids: dict[str, list[np.ndarray]] = {split: [] for split in dataset.splits}
    leaves: dict[str, list[bytes]] = {split: [] for split in dataset.splits}
    shards = dataset.index["shards"]
    for number, entry in enumerate(shards, 1):
        path = dataset.folder / entry["file"]
        faults += [f"{path}: {fault}" for fault in _file_faults(path, entry)]
        try:
            reader = ShardReader(path)
        except DataError as error:
            faults += [str(error)] if path.exists() else []
        else:
            faults += [f"{path}: {fault}" for fault in _content_faults(reader, entry, dataset)]
            ids.setdefault(entry["split"], []).append(reader.image_ids())
            found = leaves.setdefault(entry["split"], [])
            faults += [f"{path}: {fault}" for fault in _digest_faults(reader, found)]
            reader.close()
        progress(number, len(shards))
    return faults + list(_index_faults(dataset, ids, leaves))


def _file_faults(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield "does not exist; build the data set again with --overwrite"
    elif path.stat().st_size != entry["bytes"]:
        yield f"has {path.stat().st_size} bytes, dataset.json says {entry['bytes']}"
    elif (found := sha256(path)) != entry["sha256"]:
        yield f"has SHA-256 {found}, dataset.json says {entry['sha256']}"


def _content_faults(reader: ShardReader, entry: dict[str, Any], dataset: Dataset) -> Iterator[str]:
    if len(reader) != entry["images"]:
        yield f"holds {len(reader)} images, dataset.json says {entry['images']}"
    for name, expected in (("split", entry["split"]), ("vocabulary", dataset.vocabulary.digest)):
        if reader.attributes.get(name) != expected:
            yield f"its {name} is {reader.attributes.get(name)!r}, dataset.json says {expected!r}"
    _, classes, _ = reader.present()
    if classes.size and not 1 <= classes.min() <= classes.max() <= len(dataset.vocabulary):
        yield f"holds classes {classes.min()}..{classes.max()}, the vocabulary has 1..{len(dataset.vocabulary)}"


def _digest_faults(reader: ShardReader, leaves: list[bytes]) -> Iterator[str]:
    """Compare the digest of each image with the recorded one, and add it to ``leaves``."""
    for row, (image_id, recorded) in enumerate(zip(reader.image_ids(), reader.digests(), strict=True)):
        try:
            leaves.append(reader.digest(row))
        except (OSError, ValueError) as error:
            yield f"image {image_id} cannot be read: {str(error).splitlines()[0]}"
        else:
            if leaves[-1] != recorded.tobytes():
                yield f"image {image_id} has the digest {leaves[-1].hex()}, the shard says {recorded.tobytes().hex()}"


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
