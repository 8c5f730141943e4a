"""Checks of an HDF5 file that claims to be a shard: it may have any origin, so everything in it is checked before use."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py.h5d import DatasetID
from h5py.h5f import FileID
from h5py.h5g import GroupID

from cocolvis.disk.files import regular_file
from cocolvis.limits import MAX_INSTANCES, MAX_PICTURE, MAX_PIXELS
from cocolvis.text import one_line

MAX_COLUMN = 2**28
"""The most bytes of a column that is read as a whole; enough for 8 million images."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n\x03"
"""First bytes of an HDF5 file of format 1.10."""

HDF5_ERRORS = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""Exceptions that HDF5 and h5py raise on damaged files; the checks below raise ValueError."""


def check_is_hdf5(path: Path) -> None:
    """Raise ValueError unless a file is HDF5 of format 1.10, which protects all its metadata with checksums.

    A wrong byte in the metadata of an older format makes HDF5 crash or hang. Raises DataError as :func:`regular_file` does.
    """
    regular_file(path)
    with path.open("rb") as file:
        start = file.read(len(_SIGNATURE))
    if start != _SIGNATURE:
        raise ValueError("not an HDF5 file of format 1.10")


class Column(NamedTuple):
    """A column of a shard: its name, the position of its first value in the file, in bytes, and its type and shape."""

    name: str
    start: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_attributes(file: FileID, expected: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """Return those of the text attributes ``texts`` that exist.

    Raises ValueError if one of them is not a text, or if an attribute of ``expected`` is missing or has another value.
    """
    values = {name: _read_scalar(file, name.encode()) for name in (*expected, *texts)}
    for name, value in expected.items():
        if type(value) is not type(values[name]) or value != values[name]:
            got = tuple(values[name] for name in expected)
            raise ValueError(f"format and version are {got}, expected {tuple(expected.values())}")
    for name in texts:
        if not isinstance(values[name], str | None):
            raise ValueError(f"the attribute {name} is not a text")
    return {name: values[name] for name in texts if values[name] is not None}


def _read_scalar(file: FileID, name: bytes) -> Any:
    """Read an attribute that is an integer or a text; return an Ellipsis if it is anything else and None if it is missing.

    Only texts of fixed length are read: HDF5 keeps others in a heap without checksums, where a wrong byte makes it hang.
    """
    if not h5py.h5a.exists(file, name):
        return None
    attribute = h5py.h5a.open(file, name)
    kind = attribute.dtype
    if attribute.shape != () or kind.kind not in "iuS":
        return ...
    value = np.empty((), kind)
    attribute.read(value)
    return value.item().decode("utf-8", "replace") if kind.kind == "S" else value.item()


def find_column(file: FileID, name: str, dtype: str, shape: tuple[int | None, ...]) -> Column:
    """Find the column ``name`` of a shard; None in ``shape`` allows any length along that axis.

    Raises ValueError unless it has this type and shape and is stored in this file, contiguous and uncompressed.
    """
    data = _find_dataset(file, name)
    sides, kind, settings = data.shape, data.dtype, data.get_create_plist()
    layout = settings.get_layout()
    if layout == h5py.h5d.VIRTUAL or settings.get_external_count():
        raise ValueError(f"/{name} points at another file or place")
    fits = sides is not None and len(sides) == len(shape) and all(b in (None, a) for a, b in zip(sides, shape, strict=True))
    if not fits or kind != dtype:
        wanted = str(shape).replace("None", "N")
        raise ValueError(f"/{name} is {one_line(str(kind))} {sides}, expected {dtype} {wanted}")
    if layout == h5py.h5d.CHUNKED:
        raise ValueError(f"/{name} is stored in chunks, expected one contiguous block")
    start, occupied = data.get_offset(), data.get_storage_size()
    column = Column(name, start or 0, kind, sides)
    if occupied < column.nbytes:
        raise ValueError(f"/{name} declares {column.nbytes} bytes but stores {occupied}")
    if start is None and column.nbytes:
        raise ValueError(f"/{name} is stored in its header, expected one contiguous block")
    return column


def _find_dataset(file: FileID, name: str) -> DatasetID:
    """Look up a data set by name; only hard links are followed, so that other files stay closed."""
    here: FileID | GroupID | DatasetID = file
    for part in name.encode().split(b"/"):
        if not isinstance(here, GroupID):  # which a FileID is, too
            raise ValueError(f"/{name.partition('/')[0]} is not a group")
        if not here.links.exists(part):
            raise ValueError(f"/{name} is missing")
        if here.links.get_info(part).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} points at another file or place")
        here = h5py.h5o.open(here, part)
    if not isinstance(here, DatasetID):
        raise ValueError(f"/{name} is not a data set")
    return here


def has_column(file: FileID, name: str) -> bool:
    """Whether a group in which :func:`find_column` has found a column has this column or link, too; no link is followed."""
    parent, _, column = name.encode().partition(b"/")
    group = h5py.h5o.open(file, parent)  # its links need it to stay open
    return bool(group.links.exists(column))


def check_column_size(column: Column) -> None:
    """Raise ValueError if a column is too large to be read as a whole."""
    if column.nbytes > MAX_COLUMN:
        raise ValueError(f"/{column.name} holds {column.nbytes} bytes, expected at most {MAX_COLUMN}")


def check_offsets(column: Column, values: np.ndarray) -> None:
    """Raise ValueError unless the (images + 1,) uint64 offsets of a group start at 0 and never decrease."""
    if values[0] != 0 or np.any(values[1:] < values[:-1]):
        raise ValueError(f"/{column.name} does not ascend from 0")


def check_instances(values: np.ndarray) -> None:
    """Raise ValueError if one of the (n,) numbers of instances is out of range."""
    if values.max(initial=0) > MAX_INSTANCES:
        raise ValueError(f"/present/instances holds {values.max()}, expected at most {MAX_INSTANCES}")


def check_images(ids: np.ndarray, sizes: np.ndarray, runs: np.ndarray, pictures: np.ndarray) -> None:
    """Raise ValueError if the id or the size of an image is out of range, or if it holds too much for its size.

    ``ids`` (N,), ``sizes`` (N, 2) height and width, ``runs`` (N,) runs of the masks, ``pictures`` (N,) bytes of the pictures.
    """
    pixels = sizes.astype(np.uint64).prod(axis=1)
    for wrong, reason in (
        ((pixels == 0) | (pixels > MAX_PIXELS), f"is not in 1..{MAX_PIXELS} pixels"),
        (runs > pixels, "has more runs than pixels"),
        (pictures > MAX_PICTURE, f"has a picture of more than {MAX_PICTURE} bytes"),
        (ids < 0, "has a negative id"),
    ):
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"image {ids[row]} of {sizes[row, 0]} x {sizes[row, 1]} {reason}")
