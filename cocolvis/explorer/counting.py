"""Makes the catalog of a data set from the tables of its shards; no mask is decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocolvis.errors import DataError
from cocolvis.explorer.cache import Tables, write_tables
from cocolvis.explorer.catalog import Catalog, Shard
from cocolvis.palette import palette
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader


class _Counts(NamedTuple):
    """The images of some shards, and an entry for each class in each of these images."""

    ids: np.ndarray
    sizes: np.ndarray
    rows: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray

    @classmethod
    def of(cls, reader: ShardReader, first: int) -> "_Counts":
        """The counts of one shard, whose first image has the number ``first``."""
        offsets, classes, pixels = reader.present()
        bounds = offsets.astype(np.int64)
        rows = np.repeat(np.arange(first, first + len(reader), dtype=np.uint32), bounds[1:] - bounds[:-1])
        return cls(reader.image_ids(), reader.sizes(), rows, classes, pixels)

    @classmethod
    def joined(cls, parts: "Sequence[_Counts]") -> "_Counts":
        """The counts of several shards together."""
        none = cls(np.zeros(0, np.int64), np.zeros((0, 2), np.uint32), *(np.zeros(0, np.dtype(d)) for d in ("u4", "u2", "u4")))
        return cls(*map(np.concatenate, zip(none, *parts, strict=True)))


def count_classes(dataset: Dataset, path: Path | None, progress: Progress = ignore) -> Catalog:
    """The catalog of a data set, kept in the file ``path``, if there is one and all shards can be read.

    ``progress`` counts shards.
    """
    shards: list[Shard] = []
    parts: list[_Counts] = []
    unreadable: list[str] = []
    size = len(dataset.vocabulary) + 1
    instances = {name: np.zeros(size, np.int64) for name in dataset.splits} if dataset.records_instances else None
    first, total = 0, len(dataset.index["shards"])
    progress(0, total)
    for split in map(dataset.split, dataset.splits):
        for number, start in enumerate(split.starts[:-1].tolist()):
            try:
                reader = split.shard(number)
                counts, counted = _Counts.of(reader, first), reader.instances()
                if instances is not None and counted is not None:
                    np.add.at(instances[split.name], counts.classes, counted)
                parts.append(counts)
                shards.append(Shard(split.name, start, first, len(reader)))
                first += len(reader)
            except DataError as error:
                unreadable.append(str(error))
            progress(len(shards) + len(unreadable), total)
    facts, arrays = _tables(dataset, shards, _Counts.joined(parts))
    facts["instances"] = instances and {name: sums.tolist() for name, sums in instances.items()}
    facts["unreadable"] = unreadable
    if path is None or unreadable:
        return Catalog(Tables(facts, arrays.__getitem__))
    return Catalog(write_tables(path, facts, arrays))


def _tables(dataset: Dataset, shards: Sequence[Shard], counts: _Counts) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts and arrays of a catalog: the entries of ``counts`` sorted by class, and their sums."""
    size = len(dataset.vocabulary) + 1
    order = np.argsort(counts.classes, kind="stable")
    arrays = {
        "ids": counts.ids,
        "sizes": counts.sizes,
        "starts": np.searchsorted(counts.classes[order], np.arange(size + 1)),
        "rows": counts.rows[order],
        "pixels": counts.pixels[order],
    }
    images, pixels, splits = {}, {}, {}
    for name in dataset.splits:
        inside = np.zeros(len(counts.ids), bool)
        for shard in (shard for shard in shards if shard.split == name):
            inside[shard.first : shard.first + shard.images] = True
        splits[name] = int(inside.sum())
        chosen = inside[counts.rows]
        images[name] = np.bincount(counts.classes[chosen], minlength=size).tolist()
        sums = np.zeros(size, np.int64)
        np.add.at(sums, counts.classes[chosen], counts.pixels[chosen])
        pixels[name] = sums.tolist()
    colours = ["#" + colour.tobytes().hex() for colour in palette(size - 1)]
    return {"shards": shards, "splits": splits, "images": images, "pixels": pixels, "colours": colours}, arrays
