"""One HDF5 shard: images as they came, masks as run lengths, and what samplers and statistics need without decoding."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from cocolvis import runlength
from cocolvis.errors import DataError
from cocolvis.files import sha256, write_aside
from cocolvis.images import decode_rgb

FORMAT = "cocolvis-shard"
VERSION = 1

_FIXED = {"id": ("int64", ()), "size": ("uint32", (2,))}
"""One row an image."""

_RAGGED = {
    "path": {"bytes": "uint8"},
    "image": {"bytes": "uint8"},
    "mask": {"class": "uint16", "length": "uint32"},
    "present": {"class": "uint16", "pixels": "uint32"},
    "neg": {"class": "uint16"},
    "not_exhaustive": {"class": "uint16"},
}
"""Any number of values an image, packed one image after another; offsets[i]:offsets[i + 1] are image i's."""

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
        self._fixed: dict[str, list] = {name: [] for name in _FIXED}
        self._ragged: dict[str, dict[str, list]] = {group: {c: [] for c in columns} for group, columns in _RAGGED.items()}

    def add(self, sample: Sample) -> None:
        """Append one image; order is kept."""
        classes, lengths = runlength.encode(sample.mask)
        present, pixels = runlength.pixel_counts(classes, lengths)
        self._fixed["id"].append(sample.image_id)
        self._fixed["size"].append(sample.mask.shape)
        for group, values in {
            "path": {"bytes": np.frombuffer(sample.path.encode(), np.uint8)},
            "image": {"bytes": np.frombuffer(sample.content, np.uint8)},
            "mask": {"class": classes, "length": lengths},
            "present": {"class": present, "pixels": pixels},
            "neg": {"class": sample.neg},
            "not_exhaustive": {"class": sample.not_exhaustive},
        }.items():
            for column, value in values.items():
                self._ragged[group][column].append(value)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.finish()

    def finish(self) -> dict:
        """Write the shard aside, sync and rename it; {"images", "bytes", "sha256"} of the file."""
        with write_aside(self._path) as aside:
            with h5py.File(aside, "w", libver="v110") as file:
                file.attrs.update({"format": FORMAT, "version": VERSION} | self._attributes)
                for name, (dtype, shape) in _FIXED.items():
                    file.create_dataset(name, data=np.array(self._fixed[name], dtype).reshape(-1, *shape))
                for group, columns in self._ragged.items():
                    self._write_group(file.create_group(group), columns, _RAGGED[group])
            return {"images": len(self._fixed["id"]), "bytes": aside.stat().st_size, "sha256": sha256(aside)}

    @staticmethod
    def _write_group(group: h5py.Group, columns: Mapping[str, list], dtypes: Mapping[str, str]) -> None:
        lengths = [len(values) for values in next(iter(columns.values()))]
        group.create_dataset("offsets", data=np.cumsum([0, *lengths], dtype=np.uint64))
        for column, values in columns.items():
            packed = np.concatenate([np.zeros(0, dtypes[column]), *values], dtype=dtypes[column])
            compress = group.name == "/mask" and packed.size
            options = {"chunks": (min(_CHUNK, packed.size),), "compression": "gzip", "compression_opts": 1, "shuffle": True}
            group.create_dataset(column, data=packed, **(options if compress else {}))


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
        return self._file["id"][()]

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32 of height, width."""
        return self._file["size"][()]

    def present(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offsets (N + 1,) uint64, classes uint16, pixels uint32): the classes of each image but 0, and their pixels."""
        group = self._file["present"]
        return self._offsets["present"], group["class"][()], group["pixels"][()]

    def mask(self, row: int) -> np.ndarray:
        """(H, W) uint16 mask of image number ``row``; a DataError when its runs do not fill the image."""
        height, width = (int(side) for side in self._file["size"][row])
        try:
            return runlength.decode(self._slice("mask", "class", row), self._slice("mask", "length", row), height, width)
        except (ValueError, OSError) as error:
            image_id = int(self._file["id"][row])
            raise DataError(f"{self.path}: mask of image {image_id}: {str(error).splitlines()[0]}") from None

    def sample(self, row: int) -> Sample:
        """Image number ``row`` of the shard, mask decoded; a DataError when its runs do not fill the image."""
        return Sample(
            image_id=int(self._file["id"][row]),
            path=self._slice("path", "bytes", row).tobytes().decode("utf-8", "replace"),
            mask=self.mask(row),
            content=self._slice("image", "bytes", row).tobytes(),
            neg=self._slice("neg", "class", row),
            not_exhaustive=self._slice("not_exhaustive", "class", row),
        )

    def _slice(self, group: str, column: str, row: int) -> np.ndarray:
        offsets = self._offsets[group]
        return self._file[group][column][int(offsets[row]) : int(offsets[row + 1])]

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
