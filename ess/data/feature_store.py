"""Features of whole pictures on disk: HDF5 files in a folder, searched by the SHA-256 of a picture's encoded bytes.

A file is named by the SHA-256 of its own bytes, so a damaged one is recognised before HDF5 opens it.
"""

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from math import prod
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from cocolvis.disk.files import is_absent, reason, sha256, write_aside
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.samples import Sample

VERSION = 1
"""The version of the files; it is part of the name of the folder that holds them."""

_FILE_BYTES = 2**26
"""Features are written when they reach this size: what a killed process has to compute again."""

_ABANDONED = 3600.0
"""Seconds after which a temporary file belongs to no process any more: it is written at once and then renamed."""

_NAME = re.compile(r"[0-9a-f]{64}\.h5")

log = logging.getLogger("ess")


class Maps(NamedTuple):
    """The feature maps of an encoder: map i has ``channels[i]`` channels at a stride of ``strides[i]`` pixels."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def shapes(self, height: int, width: int) -> list[tuple[int, int, int]]:
        """The shape (C, h, w) of each map for a picture of this padded size, a multiple of all strides."""
        return [(c, height // s, width // s) for c, s in zip(self.channels, self.strides, strict=True)]

    def bytes(self, height: int, width: int) -> int:
        """The size of the maps in float16."""
        return 2 * sum(map(prod, self.shapes(height, width)))


class _Place(NamedTuple):
    """Where the features of a picture of padded size ``height`` x ``width`` begin: ``start`` counts bytes of the file."""

    path: Path
    start: int
    height: int
    width: int


class FeatureStore:
    """The features of pictures in ``folder``, each a list of ``maps`` (C, h, w) float16, by the SHA-256 of a picture's bytes.

    Several processes may fill a folder at the same time, because files appear whole and never change.
    """

    def __init__(self, folder: Path, maps: Maps):
        self.folder = folder
        self.maps = maps
        self._places: dict[bytes, _Place] = {}
        self._waiting: dict[bytes, list[np.ndarray]] = {}
        self._waiting_bytes = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self._waiting

    def find(self) -> None:
        """Find the features in the folder. Damaged files are removed with a warning, so that they are computed again.

        Temporary files that killed processes left long ago are removed too.
        """
        for left in self.folder.glob(".*.h5.*.tmp"):
            with suppress(OSError):
                if time.time() - left.stat().st_mtime > _ABANDONED:
                    left.unlink()
        known = {place.path for place in self._places.values()}
        for path in sorted(self.folder.glob("*.h5")):
            if path in known or not _NAME.fullmatch(path.name):
                continue
            try:
                intact = sha256(path) == path.stem
            except DataError:
                if is_absent(path):  # it was damaged, and another process has removed it meanwhile
                    continue
                raise
            if intact:
                self._places |= self._located(path)
            else:
                log.warning("%s: is damaged; its features are computed again", path)
                with suppress(OSError):  # the folder may belong to another user
                    path.unlink()

    def add(self, key: bytes, features: list[np.ndarray]) -> None:
        """Add the features of a picture; they are on disk after :meth:`flush`, which is called every 64 MiB."""
        self._waiting[key] = features
        self._waiting_bytes += sum(each.nbytes for each in features)
        if self._waiting_bytes >= _FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the features that were added since the last call as one file, whole or not at all.

        Raises DataError if the disk refuses. HDF5 writes to memory first, because it can crash on a full disk.
        """
        if not self._waiting:
            return
        memory = BytesIO()
        with h5py.File(memory, "w", libver="v110") as file:
            file["digests"] = np.frombuffer(b"".join(self._waiting), np.uint8).reshape(-1, 32)
            stride = self.maps.strides[0]
            file["sizes"] = np.array([np.array(maps[0].shape[1:]) * stride for maps in self._waiting.values()], "<u4")
            flat = [each.ravel() for maps in self._waiting.values() for each in maps]
            file.create_dataset("values", data=np.concatenate(flat).astype("<f2", copy=False))
        content = memory.getbuffer()
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.h5"
        with write_aside(path) as aside:
            aside.write_bytes(content)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._places |= self._located(path)

    def read(self, key: bytes) -> list[np.ndarray]:
        """The maps (C, h, w) float16 of a picture; raises DataError if the file can no longer be read."""
        path, start, height, width = self._places[key]
        shapes = self.maps.shapes(height, width)
        try:
            with path.open("rb") as file:
                file.seek(start)
                flat = np.fromfile(file, "<f2", sum(map(prod, shapes)))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {reason(error)}") from None
        if len(flat) < sum(map(prod, shapes)):
            raise DataError(f"{path}: has become shorter; run again to compute its features again")
        parts = np.split(flat, np.cumsum([*map(prod, shapes)])[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _located(self, path: Path) -> dict[bytes, _Place]:
        """The features in an undamaged file; raises DataError if it is not a file of such features."""
        try:
            with h5py.File(path, "r", locking=False) as file:
                digests, sizes, values = (file[name] for name in ("digests", "sizes", "values"))
                start, count, dtype = values.id.get_offset(), len(values), values.dtype
                keys, rows = [row.tobytes() for row in digests[:]], sizes[:].tolist()
        except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path}: does not hold features ({type(error).__name__}); remove it") from None
        lengths = [self.maps.bytes(height, width) for height, width in rows]
        if start is None or dtype != np.dtype("<f2") or len(keys) != len(rows) or 2 * count != sum(lengths):
            raise DataError(f"{path}: holds features of other shapes; remove it")
        starts = (start + np.cumsum([0, *lengths[:-1]])).tolist()
        return {key: _Place(path, first, *size) for key, first, size in zip(keys, starts, rows, strict=True)}


class SplitFeatures:
    """The stored features of a split; ``keys`` has the SHA-256 of each picture, by its index, None where it is missing."""

    def __init__(self, store: FeatureStore, keys: Sequence[bytes | None]):
        self.store = store
        self._keys = keys

    def of(self, sample: Sample, index: int) -> list[np.ndarray]:
        """The maps (C, h, w) float16 of a sample and its index; raises DamagedImage if its picture was damaged."""
        key = self._keys[index]
        if key is None or key not in self.store:
            sample.image()
            raise DamagedImage(sample.fault_line("no features of it are stored"))
        return self.store.read(key)
