"""One HDF5 shard: images as they came, masks as run lengths, and what samplers and statistics need without decoding."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from cocolvis import digest, runlength
from cocolvis.errors import DataError
from cocolvis.files import sha256, write_aside
from cocolvis.images import decode_rgb

FORMAT = "cocolvis-shard"
VERSION = 2

_FIXED = {"id": ("int64", ()), "size": ("uint32", (2,)), "digest": ("uint8", (digest.LENGTH,))}
"""One row an image. ``digest`` is the image's leaf in the Merkle tree over a data set: all other columns, in this order."""

_RAGGED = {
    "path": {"bytes": "uint8"},
    "image": {"bytes": "uint8"},
    "mask": {"class": "uint16", "length": "uint32"},
    "present": {"class": "uint16", "pixels": "uint32"},
    "neg": {"class": "uint16"},
    "not_exhaustive": {"class": "uint16"},
}
"""Any number of values an image, packed one image after another; offsets[i]:offsets[i + 1] are image i's."""

_SMALL = (("path", "bytes"), ("neg", "class"), ("not_exhaustive", "class"))

_CHUNK = 4096
"""Runs in a compressed chunk of the masks: the fastest to read of those that benchmarks/layout.py measures."""


_EXPANSION = 1100
"""Deflate never shrinks by more than 1032; who declares more has no such values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image of a data set.

    ``mask`` (H, W) uint16, 0 = unlabelled; ``content`` the encoded picture as it came, empty where the data set embeds none;
    ``neg`` and ``not_exhaustive`` the class ids that LVIS verified absent, or did not annotate exhaustively, (n,) uint16.
    """

    image_id: int
    path: str
    mask: np.ndarray
    content: bytes
    neg: np.ndarray
    not_exhaustive: np.ndarray

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB; a DataError when it is absent, broken, or of another size than the mask."""
        try:
            pixels = decode_rgb(self.content)
        except ValueError as error:
            reason = error if self.content else "no picture is stored"
            raise DataError(f"image {self.image_id} ({self.path}): {reason}") from None
        if pixels.shape[:2] != self.mask.shape:
            raise DataError(f"image {self.image_id} ({self.path}): is {pixels.shape[:2]}, its mask is {self.mask.shape}")
        return pixels


class ShardWriter:
    """Collects samples and writes them as one shard; as a context manager, nothing is written after an exception."""

    def __init__(self, path: Path, attributes: Mapping[str, str]):
        self._path = path
        self._attributes = dict(attributes)
        self._fixed = {name: bytearray() for name in _FIXED}
        self._ragged = {group: {column: bytearray() for column in columns} for group, columns in _RAGGED.items()}
        self._offsets = {group: [0] for group in _RAGGED}
        self._images = 0

    def add(self, sample: Sample) -> None:
        """Append one image; order is kept."""
        classes, lengths = runlength.encode(sample.mask)
        present, pixels = runlength.pixel_counts(classes, lengths)
        fixed = {"id": [sample.image_id], "size": sample.mask.shape}
        ragged = {
            "path": (sample.path.encode(),),
            "image": (sample.content,),
            "mask": (classes, lengths),
            "present": (present, pixels),
            "neg": (sample.neg,),
            "not_exhaustive": (sample.not_exhaustive,),
        }
        row = {name: _little_endian(value, _FIXED[name][0]) for name, value in fixed.items()}
        parts = {group: list(map(_little_endian, ragged[group], _RAGGED[group].values())) for group in _RAGGED}
        row["digest"] = digest.leaf([*row.values(), *chain.from_iterable(parts.values())])
        for name, values in row.items():
            self._fixed[name] += values
        for group, columns in parts.items():
            self._offsets[group].append(self._offsets[group][-1] + len(ragged[group][0]))
            for column, values in zip(self._ragged[group].values(), columns, strict=True):
                column += values
        self._images += 1

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> dict:
        """Write the shard aside, sync and rename it; {"images", "bytes", "sha256"} of it. A DataError where that fails."""
        with write_aside(self._path) as aside:
            with h5py.File(aside, "w", libver="v110") as file:
                file.attrs.update({"format": FORMAT, "version": VERSION} | self._attributes)
                for name, (dtype, shape) in _FIXED.items():
                    file.create_dataset(name, data=_values(self._fixed[name], dtype).reshape(self._images, *shape))
                for name, columns in self._ragged.items():
                    group = file.create_group(name)
                    group.create_dataset("offsets", data=np.array(self._offsets[name], np.uint64))
                    for column, content in columns.items():
                        values = _values(content, _RAGGED[name][column])
                        group.create_dataset(column, data=values, **(_compression(values) if name == "mask" else {}))
            return {"images": self._images, "bytes": aside.stat().st_size, "sha256": sha256(aside)}


def _little_endian(values: Any, dtype: str) -> bytes:
    return values if isinstance(values, bytes) else np.asarray(values, np.dtype(dtype).newbyteorder("<")).tobytes()


def _values(content: bytearray, dtype: str) -> np.ndarray:
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"))


def _compression(values: np.ndarray) -> dict[str, Any]:
    if not values.size:
        return {}
    return {"chunks": (min(_CHUNK, values.size),), "compression": "gzip", "compression_opts": 1, "shuffle": True}


class ShardReader:
    """Random access to one shard. Reads only what is asked for: masks and pictures are not touched before :meth:`sample`."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = h5py.File(path, "r", locking=False)
            self._check()
        except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
            reason = "does not exist" if not path.exists() else f"is no readable shard: {str(error).splitlines()[0]}"
            raise DataError(f"{path}: {reason}; `cocolvis verify` checks the whole data set") from None
        self._offsets = {group: self._file[group]["offsets"][()] for group in _RAGGED}

    def _check(self) -> None:
        found = self._file.attrs.get("format"), self._file.attrs.get("version")
        if found != (FORMAT, VERSION):
            raise ValueError(f"format and version are {found}, expected {(FORMAT, VERSION)}")
        self.attributes = {k: v for k, v in self._file.attrs.items() if isinstance(v, str)}
        images = _stored(self._file, "id").shape[0]
        for name, (dtype, shape) in _FIXED.items():
            data = _stored(self._file, name)
            if data.shape != (images, *shape) or data.dtype != dtype:
                raise ValueError(f"/{name} is {data.dtype} {data.shape}, expected {dtype} {(images, *shape)}")
        for group, columns in _RAGGED.items():
            offsets = _stored(self._file, f"{group}/offsets")
            if offsets.shape != (images + 1,) or offsets.dtype != "uint64":
                raise ValueError(f"/{group}/offsets is {offsets.dtype} {offsets.shape}, expected uint64 {(images + 1,)}")
            values = offsets[()]
            for column, dtype in columns.items():
                data = _stored(self._file, f"{group}/{column}")
                if data.shape != (values[-1],) or data.dtype != dtype:
                    raise ValueError(f"/{group}/{column} is {data.dtype} {data.shape}, expected {dtype} {(int(values[-1]),)}")
            if values[0] != 0 or np.any(values[1:] < values[:-1]):
                raise ValueError(f"/{group}/offsets does not ascend from 0")

    def __len__(self) -> int:
        return len(self._offsets["mask"]) - 1

    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._small["id"]

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32 of height, width."""
        return self._small["size"]

    def digests(self) -> np.ndarray:
        """(N, 32) uint8: the recorded digest of each image."""
        return self._file["digest"][()]

    def digest(self, row: int) -> bytes:
        """The digest of image number ``row``, from what the shard holds of it."""
        fixed = [_little_endian(self._file[name][row], dtype) for name, (dtype, _) in _FIXED.items() if name != "digest"]
        columns = ((group, column) for group, columns in _RAGGED.items() for column in columns)
        return digest.leaf([*fixed, *(_little_endian(self._slice(*at, row), _RAGGED[at[0]][at[1]]) for at in columns)])

    def present(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offsets (N + 1,) uint64, classes uint16, pixels uint32): the classes of each image but 0, and their pixels."""
        group = self._file["present"]
        return self._offsets["present"], group["class"][()], group["pixels"][()]

    def mask(self, row: int) -> np.ndarray:
        """(H, W) uint16 mask of image number ``row``; a DataError when its runs do not fill the image."""
        height, width = self._small["size"][row].tolist()
        try:
            return runlength.decode(self._slice("mask", "class", row), self._slice("mask", "length", row), height, width)
        except (ValueError, OSError) as error:
            image_id = int(self._small["id"][row])
            raise DataError(f"{self.path}: mask of image {image_id}: {str(error).splitlines()[0]}") from None

    def sample(self, row: int) -> Sample:
        """Image number ``row`` of the shard, mask decoded; a DataError when its runs do not fill the image."""
        return Sample(
            image_id=int(self._small["id"][row]),
            path=self._slice("path", "bytes", row).tobytes().decode("utf-8", "replace"),
            mask=self.mask(row),
            content=self._slice("image", "bytes", row).tobytes(),
            neg=self._slice("neg", "class", row),
            not_exhaustive=self._slice("not_exhaustive", "class", row),
        )

    @cached_property
    def _small(self) -> dict[str, np.ndarray]:
        """The columns that are read whole, once: they are small, and HDF5 takes longer to find a row than to read them all."""
        small = {name: self._file[name][()] for name in ("id", "size")}
        return small | {f"{group}/{column}": self._file[group][column][()] for group, column in _SMALL}

    def _slice(self, group: str, column: str, row: int) -> np.ndarray:
        offsets = self._offsets[group]
        values = self._small.get(f"{group}/{column}")
        return (self._file[group][column] if values is None else values)[int(offsets[row]) : int(offsets[row + 1])]

    def close(self) -> None:
        """Release the file."""
        self._file.close()


def _stored(file: h5py.File, name: str) -> h5py.Dataset:
    """A data set of the file; a ValueError when its values lie elsewhere, or it declares far more than it stores."""
    group, _, _ = name.rpartition("/")
    links = [file.get(part, getlink=True) for part in (group, name) if part]
    data = file[name] if all(isinstance(link, h5py.HardLink) for link in links) else None
    if data is None or data.is_virtual or data.external:
        raise ValueError(f"/{name} points at another file or place")
    if data.nbytes > _EXPANSION * data.id.get_storage_size():
        raise ValueError(f"/{name} declares {data.nbytes} bytes and stores {data.id.get_storage_size()}")
    return data
