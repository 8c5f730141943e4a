"""What a build will do: its options, and the shard tasks, each complete in itself, that make the data set."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cocolvis import compat
from cocolvis.annotations import AnnotationFile, Fault, ImageRecord, Segment
from cocolvis.archives import Place
from cocolvis.errors import DataError
from cocolvis.locations import SPLITS
from cocolvis.merge import OVERLAPS
from cocolvis.sources import Sources
from cocolvis.vocabulary import coco_lvis

_SAMPLED = 1000
"""Images of a split that are looked at to estimate the disk that the rest will take."""

_ROW_BYTES, _ANNOTATION_BYTES, _MARGIN = 400, 1, 1.05
"""A shard's bytes an image, and bytes of annotation for one byte of mask: both on the safe side of what is measured.

The generated sample and a small real tree take 160 to 185 bytes an image, and 1.6 to 2.4 bytes of annotation for one of mask.
"""

_SHARD_BYTES, _INDEX_BYTES, _FAULT_BYTES = 16_000, 250_000, 250
"""HDF5's own bytes of a shard (7,500 measured) with its report and what file systems round up; dataset.json (its vocabulary:
241,000 measured); and one fault there."""

IMAGES = ("embed", "path", "none")
"""What a shard keeps of a picture: its bytes, only its path, or only its path while no picture is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Everything but the input that decides what the shards hold.

    ``limit`` takes the first images of each split; ``shard_size`` is images a shard; ``overlap`` is one of ``OVERLAPS``;
    ``compat="essnet"`` reproduces the masks of the published generator.
    """

    splits: tuple[str, ...] = SPLITS
    limit: int | None = None
    shard_size: int = 500
    images: str = "embed"
    overlap: str = "first"
    compat: str | None = None

    def __post_init__(self):
        for name, value, allowed in (
            ("images", self.images, IMAGES),
            ("overlap", self.overlap, OVERLAPS),
            ("compat", self.compat, (None, "essnet")),
        ):
            if value not in allowed:
                raise DataError(f"{name} is {value!r}; expected one of {allowed}")
        if self.shard_size < 1 or (self.limit is not None and self.limit < 0):
            raise DataError(f"shard size {self.shard_size} and limit {self.limit}: expected 1 or more, and 0 or more")
        if self.compat and self.overlap != "first":
            raise DataError(f"overlap {self.overlap!r} with compat {self.compat!r}: the published masks know only 'first'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageTask:
    """One image with all its annotations, in file order, segmentations unparsed.

    ``path`` is what the shard records; ``picture`` where the bytes lie, None when no picture is looked at.
    """

    image_id: int
    height: int
    width: int
    path: str
    picture: Place | None
    stuff: list[Segment]
    things: list[Segment]
    neg: tuple[int, ...]
    not_exhaustive: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """Everything that one shard is made of; pickles, so that it may run anywhere that sees the same folders."""

    name: str
    split: str
    images: list[ImageTask]
    options: BuildOptions
    vocabulary: str

    def __reduce__(self):
        """Pickle as JSON: segmentations go over as they stand, and the planning process has only one core for all workers."""
        try:
            return _task_from_json, (msgspec.json.encode(self),)
        except UnicodeEncodeError:  # the name of a folder that is no UTF-8
            return _task_from_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__},)


def _task_from_json(content: bytes) -> ShardTask:
    return msgspec.json.decode(content, type=ShardTask)


def _task_from_fields(values: dict) -> ShardTask:
    return ShardTask(**values)


@dataclass(slots=True)
class Plan:
    """The images of each split, and the faults that are known before any mask is painted."""

    sources: Sources
    options: BuildOptions
    images: dict[str, list[tuple[ImageRecord, str, str]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    @classmethod
    def make(cls, sources: Sources, options: BuildOptions) -> "Plan":
        """Read the annotation files and decide which images belong to the data set."""
        plan = cls(sources, options)
        stuff_files = {}
        for split in options.splits:
            things = sources.things(split)
            plan.faults += things.faults
            plan.images[split] = []
            for image, folder, name in plan._located(things, split):
                stuff_files[folder] = sources.stuff(folder)
                if plan._belongs(image, folder, things.count(image.id) > 0):
                    plan.images[split].append((image, folder, name))
        plan.faults += [fault for file in stuff_files.values() for fault in file.faults]
        return plan

    def _located(self, things: AnnotationFile, split: str) -> Iterator[tuple[ImageRecord, str, str]]:
        """(image, folder, file name) of the split's first images whose place can be told, as many as ``limit`` allows."""
        found = 0
        for image in things.images.values():
            if found == self.options.limit:
                return
            try:
                place = self.sources.locate(image, split)
            except DataError as error:
                self.faults.append(Fault("malformed image", "lvis", image.id, None, str(error)))
                continue
            found += 1
            yield image, *place

    def _belongs(self, image: ImageRecord, folder: str, has_things: bool) -> bool:
        """Note an image without stuff; leave it out where the published generator wrote no mask."""
        stuff = self.sources.stuff(folder)
        listed, has_stuff = image.id in stuff.images, stuff.count(image.id) > 0
        if not has_stuff:
            reason = "has no stuff annotation" if listed else f"is not in the image list of stuff_{folder}.json"
            self.faults.append(Fault("no stuff", "stuff", image.id, None, reason))
        if self.options.compat:
            return image.id != compat.MISSING_IMAGE and listed and (has_stuff or has_things)
        return True

    def shard_counts(self) -> dict[str, int]:
        """Shard name -> images in it, in order; an empty split has no shard."""
        size = self.options.shard_size
        return {
            f"{split}-{number:05d}": min(size, len(images) - number * size)
            for split, images in self.images.items()
            for number in range(-(-len(images) // size))
        }

    def image_root(self) -> Path | None:
        """The folder that the recorded paths start from, for a data set that refers to its pictures; a DataError for a zip."""
        if self.options.images != "path":
            return None
        roots = {self.sources.pictures(folder).root for images in self.images.values() for _, folder, _ in images}
        if len(roots) > 1:
            raise DataError(f"the pictures lie in {' and '.join(map(str, sorted(roots)))}; --images path needs one folder")
        return next(iter(roots), None)

    def tasks(self, names: Collection[str]) -> Iterator[ShardTask]:
        """The tasks of the named shards in order, made as they are asked for."""
        digest = coco_lvis().digest
        for split, images in self.images.items():
            things = self.sources.things(split)
            for number, start in enumerate(range(0, len(images), self.options.shard_size)):
                name = f"{split}-{number:05d}"
                if name in names:
                    chosen = images[start : start + self.options.shard_size]
                    tasks = [self.image_task(things, *entry) for entry in chosen]
                    yield ShardTask(name=name, split=split, images=tasks, options=self.options, vocabulary=digest)

    def image_task(self, things: AnnotationFile, image: ImageRecord, folder: str, name: str) -> ImageTask:
        """One image with all its annotations; ``things`` is the LVIS file, ``folder``/``name`` its picture."""
        return ImageTask(
            image_id=image.id,
            height=image.height,
            width=image.width,
            path=f"{folder}/{name}",
            picture=self._picture(folder, name),
            stuff=self.sources.segments(folder, image.id),
            things=things.segments(image.id),
            neg=image.neg_category_ids,
            not_exhaustive=image.not_exhaustive_category_ids,
        )

    def _picture(self, folder: str, name: str) -> Place | None:
        return None if self.options.images == "none" else self.sources.pictures(folder).find(name)

    def bytes_needed(self, names: Collection[str]) -> int:
        """About the bytes that the named shards and the index take on disk: measured pictures, masks by their annotations."""
        total = len(names) * _SHARD_BYTES + _INDEX_BYTES + len(self.faults) * _FAULT_BYTES
        for split, images in self.images.items():
            rows = [
                row
                for number, start in enumerate(range(0, len(images), self.options.shard_size))
                if f"{split}-{number:05d}" in names
                for row in images[start : start + self.options.shard_size]
            ]
            looked_at = rows[:: max(1, len(rows) // _SAMPLED)]
            if looked_at:
                total += len(rows) * sum(self._row_bytes(split, *row) for row in looked_at) // len(looked_at)
        return int(total * _MARGIN)

    def _row_bytes(self, split: str, image: ImageRecord, folder: str, name: str) -> int:
        segments = self.sources.things(split).segments(image.id) + self.sources.segments(folder, image.id)
        masks = _ROW_BYTES + sum(len(segment.segmentation) for segment in segments) // _ANNOTATION_BYTES
        picture = self._picture(folder, name) if self.options.images == "embed" else None
        return masks + (picture.length() if picture else 0)
