"""The types of the files in ``.build``, which may be damaged or come from another version of cocolvis."""

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cocolvis.disk.files import parse_json, reason, regular_file
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.storage.index import MAX_INDEX, Count, Sha256
from cocolvis.text import one_line

_ShardName = Annotated[str, Meta(pattern=r"^\w[\w-]*-\d{5,}\Z")]


class _Options(msgspec.Struct):
    splits: list[str]
    shard_size: Annotated[int, Meta(ge=1)]


class _Description(msgspec.Struct):
    options: _Options
    inputs: dict[str, str]
    vocabulary: str
    instances: bool = False


class _ShardRecord(msgspec.Struct):
    images: Count
    rows: Sha256


class BuildRecord(msgspec.Struct):
    """plan.json, the record of the whole build.

    ``rows`` of a shard is a SHA-256 over its images. ``unusable`` maps each split to the number of image records that are too
    malformed to be planned. ``vocabulary`` is None for the classes of COCO+LVIS.
    """

    description: _Description
    shards: dict[_ShardName, _ShardRecord]
    faults: list[Fault]
    vocabulary: dict[str, Any] | None
    unusable: dict[str, Count] = {}


class AnyBuildRecord(msgspec.Struct):
    """The part of plan.json that every version of cocolvis can read."""

    description: dict[str, Any]


class ShardReport(msgspec.Struct):
    """The report of a finished shard. ``build`` is a SHA-256 of everything that the shard was made from.

    With ``again``, the shard lacks images and has to be built again.
    """

    images: Count
    bytes: Count
    checksum: Sha256
    hdf5: Annotated[str, Meta(max_length=100)]
    mask_rule: Count
    version: Count
    build: Sha256
    faults: list[Fault]
    again: bool = False
    instances: bool = False
    seen: dict[str, Count] = {}


class FilesRecord(msgspec.Struct):
    """files.json, the record of the input files; see :meth:`cocolvis.building.shard_plan.ShardPlan.files_record`."""

    inputs: dict[str, Sha256]
    names: Sha256
    sizes: dict[str, list[tuple[Count, Count]]]


def read(path: Path, shape: type[msgspec.Struct]) -> dict[str, Any]:
    """The content of a JSON file; raises DataError if it cannot be read or does not have the given shape."""
    regular_file(path, MAX_INDEX)
    try:
        content = parse_json(path.read_bytes())
        msgspec.convert(content, shape)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged: {one_line(error)}") from None
    return content
