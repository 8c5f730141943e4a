"""Checks of an HDF5 file that claims to be a shard: it may have any origin, so everything in it is checked before use."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

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


def read_attributes(file: h5py.File, expected: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """Return those of the text attributes ``texts`` that exist.

    Raises ValueError if one of them is not a text, or if an attribute of ``expected`` is missing or has another value.
    """
    values = {name: _read_scalar(file, name) for name in (*expected, *texts)}
    for name, value in expected.items():
        if type(value) is not type(values[name]) or value != values[name]:
            got = tuple(values[name] for name in expected)
            raise ValueError(f"format and version are {got}, expected {tuple(expected.values())}")
    for name in texts:
        if not isinstance(values[name], str | None):
            raise ValueError(f"the attribute {name} is not a text")
    return {name: values[name] for name in texts if values[name] is not None}


def _read_scalar(file: h5py.File, name: str) -> Any:
    """Read an attribute that is an integer or a text; return an Ellipsis if it is anything else and None if it is missing.

    Only texts of fixed length are read: HDF5 keeps others in a heap without checksums, where a wrong byte makes it hang.
    """
    if name not in file.attrs:
        return None
    kind = file.attrs.get_id(name)
    if kind.shape != () or kind.dtype.kind not in "iuS":
        return ...
    value = file.attrs[name]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else int(value)


def find_column(file: h5py.File, name: str, dtype: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """Return the column ``name`` of a shard; None in ``shape`` allows any length along that axis.

    Raises ValueError unless it has this type and shape and is stored in this file, contiguous and uncompressed.
    """
    data = _find_dataset(file, name)
    sides = () if data.shape is None else data.shape
    fits = len(sides) == len(shape) and all(b in (None, a) for a, b in zip(sides, shape, strict=True))
    if not fits or data.dtype != dtype:
        wanted = str(shape).replace("None", "N")
        raise ValueError(f"/{name} is {one_line(str(data.dtype))} {data.shape}, expected {dtype} {wanted}")
    size, occupied = data.nbytes, data.id.get_storage_size()
    if data.chunks is not None:
        raise ValueError(f"/{name} is stored in chunks, expected one contiguous block")
    if occupied < size:
        raise ValueError(f"/{name} declares {size} bytes but stores {occupied}")
    return data


def _find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Look up a data set by name; only hard links are followed, so that other files stay closed."""
    here: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        if not isinstance(here, h5py.Group):
            raise ValueError(f"{here.name} is not a group")
        links = here.id.links  # Group.get would follow the link
        if not links.exists(part.encode()):
            raise ValueError(f"/{name} is missing")
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} points at another file or place")
        here = here[part]
    if not isinstance(here, h5py.Dataset):
        raise ValueError(f"/{name} is not a data set")
    if here.is_virtual or here.external:
        raise ValueError(f"/{name} points at another file or place")
    return here


def has_column(file: h5py.File, name: str) -> bool:
    """Whether a group that :func:`read_offsets` has accepted has a column or a link ``group/column``; no link is followed."""
    parent, _, column = name.partition("/")
    group = file[parent]  # its links need it to stay open
    return bool(group.id.links.exists(column.encode()))


def read_column(data: h5py.Dataset) -> np.ndarray:
    """Read all values of a column; raises ValueError if it is larger than :data:`MAX_COLUMN`."""
    check_column_size(data.name, data.nbytes)
    return data[()]


def check_column_size(name: str, size: int) -> None:
    """Raise ValueError if a column of ``size`` bytes is too large to be read as a whole."""
    if size > MAX_COLUMN:
        raise ValueError(f"{name} holds {size} bytes, expected at most {MAX_COLUMN}")


def locate_values(data: h5py.Dataset) -> int:
    """Return the position in the file, in bytes, of the first value of a column that :func:`find_column` returned.

    Raises ValueError if the values are not stored on their own but inside the column's header.
    """
    offset = data.id.get_offset()
    if offset is None and data.nbytes:
        raise ValueError(f"{data.name} is stored in its header, expected one contiguous block")
    return offset or 0


def read_offsets(file: h5py.File, group: str, images: int) -> np.ndarray:
    """Read the (images + 1,) uint64 offsets of a group; raises ValueError unless they start at 0 and never decrease."""
    values = read_column(find_column(file, f"{group}/offsets", "uint64", (images + 1,)))
    if values[0] != 0 or np.any(values[1:] < values[:-1]):
        raise ValueError(f"/{group}/offsets does not ascend from 0")
    return values


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
