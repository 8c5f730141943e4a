"""What must hold of a shard and of dataset.json before anything in them is believed: they may come from anywhere."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import h5py
import msgspec
import numpy as np
from msgspec import Meta

from cocolvis.disk import reading
from cocolvis.disk.files import regular_file
from cocolvis.errors import DamagedImage, DataError
from cocolvis.limits import MAX_PICTURE, MAX_PIXELS
from cocolvis.text import one_line, refuse_other_encodings, without_mark

MAX_WHOLE = 2**28
"""Bytes of the largest column that is read whole; 8 million images fit."""

MAX_INDEX = 2**28
"""Bytes of the largest dataset.json; a million faults take two thirds of it."""

_HDF5 = b"\x89HDF\r\n\x1a\n\x03"
"""How a file of format 1.10 begins."""

REFUSED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What HDF5 and h5py raise on files that they cannot read, and the checks below on those that nobody should."""


def absent(path: Path) -> bool:
    """Whether nothing has this name; what nobody may look at is not absent."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        pass
    return False


def hdf5(path: Path) -> None:
    """Raise a ValueError for a file that is no HDF5 of format 1.10, in which all that leads to values has a checksum.

    A byte that is wrong in an older one makes HDF5 crash or hang. A DataError as for :func:`regular_file`.
    """
    regular_file(path)
    with path.open("rb") as file:
        start = file.read(len(_HDF5))
    if start != _HDF5:
        raise ValueError("is no HDF5 file of format 1.10")


def attributes(file: h5py.File, expected: Mapping[str, Any], texts: Sequence[str]) -> dict[str, str]:
    """The attributes ``texts`` that are there; a ValueError when one is no text, or others are not as ``expected``."""
    found = {name: _scalar(file, name) for name in (*expected, *texts)}
    for name, value in expected.items():
        if type(value) is not type(found[name]) or value != found[name]:
            got = tuple(found[name] for name in expected)
            raise ValueError(f"format and version are {got}, expected {tuple(expected.values())}")
    for name in texts:
        if not isinstance(found[name], str | None):
            raise ValueError(f"the attribute {name} is no text")
    return {name: found[name] for name in texts if found[name] is not None}


def _scalar(file: h5py.File, name: str) -> Any:
    """An attribute that is a whole number or a text, an Ellipsis when it is anything else, None when there is none.

    A text has a fixed length: others lie in a heap without checksums, in which a byte that is wrong makes HDF5 hang.
    """
    if name not in file.attrs:
        return None
    kind = file.attrs.get_id(name)
    if kind.shape != () or kind.dtype.kind not in "iuS":
        return ...
    value = file.attrs[name]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else int(value)


def stored(file: h5py.File, name: str, dtype: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """The data set ``name`` of a shard; None in ``shape`` leaves that side open.

    A ValueError unless its values have this type and shape and lie in this file, in one piece and as they are.
    """
    data = _found(file, name)
    sides = () if data.shape is None else data.shape
    fits = len(sides) == len(shape) and all(b in (None, a) for a, b in zip(sides, shape, strict=True))
    if not fits or data.dtype != dtype:
        wanted = str(shape).replace("None", "N")
        raise ValueError(f"/{name} is {one_line(str(data.dtype))} {data.shape}, expected {dtype} {wanted}")
    size, occupied = data.nbytes, data.id.get_storage_size()
    if data.chunks is not None:
        raise ValueError(f"/{name} lies in chunks, expected one piece")
    if occupied < size:
        raise ValueError(f"/{name} declares {size} bytes and stores {occupied}")
    return data


def _found(file: h5py.File, name: str) -> h5py.Dataset:
    """What has this name, if only hard links lead there: nothing outside of the file is touched."""
    here: h5py.Group | h5py.Dataset = file
    for part in name.split("/"):
        if not isinstance(here, h5py.Group):
            raise ValueError(f"{here.name} is no group")
        links = here.id.links  # Group.get would follow the link
        if not links.exists(part.encode()):
            raise ValueError(f"/{name} is missing")
        if links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"/{name} points at another file or place")
        here = here[part]
    if not isinstance(here, h5py.Dataset):
        raise ValueError(f"/{name} is no data set")
    if here.is_virtual or here.external:
        raise ValueError(f"/{name} points at another file or place")
    return here


def whole(data: h5py.Dataset) -> np.ndarray:
    """All values of a column; a ValueError when they are too many."""
    small(data.name, data.nbytes)
    return data[()]


def small(name: str, size: int) -> None:
    """A ValueError where a column of so many bytes is too large to be read whole."""
    if size > MAX_WHOLE:
        raise ValueError(f"{name} holds {size} bytes, expected at most {MAX_WHOLE}")


def place(data: h5py.Dataset) -> int:
    """The byte of the file at which the values of a :func:`stored` column begin; a ValueError where they have no such place."""
    offset = data.id.get_offset()
    if offset is None and data.nbytes:
        raise ValueError(f"{data.name} lies in its header, expected one piece")
    return offset or 0


def offsets(file: h5py.File, group: str, images: int) -> np.ndarray:
    """The (images + 1,) uint64 offsets of a group; a ValueError when they do not ascend from 0."""
    values = whole(stored(file, f"{group}/offsets", "uint64", (images + 1,)))
    if values[0] != 0 or np.any(values[1:] < values[:-1]):
        raise ValueError(f"/{group}/offsets does not ascend from 0")
    return values


def images(ids: np.ndarray, sizes: np.ndarray, runs: np.ndarray, pictures: np.ndarray) -> None:
    """A ValueError when an image has no pixels or too many, more runs than pixels, or too large a picture; all (N, ...)."""
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


_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_SplitName = Annotated[str, Meta(pattern=r"^\w[\w-]*\Z")]
"""It becomes the name of a folder when masks are exported."""


class _Totals(msgspec.Struct):
    images: _Count
    shards: _Count


class _Entry(msgspec.Struct):
    file: Annotated[str, Meta(max_length=1000)]
    split: str
    images: _Count
    bytes: _Count
    sha256: _Hash
    hdf5: Annotated[str, Meta(max_length=100)] | None = None


class ReportedFault(msgspec.Struct, gc=False):
    """A fault as it stands in dataset.json, or in a line of faults.jsonl."""

    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class _FaultFile(msgspec.Struct):
    bytes: _Count
    sha256: _Hash


class _Report(msgspec.Struct):
    counts: Annotated[dict[str, _Count], Meta(max_length=100)]
    faults: list[ReportedFault]
    file: _FaultFile | None = None


class _Options(msgspec.Struct):
    images: Literal["embed", "path", "none"]
    limit: _Count | None
    image_root: str | None = None
    decode: bool = False


class _BuildOptions(_Options, kw_only=True):
    overlap: Literal["first", "small-on-top"]
    compat: Literal["essnet"] | None


class _ImportOptions(_Options, kw_only=True):
    dataset: Annotated[str, Meta(pattern=r"^\w+\Z")]


class _Index(msgspec.Struct):
    digest: _Hash
    splits: dict[_SplitName, _Totals]
    shards: list[_Entry]
    options: _BuildOptions
    inputs: dict[str, _Hash]
    report: _Report
    vocabulary: dict[str, Any]
    mask_rule: _Count | None = None


class _ImportedIndex(_Index):
    options: _ImportOptions


def read_index(path: Path, identity: tuple[str, int]) -> dict[str, Any]:
    """dataset.json as parsed; a DataError unless every key that is used has the type and range that it must have.

    ``identity`` is the expected format and version. Shards must lie in the folder, and be listed once.
    """
    size = regular_file(path).st_size
    if size > MAX_INDEX:
        raise DataError(f"{path}: has {size} bytes; at most {MAX_INDEX} are read")
    try:
        content = path.read_bytes()
        refuse_other_encodings(content, path)
        index = msgspec.json.decode(without_mark(content))
        found = (index.get("format"), index.get("version")) if isinstance(index, dict) else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {one_line(error)}") from None
    if found != identity:
        raise DataError(f"{path}: format and version are {one_line(str(found))}, expected {identity}")
    check_index(path, index)
    return index


def check_index(path: Path, index: dict[str, Any]) -> None:
    """A DataError unless this may be the content of dataset.json at ``path``, as :func:`read_index` expects it."""
    try:
        checked = msgspec.convert(index, _ImportedIndex if is_imported(index) else _Index)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DataError(f"{path}: {one_line(error)}") from None
    seen: set[PurePosixPath] = set()
    for entry in checked.shards:
        place = PurePosixPath(entry.file)
        if place.is_absolute() or ".." in place.parts or not place.name or re.search(r"[\x00-\x1f\x7f\\]", entry.file):
            raise DataError(f"{path}: shard {one_line(repr(entry.file))} is no path inside the folder")
        if place in seen:
            raise DataError(f"{path}: shard {one_line(entry.file)} is listed twice")
        if entry.split not in checked.splits:
            raise DataError(
                f"{path}: shard {one_line(entry.file)} is of the split {one_line(repr(entry.split))}, which is not listed"
            )
        seen.add(place)


def is_imported(index: Mapping[str, Any]) -> bool:
    """Whether dataset.json is of ``cocolvis import``, so that its options say nothing of COCO and LVIS."""
    return isinstance(index.get("options"), dict) and "dataset" in index["options"]


def picture(root: Path, path: str) -> bytes:
    """The bytes of a picture below ``root``; a DataError where the disk fails.

    A DamagedImage when ``path`` leads elsewhere, or to no file of a picture's size that may be read.
    """
    if path.startswith("/") or ".." in path.split("/") or "\0" in path or len(path) > 1000:
        raise DamagedImage(f"{root}: picture {one_line(repr(path))} is no path inside the folder")
    file = root / path
    try:
        status = regular_file(file)
        content = file.read_bytes() if status.st_size <= MAX_PICTURE else None
    except DataError as error:
        kind = DamagedImage if _is_of_one_file(error.__cause__) else DataError
        raise kind(str(error)) from None
    except OSError as error:
        kind = DamagedImage if _is_of_one_file(error) else DataError
        raise kind(f"{file}: cannot be read: {error.strerror}") from None
    if content is None:
        raise DamagedImage(f"{file}: has {status.st_size} bytes; at most {MAX_PICTURE} are read")
    return content


def _is_of_one_file(error: BaseException | None) -> bool:
    return not isinstance(error, OSError) or reading.system_reason(error) is None
