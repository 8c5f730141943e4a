"""Writes one HDF5 shard: encoded pictures, masks as run lengths, and tables of the classes in each mask."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

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
        self._per_image: dict[str, list[bytes]] = {name: [] for name in PER_IMAGE}
        self._packed: dict[str, dict[str, list[bytes]]] = {group: {name: [] for name in PACKED[group]} for group in PACKED}
        self._offsets = {group: [0] for group in PACKED}
        self._instances: list[bytes] | None = [] if instances else None
        self._images = 0

    def add(self, sample: Sample) -> None:
        """Append one image; images are stored in the order in which they are added.

        Of its instances, those of classes in the mask are stored, 0 for a class that they do not name.
        """
        classes, lengths = sample.runs[:2]
        present, pixels = runlength.pixel_counts(classes, lengths)
        packed: dict[str, tuple[Any, ...]] = {
            "path": (sample.path.encode(),),
            "image": (sample.content,),
            "mask": (classes, lengths),
            "present": (present, pixels),
            "neg": (sample.neg,),
            "not_exhaustive": (sample.not_exhaustive,),
        }
        row = {
            "id": to_little_endian([sample.image_id], PER_IMAGE["id"][0]),
            "size": to_little_endian(sample.size, PER_IMAGE["size"][0]),
        }
        parts = {group: list(map(to_little_endian, packed[group], PACKED[group].values())) for group in PACKED}
        row["digest"] = digest.leaf([*row.values(), *chain.from_iterable(parts.values())])
        for name, values in row.items():
            self._per_image[name].append(values)
        for group, columns in parts.items():
            self._offsets[group].append(self._offsets[group][-1] + len(packed[group][0]))
            for column, values in zip(self._packed[group].values(), columns, strict=True):
                column.append(values)
        if self._instances is not None:
            assert sample.instances is not None, "a shard records the instances of all its images or of none"
            counts = [sample.instances.get(c, 0) for c in present.tolist()]
            self._instances.append(to_little_endian(counts, INSTANCES_TYPE))
        self._images += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> dict[str, Any]:
        """Write the shard whole or not at all, and return its ``images``, ``bytes`` and ``checksum``.

        Raises DataError if the file cannot be written. HDF5 writes to memory, because it can crash on a full disk, and only
        reserves the place of the pictures. They are most of the file, and are never copied.
        """
        memory, pictures = BytesIO(), self._packed["image"].pop("bytes")
        with h5py.File(memory, "w", libver="v110") as file:
            texts = {"format": FORMAT} | self._attributes
            file.attrs.update({"version": VERSION} | {name: np.bytes_(text.encode()) for name, text in texts.items()})
            for name, (dtype, shape) in PER_IMAGE.items():
                file.create_dataset(name, data=_as_array(self._per_image.pop(name), dtype).reshape(self._images, *shape))
            for name, columns in PACKED.items():
                group = file.create_group(name)
                group.create_dataset("offsets", data=np.array(self._offsets[name], np.uint64))
                for column, content in self._packed.pop(name).items():
                    group.create_dataset(column, data=_as_array(content, columns[column]))
            if self._instances is not None:
                file.create_dataset(INSTANCES, data=_as_array(self._instances, INSTANCES_TYPE))
            file.flush()  # places everything else before the pictures
            place = _reserve(file["image"], "bytes", self._offsets["image"][-1])
        return self._write(memory.getbuffer(), place, pictures)

    def _write(self, content: memoryview, place: int, pictures: Sequence[bytes]) -> dict[str, Any]:
        """Write to disk what HDF5 wrote to memory, with the pictures from byte ``place`` on; the checksum leaves them out."""
        size = self._offsets["image"][-1]
        before, after = bytes(content[:place]).ljust(place, b"\0"), content[place + size :]
        with write_aside(self._path, self._permit) as aside, aside.open("wb") as file:
            file.writelines((before, *pictures, after))
        checksum = hashlib.sha256(before)
        checksum.update(after)
        return {"images": self._images, "bytes": len(before) + size + len(after), "checksum": checksum.hexdigest()}


def _as_array(parts: Iterable[bytes], dtype: str) -> np.ndarray:
    return np.frombuffer(b"".join(parts), stored_type(dtype))


def _reserve(group: h5py.Group, column: str, size: int) -> int:
    """Create a column of ``size`` uint8 whose values HDF5 does not write; returns their position in the file, in bytes."""
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    settings.set_obj_track_times(False)  # equal shards have equal bytes
    space = h5py.h5s.create_simple((size,))
    return h5py.h5d.create(group.id, column.encode(), h5py.h5t.STD_U8LE, space, settings).get_offset() or 0
