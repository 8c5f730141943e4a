"""The integrity of a data set: every shard against its recorded size and SHA-256, and what it holds against the index."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from cocolvis.files import sha256
from cocolvis.shards import ShardReader


def verify(dataset: Dataset, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
    """The faults of a data set, one line each; empty when it is whole. ``progress`` counts shards."""
    faults = []
    ids: dict[str, list[np.ndarray]] = {split: [] for split in dataset.splits}
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
            reader.close()
        progress(number, len(shards))
    return faults + list(_index_faults(dataset, ids))


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


def _index_faults(dataset: Dataset, ids: dict[str, list[np.ndarray]]) -> Iterator[str]:
    for split, parts in ids.items():
        entries = [entry for entry in dataset.index["shards"] if entry["split"] == split]
        recorded = dataset.index["splits"].get(split)
        counted = {"images": sum(entry["images"] for entry in entries), "shards": len(entries)}
        if recorded != counted:
            yield f"{dataset.folder / 'dataset.json'}: split {split} is {recorded}, its shards make {counted}"
        repeated = [i for i, count in Counter(np.concatenate([np.zeros(0, np.int64), *parts]).tolist()).items() if count > 1]
        if repeated:
            yield f"split {split}: {len(repeated)} image ids occur more than once, the first: {repeated[0]}"
