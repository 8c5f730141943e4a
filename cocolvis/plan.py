"""What a build will do: its options, and the shard tasks, each complete in itself, that make the data set."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cocolvis import compat
from cocolvis.annotations import AnnotationFile, Fault, ImageRecord, Segment
from cocolvis.errors import DataError
from cocolvis.merge import OVERLAPS
from cocolvis.sources import SPLITS, Sources
from cocolvis.vocabulary import coco_lvis

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
    """One image with all its annotations, in file order, segmentations unparsed."""

    image_id: int
    height: int
    width: int
    path: str
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
    image_root: Path | None
    vocabulary: str


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
                if plan._belongs(image, folder, bool(things.segments(image.id))):
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
        listed, has_stuff = image.id in stuff.images, bool(stuff.segments(image.id))
        if not has_stuff:
            reason = "has no stuff annotation" if listed else f"is not in the image list of {stuff.path.name}"
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

    def tasks(self, finished: set[str]) -> Iterator[ShardTask]:
        """The tasks of all shards but the finished ones, made as they are asked for."""
        digest = coco_lvis().digest
        root = None if self.options.images == "none" else self.sources.coco
        for split, images in self.images.items():
            things = self.sources.things(split)
            for number, start in enumerate(range(0, len(images), self.options.shard_size)):
                name = f"{split}-{number:05d}"
                if name in finished:
                    continue
                chosen = images[start : start + self.options.shard_size]
                tasks = [self._image_task(things, *entry) for entry in chosen]
                yield ShardTask(name=name, split=split, images=tasks, options=self.options, image_root=root, vocabulary=digest)

    def _image_task(self, things, image: ImageRecord, folder: str, name: str) -> ImageTask:
        return ImageTask(
            image_id=image.id,
            height=image.height,
            width=image.width,
            path=f"{folder}/{name}",
            stuff=self.sources.stuff(folder).segments(image.id),
            things=things.segments(image.id),
            neg=image.neg_category_ids,
            not_exhaustive=image.not_exhaustive_category_ids,
        )
