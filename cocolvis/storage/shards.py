"""One HDF5 shard: images as they came, masks as run lengths, and what samplers and statistics need without decoding."""

import hashlib
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from cocolvis.disk.files import write_aside
from cocolvis.errors import DamagedImage, DataError
from cocolvis.masks import runlength
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.storage import checks, digest
from cocolvis.text import one_line, replace_unprintable

FORMAT = "cocolvis-shard"
VERSION = 2

_FIXED = {"id": ("int64", ()), "size": ("uint32", (2,)), "digest": ("uint8", (digest.LENGTH,))}
"""One row an image. ``digest`` is the image's leaf in the Merkle tree over a data set: all other columns, in this order."""

_RAGGED = {
    "path": {"bytes": "uint8"},
    "image": {"bytes": "uint8"},
    "mask": {"class": "uint16", "length": "uint16"},
    "present": {"class": "uint16", "pixels": "uint32"},
    "neg": {"class": "uint16"},
    "not_exhaustive": {"class": "uint16"},
}
"""Any number of values an image, packed one image after another; offsets[i]:offsets[i + 1] are image i's."""

_SMALL = ("size", "path/bytes", "neg/class", "not_exhaustive/class")
"""The columns that are read whole when a shard is opened, as /id is."""

MAX_CLASS = 2**16 - 1
"""The largest class that a mask can hold."""

_SHORTER = "the file has become shorter"

_ADVICE = "`cocolvis verify` checks the whole data set"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a data set, as it is stored.

    ``runs`` are its mask's; ``content`` is the encoded picture as it came, empty where the data set embeds none; ``neg`` and
    ``not_exhaustive`` are the class ids that LVIS verified absent, or did not annotate exhaustively, (n,) uint16. ``shard`` is
    the file that it was read from.
    """

    image_id: int
    path: str
    runs: Runs
    content: bytes
    neg: np.ndarray
    not_exhaustive: np.ndarray
    shard: Path | None = field(default=None, compare=False)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels, of mask and picture."""
        return self.runs.height, self.runs.width

    @cached_property
    def mask(self) -> np.ndarray:
        """(H, W) uint16 class ids, 0 = unlabelled; decoded when it is first asked for."""
        return self.runs.mask()

    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB; a DamagedImage when it is absent, broken, or by its header of another size than the mask.

        Where memory does not suffice, that is a DataError of the machine.
        """
        return self._of_picture(encoded.decode_rgb)

    def check_image(self) -> None:
        """A DamagedImage unless the picture is undamaged, as far as can be known (:func:`cocolvis.pictures.encoded.check`)."""
        self._of_picture(encoded.check)

    def _of_picture(self, work: Callable[[bytes, tuple[int, int]], Any]) -> Any:
        try:
            return work(self.content, self.size)
        except encoded.WrongSize as error:
            reason = f"{error}, its mask {self.size[0]} x {self.size[1]}"
        except encoded.NoMemory as error:
            raise DataError(self.told(error)) from None
        except ValueError as error:
            reason = error if self.content else "no picture is stored"
        raise DamagedImage(self.told(reason))

    def told(self, reason: Exception | str) -> str:
        """A fault of this image in one line, which names the shard, the image and its path."""
        return _told(self.shard, f"image {self.image_id}", self.path, reason)


class ShardWriter:
    """Collects samples and writes them as one shard; as a context manager, nothing is written after an exception.

    ``permit`` is that of :func:`cocolvis.disk.files.write_aside`.
    """

    def __init__(self, path: Path, attributes: Mapping[str, str], permit: Callable[[], None] = lambda: None):
        self._path = path
        self._permit = permit
        self._attributes = dict(attributes)
        self._fixed = {name: bytearray() for name in _FIXED}
        self._ragged = {group: {column: bytearray() for column in columns} for group, columns in _RAGGED.items()}
        self._offsets = {group: [0] for group in _RAGGED}
        self._images = 0

    def add(self, sample: Sample) -> None:
        """Append one image; order is kept."""
        classes, lengths = sample.runs[:2]
        present, pixels = runlength.pixel_counts(classes, lengths)
        fixed = {"id": [sample.image_id], "size": sample.size}
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
        """Write the shard aside, sync and rename it; {"images", "bytes", "sha256"} of it. A DataError where that fails.

        HDF5 writes to memory: where a disk is full it can crash.
        """
        memory = BytesIO()
        with h5py.File(memory, "w", libver="v110") as file:
            texts = {"format": FORMAT} | self._attributes
            file.attrs.update({"version": VERSION} | {name: np.bytes_(text.encode()) for name, text in texts.items()})
            for name, (dtype, shape) in _FIXED.items():
                file.create_dataset(name, data=_values(self._fixed.pop(name), dtype).reshape(self._images, *shape))
            for name, columns in _RAGGED.items():
                group = file.create_group(name)
                group.create_dataset("offsets", data=np.array(self._offsets[name], np.uint64))
                for column, dtype in columns.items():
                    group.create_dataset(column, data=_values(self._ragged[name].pop(column), dtype))
        content = memory.getbuffer()
        with write_aside(self._path, self._permit) as aside:
            aside.write_bytes(content)
        return {"images": self._images, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _little_endian(values: Any, dtype: str) -> bytes:
    return values if isinstance(values, bytes) else np.asarray(values, np.dtype(dtype).newbyteorder("<")).tobytes()


def _values(content: bytearray, dtype: str) -> np.ndarray:
    return np.frombuffer(content, np.dtype(dtype).newbyteorder("<"))


class _Column(NamedTuple):
    """Where a column's values lie in the file, one after another."""

    at: int
    dtype: np.dtype
    shape: tuple[int, ...]


def is_shard(path: Path) -> bool:
    """Whether a file says of itself that it is a shard, of whatever version; nothing else of it is checked."""
    try:
        checks.hdf5(path)
        with h5py.File(path, "r", locking=False) as file:
            return checks.attributes(file, {"format": FORMAT}, ()) == {}
    except (DataError, *checks.REFUSED):
        return False


class _Handle:
    """An open file, which closes with the last reference to it; whoever reads holds one."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number).atexit = False
        status = os.fstat(self.number)
        self.identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ShardReader:
    """Random access to one shard, whoever made it: opening checks all that reading relies on.

    HDF5 says where the columns lie, and has no part in reading them: that takes one system call, and any number of threads and
    forked processes may do it. Masks and pictures are not touched before they are asked for. ``classes`` is the largest class
    that a mask may hold.
    """

    def __init__(self, path: Path, classes: int = MAX_CLASS):
        self.path = path
        self._classes = classes
        try:
            checks.hdf5(path)
            self._handle: _Handle | None = _Handle(path)
            self._identity = self._handle.identity
            with h5py.File(path, "r", locking=False) as file:
                self._open(file)
        except DataError as error:
            raise DataError(f"{error}; {_ADVICE}") from None
        except checks.REFUSED as error:
            if number := getattr(error, "errno", None):  # of the system, not of HDF5
                raise DataError(f"{path}: cannot be read: {os.strerror(number)}") from None
            raise DataError(f"{path}: is no readable shard: {one_line(error)}; {_ADVICE}") from None

    def _open(self, file: h5py.File) -> None:
        self.attributes = checks.attributes(file, {"format": FORMAT, "version": VERSION}, ("split", "images", "vocabulary"))
        self._small = {"id": checks.whole(checks.stored(file, "id", "int64", (None,)))}
        images = len(self._small["id"])
        stored = {name: checks.stored(file, name, dtype, (images, *shape)) for name, (dtype, shape) in _FIXED.items()}
        self._offsets = {group: checks.offsets(file, group, images) for group in _RAGGED}
        for group, columns in _RAGGED.items():
            for column, dtype in columns.items():
                name = f"{group}/{column}"
                stored[name] = checks.stored(file, name, dtype, (int(self._offsets[group][-1]),))
        self._columns = {name: _Column(checks.place(data), data.dtype, data.shape) for name, data in stored.items()}
        self._small |= {name: checks.whole(stored[name]) for name in _SMALL}
        runs, pictures = (np.diff(self._offsets[group]) for group in ("mask", "image"))
        checks.images(self._small["id"], self._small["size"], runs, pictures)

    def __len__(self) -> int:
        return len(self._offsets["mask"]) - 1

    def close(self) -> None:
        """Close the file, once no thread reads it. The next reading opens it again; what was checked is kept."""
        self._handle = None

    def image_ids(self) -> np.ndarray:
        """(N,) int64."""
        return self._small["id"]

    def sizes(self) -> np.ndarray:
        """(N, 2) uint32 of height, width."""
        return self._small["size"]

    def digests(self) -> np.ndarray:
        """(N, 32) uint8: the recorded digest of each image."""
        return self._whole("digest")

    def digest(self, row: int) -> bytes:
        """The digest of image number ``row``, from what the shard holds of it; a DataError when that cannot be read."""
        fixed = [_little_endian(self._small[name][row], _FIXED[name][0]) for name in ("id", "size")]
        columns = ((group, column, dtype) for group, columns in _RAGGED.items() for column, dtype in columns.items())
        try:
            return digest.leaf([*fixed, *(_little_endian(self._slice(*at, row), dtype) for *at, dtype in columns)])
        except (ValueError, OSError) as error:
            raise self._fault("image", row, error) from None

    def present(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offsets (N + 1,) uint64, classes uint16, pixels uint32): the classes of each image but 0, and their pixels."""
        classes = self._whole("present/class")
        if classes.size and not 1 <= classes.min() <= classes.max() <= self._classes:
            found = f"{classes.min()}..{classes.max()}"
            raise DataError(f"{self.path}: holds classes {found}, the vocabulary has 1..{self._classes}")
        return self._offsets["present"], classes, self._whole("present/pixels")

    def absent(self) -> np.ndarray:
        """(n,) uint16: all classes that occur in /neg and /not_exhaustive."""
        return np.concatenate([self._small["neg/class"], self._small["not_exhaustive/class"]])

    def runs(self, row: int) -> Runs:
        """The mask of image number ``row``; a DamagedImage when its runs do not fill it, or hold other classes."""
        try:
            columns = (self._slice("mask", column, row) for column in _RAGGED["mask"])
            runs = Runs(*columns, *self._small["size"][row].tolist())
            runs.check(self._classes)
        except (ValueError, OSError) as error:
            raise self._fault("mask of image", row, error) from None
        return runs

    def sample(self, row: int) -> Sample:
        """Image number ``row`` of the shard; a DamagedImage as for :meth:`runs`, a DataError where the disk fails."""
        runs = self.runs(row)
        try:
            content = self._content(row)
        except (ValueError, OSError) as error:
            raise self._fault("picture of image", row, error) from None
        return Sample(
            image_id=int(self._small["id"][row]),
            path=self.image_path(row),
            runs=runs,
            content=content,
            neg=self._slice("neg", "class", row),
            not_exhaustive=self._slice("not_exhaustive", "class", row),
            shard=self.path,
        )

    def image_path(self, row: int) -> str:
        """The path of image number ``row``, from the folder of the pictures."""
        return self._slice("path", "bytes", row).tobytes().decode("utf-8", "replace")

    def _whole(self, name: str) -> np.ndarray:
        column = self._columns[name]
        try:
            checks.small(f"/{name}", math.prod(column.shape) * column.dtype.itemsize)
            return self._read(column, 0, column.shape[0])
        except (ValueError, OSError) as error:
            raise DataError(f"{self.path}: {one_line(error)}") from None

    def _slice(self, group: str, column: str, row: int) -> np.ndarray:
        start, stop = self._bounds(group, row)
        values = self._small.get(f"{group}/{column}")
        return self._read(self._columns[f"{group}/{column}"], start, stop) if values is None else values[start:stop]

    def _content(self, row: int) -> bytes:
        start, stop = self._bounds("image", row)
        handle = self._opened()
        content = os.pread(handle.number, stop - start, self._columns["image/bytes"].at + start)
        if len(content) < stop - start:
            raise OSError(_SHORTER)
        return content

    def _bounds(self, group: str, row: int) -> tuple[int, int]:
        offsets = self._offsets[group]
        return int(offsets[row]), int(offsets[row + 1])

    def _read(self, column: _Column, start: int, stop: int) -> np.ndarray:
        """Entries start:stop along the first side."""
        values = np.empty((stop - start, *column.shape[1:]), column.dtype)
        entry = column.dtype.itemsize * math.prod(column.shape[1:])
        handle = self._opened()
        if values.size and os.preadv(handle.number, [values], column.at + start * entry) < values.nbytes:
            raise OSError(_SHORTER)
        return values

    def _opened(self) -> "_Handle":
        handle = self._handle
        if handle is None:
            handle = _Handle(self.path)
            if handle.identity != self._identity:
                raise OSError("the file was replaced by another while it was in use")
            self._handle = handle
        return handle

    def _fault(self, what: str, row: int, error: Exception) -> DataError:
        """A DamagedImage where what was read is wrong, else the disk failed."""
        kind = DamagedImage if isinstance(error, ValueError) else DataError
        return kind(_told(self.path, f"{what} {int(self._small['id'][row])}", self.image_path(row), error))


def _told(shard: Path | None, what: str, path: str, reason: Exception | str) -> str:
    text = f"{what} ({_short(path, 150)}): {_short(str(reason), 400)}"
    return text if shard is None else f"{shard}: {text}"


def _short(text: str, most: int) -> str:
    """A text on one line, without its middle where it is longer than a reader endures."""
    text = replace_unprintable(text)
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"
