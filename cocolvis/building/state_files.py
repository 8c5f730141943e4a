"""What the files of ``.build`` must hold: they may be damaged, or come from another version of cocolvis."""

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


class _ShardRecord(msgspec.Struct):
    images: _Count
    rows: _Hash


class BuildRecord(msgspec.Struct):
    """plan.json, the record of what is being built.

    ``rows`` of a shard is a SHA-256 of which images it holds. ``unusable`` has the number of images of each split whose records
    are too broken to be planned. ``vocabulary`` is None for the classes of COCO+LVIS.
    """

    description: _Description
    shards: dict[_ShardName, _ShardRecord]
    faults: list[Fault]
    vocabulary: dict[str, Any] | None
    unusable: dict[str, _Count] = {}


class AnyBuildRecord(msgspec.Struct):
    """What can be read from plan.json whichever version of cocolvis wrote it."""

    description: dict[str, Any]


class ShardReport(msgspec.Struct):
    """The report of a finished shard. ``build`` is a SHA-256 of everything that the shard was made from.

    With ``again``, the shard lacks images and has to be built once more.
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


class FilesRecord(msgspec.Struct):
    """files.json, the record of the input files, as :meth:`cocolvis.building.shard_plan.ShardPlan.files_record` makes it."""

    inputs: dict[str, _Hash]
    names: _Hash
    sizes: dict[str, list[tuple[_Count, _Count]]]


def read(path: Path, shape: type[msgspec.Struct]) -> dict[str, Any]:
    """The content of a JSON file, which must have the given shape; a DataError that names the file if it does not."""
    size = regular_file(path).st_size
    if size > MAX_INDEX:
        raise DataError(f"{path}: has {size} bytes; at most {MAX_INDEX} are read")
    try:
        content = msgspec.json.decode(path.read_bytes())
        msgspec.convert(content, shape)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}") from None
    return content
