"""dataset.json: the types of its keys, and reading one of any origin safely."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from cocolvis.disk.files import is_absent, parse_json, reason, regular_file
from cocolvis.errors import DataError
from cocolvis.text import one_line, refuse_other_encodings, without_mark
from cocolvis.vocabulary import Vocabulary

FORMAT = "cocolvis"
VERSION = 3
INDEX = "dataset.json"
"""The format and version that dataset.json states, and its name."""

CHECKSUMS = {2: "sha256", VERSION: "checksum"}
"""Each version that can be read -> the key of a shard that protects its file.

``sha256`` is the SHA-256 of the whole file, ``checksum`` that of :meth:`cocolvis.storage.shard_reader.ShardReader.checksum`.
"""

MAX_INDEX = 2**28
"""The most bytes of a dataset.json that is read; a million faults take two thirds of it."""

MOST = 2**53
"""The largest number that dataset.json can record."""

Count = Annotated[int, Meta(ge=0, le=MOST)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_SplitName = Annotated[str, Meta(pattern=r"^\w[\w-]*\Z")]
"""Exporting masks creates a folder of this name."""


class _SplitTotals(msgspec.Struct):
    images: Count
    shards: Count


class _ShardEntry(msgspec.Struct):
    file: Annotated[str, Meta(max_length=1000)]
    split: str
    images: Count
    bytes: Count
    checksum: Sha256 | None = None
    sha256: Sha256 | None = None
    hdf5: Annotated[str, Meta(max_length=100)] | None = None


class ReportedFault(msgspec.Struct, gc=False):
    """A fault as recorded in dataset.json or in a line of faults.jsonl."""

    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class _FaultFile(msgspec.Struct):
    bytes: Count
    sha256: Sha256


class _Report(msgspec.Struct):
    counts: Annotated[dict[str, Count], Meta(max_length=100)]
    faults: list[ReportedFault]
    file: _FaultFile | None = None


class _Options(msgspec.Struct):
    images: Literal["embed", "path", "none"]
    limit: Count | None
    image_root: str | None = None
    decode: bool = False


class _BuildOptions(_Options, kw_only=True):
    overlap: Literal["first", "small-on-top"]
    compat: Literal["essnet"] | None


class _ImportOptions(_Options, kw_only=True):
    dataset: Annotated[str, Meta(pattern=r"^\w+\Z")]


class _Index(msgspec.Struct, kw_only=True):
    digest: Sha256
    splits: dict[_SplitName, _SplitTotals]
    shards: list[_ShardEntry]
    inputs: dict[str, Sha256]
    report: _Report
    vocabulary: dict[str, Any]
    mask_rule: Count | None = None
    instances: bool = False


class _BuiltIndex(_Index, kw_only=True):
    options: _BuildOptions


class _ImportedIndex(_Index, kw_only=True):
    options: _ImportOptions


def open_index(folder: Path) -> dict[str, Any]:
    """The dataset.json of a data set; raises DataError if it is missing, has another format, or is not valid."""
    if is_absent(folder / INDEX):
        unfinished = "" if is_absent(folder / "shards") else " yet: complete it with `cocolvis build ... --resume`, or `import`"
        raise DataError(f"{folder}: holds no {INDEX}{unfinished}; expected a folder that `cocolvis build` wrote")
    return read_index(folder / INDEX)


def read_index(path: Path) -> dict[str, Any]:
    """Read and parse dataset.json.

    Raises DataError if the file cannot be read, has another format or version, or :func:`check_index` refuses its content.
    """
    regular_file(path, MAX_INDEX)
    try:
        content = path.read_bytes()
        refuse_other_encodings(content, path)
        index = parse_json(without_mark(content))
        found = (index.get("format"), index.get("version")) if isinstance(index, dict) else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {reason(error)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON: {one_line(error)}") from None
    readable = [(FORMAT, version) for version in CHECKSUMS]
    if found not in readable:
        expected = " or ".join(map(str, readable))
        remedy = "; build it again, or use the version of cocolvis that wrote it" if found and found[0] == FORMAT else ""
        raise DataError(f"{path}: format and version are {one_line(str(found))}, expected {expected}{remedy}")
    check_index(path, index)
    return index


def check_index(path: Path, index: dict[str, Any]) -> None:
    """Raise DataError unless ``index``, of a version that can be read, is valid content for the dataset.json at ``path``.

    Every key that is used must have the right type and range. Every shard must be listed once, be inside the folder, and belong
    to a listed split.
    """
    try:
        checked = msgspec.convert(index, _ImportedIndex if is_imported(index) else _BuiltIndex)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DataError(f"{path}: {one_line(error)}") from None
    seen: set[PurePosixPath] = set()
    checksum = CHECKSUMS[index["version"]]
    for entry in checked.shards:
        shard = PurePosixPath(entry.file)
        if shard.is_absolute() or ".." in shard.parts or not shard.name or re.search(r"[\x00-\x1f\x7f\\]", entry.file):
            raise DataError(f"{path}: shard {one_line(repr(entry.file))} is not a path inside the folder")
        if shard in seen:
            raise DataError(f"{path}: shard {one_line(entry.file)} is listed twice")
        if entry.split not in checked.splits:
            raise DataError(
                f"{path}: shard {one_line(entry.file)} belongs to split {one_line(repr(entry.split))}, which is not listed"
            )
        if getattr(entry, checksum) is None:
            raise DataError(f"{path}: shard {one_line(entry.file)} has no {checksum}")
        seen.add(shard)


def vocabulary_of(folder: Path, index: Mapping[str, Any]) -> Vocabulary:
    """The classes that the dataset.json of a data set records; raises DataError if they are malformed or were edited."""
    try:
        return Vocabulary.from_json(index["vocabulary"])
    except DataError as error:
        raise DataError(f"{folder / INDEX}: {one_line(error)}") from None


def is_imported(index: Mapping[str, Any]) -> bool:
    """Whether ``cocolvis import`` wrote this index; its options then differ from those of a COCO+LVIS build."""
    return isinstance(index.get("options"), dict) and "dataset" in index["options"]
