"""Writes one HDF5 shard: encoded pictures, masks as run lengths, and tables of the classes in each mask."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cocolvis.disk.files import write_aside
from cocolvis.masks import runlength
from cocolvis.storage import digest
from cocolvis.storage.columns import (
    FORMAT,
    INSTANCES,
    INSTANCES_TYPE,
    PACKED,
    PER_IMAGE,
    VERSION,
    stored_type,
    to_little_endian,
)
from cocolvis.storage.samples import Sample

_PICTURES = "image/bytes"
"""The column that is most of a shard."""

_DTYPES = {name: dtype for name, (dtype, _) in PER_IMAGE.items()} | {
    f"{group}/{column}": dtype for group, columns in PACKED.items() for column, dtype in columns.items()
}
"""The type of each column that every image adds to."""


class _Column(NamedTuple):
    """The type and shape of a column's values, and their bytes in parts."""

    dtype: str
    shape: tuple[int, ...]
    parts: Sequence[bytes]


class ShardWriter:
    """Collects samples and writes them as one shard.

    As a context manager it writes the shard on a clean exit and nothing after an exception. ``attributes`` are texts for the
    HDF5 file, ``permit`` is passed to :func:`cocolvis.disk.files.write_aside`. With ``instances``, the shard has the column
    /present/instances, and every sample must have instances.
    """

    def __init__(
        self, path: Path, attributes: Mapping[str, str], permit: Callable[[], None] = lambda: None, *, instances: bool = False
    ):
        self._path = path
        self._permit = permit
        self._attributes = dict(attributes)
        # column -> its values of each image
        self._parts: dict[str, list[bytes]] = {name: [] for name in (*_DTYPES, *([INSTANCES] if instances else []))}

    def add(self, sample: Sample) -> None:
        """Append one image; images are stored in the order in which they are added.

        Of its instances, those of classes in the mask are stored, 0 for a class that they do not name.
        """
        classes, lengths = sample.runs[:2]
        present, pixels = runlength.pixel_counts(classes, lengths)
        values = {
            "id": [sample.image_id],
            "size": sample.size,
            "path/bytes": sample.path.encode(),
            "image/bytes": sample.content,
            "mask/class": classes,
            "mask/length": lengths,
            "present/class": present,
            "present/pixels": pixels,
            "neg/class": sample.neg,
            "not_exhaustive/class": sample.not_exhaustive,
        }
        parts = {name: to_little_endian(value, _DTYPES[name]) for name, value in values.items()}
        parts["digest"] = digest.leaf(parts.values())
        if INSTANCES in self._parts:
            assert sample.instances is not None, "a shard records the instances of all its images or of none"
            counts = [sample.instances.get(class_id, 0) for class_id in present.tolist()]
            parts[INSTANCES] = to_little_endian(counts, INSTANCES_TYPE)
        for name, part in parts.items():
            self._parts[name].append(part)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> dict[str, Any]:
        """Write the shard whole or not at all, and return its ``images``, ``bytes`` and ``checksum``.

        Raises DataError if the file cannot be written. HDF5 writes to memory, because it can crash on a full disk, and only
        reserves the places of the columns. The pictures are most of the file, and are never copied.
        """
        memory, columns = BytesIO(), self._columns()
        pictures = columns.pop(_PICTURES)
        with h5py.File(memory, "w", libver="v110") as file:
            texts = {"format": FORMAT} | self._attributes
            file.attrs.update({"version": VERSION} | {name: np.bytes_(text.encode()) for name, text in texts.items()})
            for group in PACKED:
                file.create_group(group)
            placed = [(_reserve(file, name, column), column.parts) for name, column in columns.items()]
            file.flush()  # places everything else before the pictures
            place = _reserve(file, _PICTURES, pictures)
        return self._write(memory.getbuffer(), placed, place, pictures.parts)

    def _columns(self) -> dict[str, _Column]:
        columns = {name: _Column(dtype, shape, self._parts[name]) for name, (dtype, shape) in PER_IMAGE.items()}
        for group, packed in PACKED.items():
            column, dtype = next(iter(packed.items()))
            counts = [len(part) // stored_type(dtype).itemsize for part in self._parts[f"{group}/{column}"]]
            columns[f"{group}/offsets"] = _Column("uint64", (), [to_little_endian([0, *accumulate(counts)], "uint64")])
            columns |= {f"{group}/{name}": _Column(dtype, (), self._parts[f"{group}/{name}"]) for name, dtype in packed.items()}
        if INSTANCES in self._parts:
            columns[INSTANCES] = _Column(INSTANCES_TYPE, (), self._parts[INSTANCES])
        return columns

    def _write(
        self, content: memoryview, columns: list[tuple[int, Sequence[bytes]]], place: int, pictures: Sequence[bytes]
    ) -> dict[str, Any]:
        """Write to disk what HDF5 wrote to memory, with the values of the columns at the places that it reserved for them.

        The pictures are at byte ``place``, after all other columns; the checksum leaves them out.
        """
        before: list[bytes | memoryview] = []
        at, size = 0, sum(map(len, pictures))
        for start, parts in sorted(columns, key=itemgetter(0)):
            before += [content[at:start], b"".join(parts)]
            at = start + len(before[-1])
        place = place if size else len(content)
        before += [content[at:place], bytes(max(0, place - len(content)))]
        after = content[place + size :]
        with write_aside(self._path, self._permit) as aside, aside.open("wb") as file:
            file.writelines((*before, *pictures, after))
        checksum = hashlib.sha256()
        for piece in (*before, after):
            checksum.update(piece)
        return {
            "images": len(self._parts["id"]),
            "bytes": sum(map(len, before)) + size + len(after),
            "checksum": checksum.hexdigest(),
        }


def _reserve(file: h5py.File, name: str, column: _Column) -> int:
    """Create a column whose values HDF5 does not write; returns their position in the file, in bytes, 0 if there are none."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)  # equal shards have equal bytes
    dtype = stored_type(column.dtype)
    rows = sum(map(len, column.parts)) // (dtype.itemsize * math.prod(column.shape))
    space = h5py.h5s.create_simple((rows, *column.shape))
    return h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, settings).get_offset() or 0
