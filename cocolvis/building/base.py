"""What every build has in common: its options, the plan of its shards, and the task that writes one of them."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import h5py

from cocolvis.disk import reading
from cocolvis.disk.archives import Place
from cocolvis.disk.lock import Lease
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.masks.merge import MASK_RULE
from cocolvis.pictures import encoded, remarks
from cocolvis.sources.locations import SPLITS
from cocolvis.storage.columns import VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_writer import ShardWriter
from cocolvis.vocabulary import Vocabulary

_SHARD_BYTES, _INDEX_BYTES, _MARGIN = 16_000, 250_000, 1.05
"""HDF5's own bytes of a shard (7,500 measured) with its report and what file systems round up; dataset.json (its vocabulary:
241,000 measured); and the safe side of both."""

_FAULT_BYTES, _FAULT_COPIES = 300, 2
"""A fault without its reason in plan.json and faults.jsonl, or dataset.json (110 + 100 measured, 180 in the last); how often
each reason is written."""

ROW_BYTES = 400
"""A shard's bytes an image besides mask and picture, on the safe side: 160 to 185 are measured."""

IMAGES = ("embed", "path", "none")
"""What a shard keeps of a picture: its bytes, only its path, or only its path while no picture is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardOptions:
    """What decides the shards, but for the input.

    ``limit`` takes the first images of each split; ``shard_size`` is images a shard; ``images`` is one of ``IMAGES``;
    ``decode`` leaves out what :func:`cocolvis.pictures.encoded.check` finds damaged beyond the header.
    """

    splits: tuple[str, ...] = SPLITS
    limit: int | None = None
    shard_size: int = 500
    images: str = "embed"
    decode: bool = False

    def __post_init__(self):
        if self.images not in IMAGES:
            raise DataError(f"images is {self.images!r}; expected one of {IMAGES}")
        if self.shard_size < 1 or (self.limit is not None and self.limit < 0):
            raise DataError(f"shard size {self.shard_size} and limit {self.limit}: expected 1 or more, and 0 or more")
        if self.decode and self.images == "none":
            raise DataError("--decode looks into the pictures, --images none at none; choose --images path or embed")


class ShardPlan(ABC):
    """The images of each split in order, and the faults that are known before any mask is made."""

    options: ShardOptions
    vocabulary: Vocabulary
    images: dict[str, list[Any]]
    faults: list[Fault]

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Name -> SHA-256 of everything that the data set is made of."""

    @abstractmethod
    def image_root(self) -> Path | None:
        """The folder that the recorded paths start from, for a data set that refers to its pictures."""

    @abstractmethod
    def task(self, name: str, split: str, rows: list[Any]) -> "ShardTask":
        """The task of one shard."""

    @abstractmethod
    def row_bytes(self, split: str, rows: list[Any]) -> int:
        """About the bytes that these images take in shards."""

    @abstractmethod
    def row_name(self, row: Any) -> tuple[int, str]:
        """The id of an image and the path of its picture, as the shard records them."""

    @abstractmethod
    def warm_up(self) -> None:
        """Compile the kernels, or load them from their cache, before processes start that would each do it."""

    def description(self) -> dict:
        """What decides the shards: a build is resumed only with the same."""
        root = self.image_root()
        options = asdict(self.options) | {"splits": list(self.options.splits), "image_root": str(root) if root else None}
        if not options["decode"]:
            del options["decode"]  # so that what an earlier version began, or finished, is still the same
        made_by = {"mask_rule": MASK_RULE, "version": VERSION}
        return {"options": options, "inputs": self.inputs(), "vocabulary": self.vocabulary.digest} | made_by

    def unusable(self) -> dict[str, int]:
        """Split -> images that its annotations list in records of which no shard can be made."""
        return {}

    def files(self) -> dict[str, Any] | None:
        """What an unfinished build notes of the files that it reads, so that it goes on when some are lost or found again."""
        return None

    def resumed(self, begun: dict[str, Any], files: dict[str, Any] | None, unsettled: Collection[str]) -> bool | None:
        """Whether files were found again since an unfinished build was begun; None where this plan is of another build.

        ``begun`` is the description of that build, ``files`` what it noted as :meth:`files` has it; ``unsettled`` are shards
        that are not finished, or lack images.
        """
        return False if self.description() == begun else None

    def shard_counts(self) -> dict[str, int]:
        """Shard name -> images in it, in order; an empty split has no shard."""
        return {name: len(rows) for name, _, rows in self._shards()}

    def shard_rows(self) -> dict[str, str]:
        """Shard name -> SHA-256 over the ids and paths of its images, in order."""
        lines = {name: json.dumps([self.row_name(row) for row in rows]) for name, _, rows in self._shards()}
        return {name: hashlib.sha256(line.encode()).hexdigest() for name, line in lines.items()}

    def tasks(self, names: Collection[str]) -> Iterator["ShardTask"]:
        """The tasks of the named shards in order, made as they are asked for."""
        return (self.task(name, split, rows) for name, split, rows in self._shards() if name in names)

    def bytes_needed(self, names: Collection[str]) -> int:
        """About the bytes that the named shards and the index take on disk."""
        faults = sum(_FAULT_BYTES + _FAULT_COPIES * len(fault.reason) for fault in self.faults)
        total = len(names) * _SHARD_BYTES + _INDEX_BYTES + faults
        for split in self.images:
            rows = [row for name, own, chosen in self._shards() if own == split and name in names for row in chosen]
            total += self.row_bytes(split, rows) if rows else 0
        return int(total * _MARGIN)

    def shard_name(self, split: str, row: int) -> str:
        """The shard that holds an image of a split."""
        return f"{split}-{row // self.options.shard_size:05d}"

    def _shards(self) -> Iterator[tuple[str, str, list[Any]]]:
        """(shard name, split, its images)."""
        size = self.options.shard_size
        for split, images in self.images.items():
            for start in range(0, len(images), size):
                yield self.shard_name(split, start), split, images[start : start + size]


class Picture(Protocol):
    """What a task knows of an image: ``path`` is what the shard records, ``picture`` where the bytes lie."""

    image_id: int
    path: str
    picture: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask(ABC):
    """Everything that one shard is made of; pickles, so that it may run anywhere that sees the same folders.

    ``vocabulary`` is the digest of the classes. With ``allow_missing``, input that cannot be read is a fault whatever the
    reason; it plays no part in what a build is made of.
    """

    name: str
    split: str
    images: Sequence
    options: ShardOptions
    vocabulary: str
    allow_missing: bool = False

    @abstractmethod
    def sample(self, image: Picture, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """One of the ``images`` as a sample; None where it is left out. Whatever is skipped is added to ``faults``.

        ``seen`` counts what is worth a word at the end (:mod:`cocolvis.pictures.remarks`).
        """


def run_shard(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None] = lambda: None) -> dict:
    """Write the shard and return its report: {"images", "bytes", "sha256", "hdf5", "mask_rule", "version", "faults", "seen"}.

    ``hdf5`` is the version of the library here, as workers may have others than the process that asks them. ``tick`` is called
    after each image. Faults of single records are collected. A DataError for a file that cannot be written, a folder whose
    ``lease`` was lost, and input that cannot be read for a reason that is not its own.
    """
    with reading.allowing_missing(task.allow_missing):
        return _run(task, shard, lease, tick)


def _run(task: ShardTask, shard: Path, lease: Lease, tick: Callable[[], None]) -> dict:
    faults: list[Fault] = []
    seen: Counter[str] = Counter()
    attributes = {"split": task.split, "images": task.options.images, "vocabulary": task.vocabulary}
    writer = ShardWriter(shard, attributes, lease.check)
    for image in task.images:
        sample = task.sample(image, faults, seen)
        if sample is not None:
            writer.add(sample)
        tick()
    made_by = {"hdf5": h5py.version.hdf5_version, "mask_rule": MASK_RULE, "version": VERSION}
    return writer.finish() | made_by | {"faults": faults, "seen": dict(seen)}


def read_picture(
    image: Picture,
    expected: tuple[int, int],
    said: str,
    faults: list[Fault],
    absent: str | None = None,
    *,
    decode: bool = False,
    seen: Counter[str] | None = None,
) -> bytes | None:
    """The bytes of an image's picture; None, and a fault, where it is absent, broken or not of the ``expected`` size.

    ``said`` is the words in which a fault tells who expects (height, width), ``absent`` those for a picture that is not there;
    ``decode`` is that of :func:`images.check`. ``seen`` counts remarks on the picture. A DataError where a reason that is not
    its own keeps it from being read or looked into.
    """

    def fault(kind: str, reason: str) -> None:
        faults.append(Fault(kind, "image", image.image_id, None, f"{image.path}: {reason}"))

    try:
        content = image.picture.read()
        with reading.decoding(image.picture):
            encoded.check(content, expected, decode)
            noted = remarks.of_picture(content)
    except (FileNotFoundError, NotADirectoryError):
        return fault("missing image", absent or image.picture.why_missing())
    except OSError as error:
        return fault("unreadable image", f"cannot be read: {reading.strerror(error)}")
    except encoded.WrongSize as error:
        reason = f"{error}, {said} {expected[0]} x {expected[1]}"
        return fault("wrong image size", reason + remarks.why_size(content, encoded.image_size(content), expected))
    except ValueError as error:
        return fault("unreadable image", str(error))
    if seen is not None:
        seen.update(noted)
    return content
