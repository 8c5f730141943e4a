"""The base class of plans, for annotations and for label files: which images belong to which shard."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any, Generic, TypeVar

from cocolvis.building.shard_task import ShardOptions, ShardTask
from cocolvis.faults import Fault
from cocolvis.masks.merge import MASK_RULE
from cocolvis.storage.index import VERSION
from cocolvis.vocabulary import Vocabulary

ROW_BYTES = 400
"""Bytes that a shard takes for an image besides its mask and picture; 160 to 185 are measured."""

_SHARD_BYTES, _INDEX_BYTES, _MARGIN = 16_000, 250_000, 1.05
"""Bytes of a shard without images, with its report and the rounding of file systems (HDF5 alone: 7,500 measured); bytes of
dataset.json (its vocabulary: 241,000 measured); safety factor of the whole estimate."""

_FAULT_BYTES, _FAULT_COPIES = 300, 2
"""Bytes of a fault without its reason in all the files that list it (110 + 100 or 180 measured); copies of its reason."""

Row = TypeVar("Row")
"""What a plan stores about one image."""


class Match(Enum):
    """How a plan compares with the build that was begun in a folder."""

    OTHER = "a build with other inputs or options"
    SAME = "the same build"
    REPAIRED = "the same build, but files that were missing or broken have changed since"


class ShardPlan(ABC, Generic[Row]):
    """The images of each split in order, and the faults found before any mask is made."""

    options: ShardOptions
    vocabulary: Vocabulary
    images: dict[str, list[Row]]
    faults: list[Fault]

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Name -> SHA-256 of each input of the data set."""

    @abstractmethod
    def image_root(self) -> Path | None:
        """The folder that the recorded paths start from if the data set refers to its pictures; otherwise None."""

    @abstractmethod
    def task(self, name: str, split: str, rows: list[Row]) -> ShardTask:
        """The task of one shard."""

    @abstractmethod
    def row_bytes(self, split: str, rows: list[Row]) -> int:
        """An estimate of the bytes that these images take in shards."""

    @abstractmethod
    def row_name(self, row: Row) -> tuple[int, str]:
        """The id of an image and the path of its picture, as the shard records them."""

    @abstractmethod
    def warm_up(self) -> None:
        """Compile the kernels, or load them from their cache, before any worker process has to."""

    def description(self) -> dict[str, Any]:
        """Everything that decides the shards: a build can only be resumed with an equal description."""
        root = self.image_root()
        options = asdict(self.options) | {"splits": list(self.options.splits), "image_root": str(root) if root else None}
        if not options["decode"]:
            del options["decode"]  # earlier versions had no such option; their builds stay resumable
        made_by: dict[str, Any] = {"mask_rule": MASK_RULE, "version": VERSION}
        if self.options.records_instances:
            made_by["instances"] = True
        return {"options": options, "inputs": self.inputs(), "vocabulary": self.vocabulary.digest} | made_by

    def check_inputs(self) -> None:
        """Raise DataError if the inputs that were read at the start have changed since, so that shards may be wrong."""
        return

    def unusable(self) -> dict[str, int]:
        """Split -> number of image records that are too malformed to be planned."""
        return {}

    def files_record(self) -> dict[str, Any] | None:
        """The content of files.json, which allows resuming a build after input files were lost or restored; None without it."""
        return None

    def compare(self, begun: dict[str, Any], files: dict[str, Any] | None, unsettled: Collection[str]) -> Match:
        """Compare this plan with an unfinished build.

        ``begun`` is the description of that build, ``files`` the content of its files.json, and ``unsettled`` names the shards
        that are not finished or lack images.
        """
        return Match.SAME if self.description() == begun else Match.OTHER

    def shard_counts(self) -> dict[str, int]:
        """Shard name -> number of images, in order; an empty split has no shard."""
        return {name: len(rows) for name, _, rows in self._shards()}

    def shard_rows(self) -> dict[str, str]:
        """Shard name -> SHA-256 over the ids and paths of its images, in order."""
        lines = {name: json.dumps([self.row_name(row) for row in rows]) for name, _, rows in self._shards()}
        return {name: hashlib.sha256(line.encode()).hexdigest() for name, line in lines.items()}

    def tasks(self, names: Collection[str]) -> Iterator[ShardTask]:
        """Yield the tasks of the named shards in order; each is made on request."""
        return (self.task(name, split, rows) for name, split, rows in self._shards() if name in names)

    def bytes_needed(self, names: Collection[str]) -> int:
        """An estimate of the bytes that the named shards and the index take on disk, on the safe side."""
        faults = sum(_FAULT_BYTES + _FAULT_COPIES * len(fault.reason) for fault in self.faults)
        total = len(names) * _SHARD_BYTES + _INDEX_BYTES + faults
        for split in self.images:
            rows = [row for name, of_split, chosen in self._shards() if of_split == split and name in names for row in chosen]
            total += self.row_bytes(split, rows) if rows else 0
        return int(total * _MARGIN)

    @property
    def shard_size(self) -> int:
        """The number of images in a shard; the last shard of a split may have fewer."""
        assert self.options.shard_size is not None, "plans set the shard size when they are made"
        return self.options.shard_size

    def shard_name(self, split: str, row: int) -> str:
        """The shard that holds image number ``row`` of a split."""
        return f"{split}-{row // self.shard_size:05d}"

    def _shards(self) -> Iterator[tuple[str, str, list[Row]]]:
        """Yield (shard name, split, images) of each shard."""
        for split, images in self.images.items():
            for start in range(0, len(images), self.shard_size):
                yield self.shard_name(split, start), split, images[start : start + self.shard_size]
