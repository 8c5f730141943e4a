"""The files of ``.build``, which may be damaged or of another version: what they must hold, and how they are read."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cocolvis.disk.files import regular_file
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.storage.index import MAX_INDEX
from cocolvis.text import one_line

_Count = Annotated[int, Meta(ge=0, le=2**53)]
_Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_ShardName = Annotated[str, Meta(pattern=r"^\w[\w-]*-\d{5,}\Z")]


class _Options(msgspec.Struct):
    splits: list[str]
    shard_size: Annotated[int, Meta(ge=1)]


class _Description(msgspec.Struct):
    options: _Options
    inputs: dict[str, str]
    vocabulary: str


class _Planned(msgspec.Struct):
    images: _Count
    rows: _Hash


class Plan(msgspec.Struct):
    """plan.json; ``rows`` of a shard is a SHA-256 of which images it holds, ``unusable`` those of a split that none does.

    ``vocabulary`` is None for that of COCO+LVIS.
    """

    description: _Description
    shards: dict[_ShardName, _Planned]
    faults: list[Fault]
    vocabulary: dict[str, Any] | None
    unusable: dict[str, _Count] = {}


class Begun(msgspec.Struct):
    """What plan.json of any version says of who began the build."""

    description: dict[str, Any]


class Report(msgspec.Struct):
    """What is noted of a finished shard; ``build`` is a SHA-256 of all that it was made from.

    A shard that is to be built ``again`` lacks images.
    """

    images: _Count
    bytes: _Count
    sha256: _Hash
    hdf5: Annotated[str, Meta(max_length=100)]
    mask_rule: _Count
    version: _Count
    build: _Hash
    faults: list[Fault]
    again: bool = False
    seen: dict[str, _Count] = {}


class Files(msgspec.Struct):
    """files.json: what an import notes of its files, as :meth:`cocolvis.building.base.ShardPlan.files` has it."""

    inputs: dict[str, _Hash]
    names: _Hash
    sizes: dict[str, list[tuple[_Count, _Count]]]


def read(path: Path, kind: type) -> dict:
    """A JSON file as parsed; a DataError that names it unless it has the shape that it must have."""
    size = regular_file(path).st_size
    if size > MAX_INDEX:
        raise DataError(f"{path}: has {size} bytes; at most {MAX_INDEX} are read")
    try:
        content = msgspec.json.decode(path.read_bytes())
        msgspec.convert(content, kind)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}") from None
    return content
