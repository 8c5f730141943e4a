"""Reads one HDF5 shard: HDF5 locates the columns once, after which every read is a single system call."""

import math
import os
import weakref
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from h5py.h5f import FileID

from cocolvis.disk.files import sha256
from cocolvis.errors import DamagedImage, DataError
from cocolvis.masks.runlength import Runs
from cocolvis.progress import ignore
from cocolvis.storage import digest
from cocolvis.storage.columns import FORMAT, INSTANCES, INSTANCES_TYPE, PACKED, PER_IMAGE, VERSION, to_little_endian
from cocolvis.storage.samples import Sample, fault_line
from cocolvis.storage.shard_checks import (
    HDF5_ERRORS,
    Column,
    check_column_size,
    check_images,
    check_instances,
    check_is_hdf5,
    check_offsets,
    find_column,
    has_column,
    read_attributes,
)
from cocolvis.text import one_line

MAX_CLASS = 2**16 - 1
"""The largest class that a mask can hold."""

_IN_MEMORY = ("size", "path/bytes", "neg/class", "not_exhaustive/class")
"""Columns that are read when a shard is opened and kept in memory, as /id is."""

_TRUNCATED = "the file has become shorter"

_ADVICE = "`cocolvis verify` checks the whole data set"


def is_shard(path: Path) -> bool:
    """Whether a file claims to be a shard, of any version; nothing else about it is checked."""
    try:
        check_is_hdf5(path)
        with h5py.File(path, "r", locking=False) as file:
            return read_attributes(file.id, {"format": FORMAT}, ()) == {}
    except (DataError, *HDF5_ERRORS):
        return False


class _OpenFile:
    """An open file that is closed when the last reference to it disappears; every read holds a reference."""

    def __init__(self, path: Path):
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        status = os.fstat(self.descriptor)
        self.identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ShardReader:
    """Random access to one shard from any origin; opening it checks everything that reading relies on.

    HDF5 only locates the columns. Reading them takes one system call each, which any number of threads and forked processes can
    make at the same time. Masks and pictures are read on request only. ``classes`` is the largest class that a mask may hold.
    """

    def __init__(self, path: Path, classes: int = MAX_CLASS):
        self.path = path
        self._classes = classes
        try:
            check_is_hdf5(path)
            self._file: _OpenFile | None = _OpenFile(path)
            self._identity = self._file.identity
            with h5py.File(path, "r", locking=False) as file:
                self._read_tables(file.id)
        except DataError as error:
            raise DataError(f"{error}; {_ADVICE}") from None
        except HDF5_ERRORS as error:
            if number := getattr(error, "errno", None):  # raised by the system, not by HDF5
                raise DataError(f"{path}: cannot be read: {os.strerror(number)}") from None
            raise DataError(f"{path}: is not a readable shard: {one_line(error)}; {_ADVICE}") from None

    def _read_tables(self, file: FileID) -> None:
        self.attributes = read_attributes(file, {"format": FORMAT, "version": VERSION}, ("split", "images", "vocabulary"))
        self._in_memory = {"id": self._read_column(find_column(file, "id", "int64", (None,)))}
        images = len(self._in_memory["id"])
        self._columns = {name: find_column(file, name, dtype, (images, *shape)) for name, (dtype, shape) in PER_IMAGE.items()}
        self._offsets = {group: self._read_offsets(file, group, images) for group in PACKED}
        for group, columns in PACKED.items():
            for column, dtype in columns.items():
                name = f"{group}/{column}"
                self._columns[name] = find_column(file, name, dtype, (int(self._offsets[group][-1]),))
        if has_column(file, INSTANCES):
            self._columns[INSTANCES] = find_column(file, INSTANCES, INSTANCES_TYPE, (int(self._offsets["present"][-1]),))
        self._in_memory |= {name: self._read_column(self._columns[name]) for name in _IN_MEMORY}
        runs, pictures = (np.diff(self._offsets[group]) for group in ("mask", "image"))
        check_images(self._in_memory["id"], self._in_memory["size"], runs, pictures)

    def _read_offsets(self, file: FileID, group: str, images: int) -> np.ndarray:
        column = find_column(file, f"{group}/offsets", "uint64", (images + 1,))
        values = self._read_column(column)
        check_offsets(column, values)
        return values

    def __len__(self) -> int:
        return len(self._offsets["mask"]) - 1

    def close(self) -> None:
        """Close the file as soon as no thread reads from it; the next read opens it again without repeating the checks."""
        self._file = None

    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._in_memory["id"]

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32: height and width of each image."""
        return self._in_memory["size"]

    def digests(self) -> np.ndarray:
        """(N, 32) uint8: the recorded digest of each image."""
        return self._read_all("digest")

    def digest(self, row: int) -> bytes:
        """Compute the digest of image number ``row`` from its stored values; raises DataError if they cannot be read."""
        fields = [to_little_endian(self._in_memory[name][row], PER_IMAGE[name][0]) for name in ("id", "size")]
        try:
            for group, columns in PACKED.items():
                fields += [to_little_endian(self._read_row(group, name, row), dtype) for name, dtype in columns.items()]
            return digest.leaf(fields)
        except (ValueError, OSError) as error:
            raise self._fault("image", row, error) from None

    def checksum(self, read: Callable[[int], None] = ignore) -> str:
        """Compute the checksum of the file, in hexadecimal: the SHA-256 of everything but the pictures in /image/bytes.

        Together with the images' digests, which are in the file, it covers every byte, and no picture is hashed twice. ``read``
        is called with the number of bytes in each block that was hashed. Raises DataError if the file cannot be read.
        """
        pictures = self._columns["image/bytes"]
        return sha256(self.path, read, skip=range(pictures.start, pictures.start + pictures.shape[0]))

    def present(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The classes of every image and their pixels, without class 0.

        Returns (offsets (N + 1,) uint64, classes (n,) uint16, pixels (n,) uint32).
        """
        classes = self._read_all("present/class")
        if classes.size and not 1 <= classes.min() <= classes.max() <= self._classes:
            found = f"{classes.min()}..{classes.max()}"
            raise DataError(f"{self.path}: holds classes {found}, the vocabulary has 1..{self._classes}")
        return self._offsets["present"], classes, self._read_all("present/pixels")

    @property
    def has_instances(self) -> bool:
        """Whether the shard records instances."""
        return INSTANCES in self._columns

    def instances(self) -> np.ndarray | None:
        """(n,) uint32: the instances of each class of every image, in the order of :meth:`present`; None if not recorded."""
        if not self.has_instances:
            return None
        values = self._read_all(INSTANCES)
        try:
            check_instances(values)
        except ValueError as error:
            raise DataError(f"{self.path}: {error}") from None
        return values

    def instances_of(self, row: int) -> dict[int, int] | None:
        """The instances of each class in the mask of image number ``row``, ascending by class; None if not recorded.

        Raises DamagedImage if a number is out of range, DataError if the disk fails.
        """
        if not self.has_instances:
            return None
        try:
            start, stop = self._bounds("present", row)
            if stop - start > self._classes:
                raise ValueError(f"/present lists {stop - start} classes, the vocabulary has {self._classes}")
            values = self._read_row("present", "instances", row)
            check_instances(values)
            return dict(zip(self._read_row("present", "class", row).tolist(), values.tolist(), strict=True))
        except (ValueError, OSError) as error:
            raise self._fault("instances of image", row, error) from None

    def federated_classes(self) -> np.ndarray:
        """(n,) uint16: all classes in /neg and /not_exhaustive, LVIS's federated lists; classes may repeat."""
        return np.concatenate([self._in_memory["neg/class"], self._in_memory["not_exhaustive/class"]])

    def runs(self, row: int) -> Runs:
        """The mask of image number ``row``.

        Raises DamagedImage if the runs do not fill the mask or hold classes that are out of range, DataError if the disk fails.
        """
        height, width = self._in_memory["size"][row].tolist()
        try:
            runs = Runs(self._read_row("mask", "class", row), self._read_row("mask", "length", row), height, width)
            runs.check(self._classes)
        except (ValueError, OSError) as error:
            raise self._fault("mask of image", row, error) from None
        return runs

    def sample(self, row: int) -> Sample:
        """Image number ``row`` of the shard; raises as :meth:`runs` and :meth:`instances_of` do."""
        runs = self.runs(row)
        try:
            content = self._read_picture(row)
        except (ValueError, OSError) as error:
            raise self._fault("picture of image", row, error) from None
        return Sample(
            image_id=int(self._in_memory["id"][row]),
            path=self.image_path(row),
            runs=runs,
            content=content,
            neg=self._read_row("neg", "class", row),
            not_exhaustive=self._read_row("not_exhaustive", "class", row),
            instances=self.instances_of(row),
            shard=self.path,
        )

    def image_path(self, row: int) -> str:
        """The path of image number ``row``, relative to the picture folder."""
        return self._read_row("path", "bytes", row).tobytes().decode("utf-8", "replace")

    def _read_all(self, name: str) -> np.ndarray:
        try:
            return self._read_column(self._columns[name])
        except (ValueError, OSError) as error:
            raise DataError(f"{self.path}: {one_line(error)}") from None

    def _read_column(self, column: Column) -> np.ndarray:
        """Read all values; raises ValueError if they are too many, OSError if they cannot be read."""
        check_column_size(column)
        return self._read(column, 0, column.shape[0])

    def _read_row(self, group: str, column: str, row: int) -> np.ndarray:
        start, stop = self._bounds(group, row)
        values = self._in_memory.get(f"{group}/{column}")
        return self._read(self._columns[f"{group}/{column}"], start, stop) if values is None else values[start:stop]

    def _read_picture(self, row: int) -> bytes:
        start, stop = self._bounds("image", row)
        file = self._opened()
        content = os.pread(file.descriptor, stop - start, self._columns["image/bytes"].start + start)
        if len(content) < stop - start:
            raise OSError(_TRUNCATED)
        return content

    def _bounds(self, group: str, row: int) -> tuple[int, int]:
        offsets = self._offsets[group]
        return int(offsets[row]), int(offsets[row + 1])

    def _read(self, column: Column, start: int, stop: int) -> np.ndarray:
        """Read entries start:stop along the first axis."""
        values = np.empty((stop - start, *column.shape[1:]), column.dtype)
        entry = column.dtype.itemsize * math.prod(column.shape[1:])
        file = self._opened()
        if values.size and os.preadv(file.descriptor, [values.data], column.start + start * entry) < values.nbytes:
            raise OSError(_TRUNCATED)
        return values

    def _opened(self) -> _OpenFile:
        file = self._file
        if file is None:
            file = _OpenFile(self.path)
            if file.identity != self._identity:
                raise OSError("the file was replaced by another while it was in use")
            self._file = file
        return file

    def _fault(self, what: str, row: int, error: Exception) -> DataError:
        """The exception to raise: DamagedImage if the values that were read are wrong, DataError if they could not be read."""
        kind = DamagedImage if isinstance(error, ValueError) else DataError
        return kind(fault_line(self.path, f"{what} {int(self._in_memory['id'][row])}", self.image_path(row), error))
