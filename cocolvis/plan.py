"""What a build of COCO+LVIS will do: which images belong to it, and the shard tasks, each complete in itself, that make it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cocolvis import compat, images, merge_task
from cocolvis.annotations import AnnotationFile, Fault, ImageRecord
from cocolvis.archives import Place
from cocolvis.errors import DataError
from cocolvis.merge_task import BuildOptions, ImageTask, MergeTask
from cocolvis.shard_plan import ROW_BYTES, ShardPlan
from cocolvis.sources import Sources
from cocolvis.vocabulary import Vocabulary, coco_lvis

_SAMPLED = 1000
"""Images of a split that are looked at to estimate the disk that the rest will take."""

_ANNOTATION_BYTES = 1
"""Bytes of annotation for one byte of mask, on the safe side: the generated sample and a small real tree have 1.6 to 2.4."""


@dataclass(slots=True)
class Plan(ShardPlan):
    """A build of COCO+LVIS: a row is an image with the folder and the name of its picture."""

    sources: Sources
    options: BuildOptions
    images: dict[str, list[tuple[ImageRecord, str, str]]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    _unusable: dict[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, sources: Sources, options: BuildOptions) -> "Plan":
        """Read the annotation files and decide which images belong to the data set."""
        plan = cls(sources, options)
        stuff_files, seen = {}, {}
        for split in options.splits:
            things, known = sources.things(split), len(plan.faults)
            plan.faults += things.faults
            plan.images[split] = []
            for image, folder, name in plan._located(things, split):
                stuff_files[folder] = sources.stuff(folder)
                if seen.setdefault(image.id, split) != split:
                    reason = f"the split {seen[image.id]} has an image of this id, too; both are kept"
                    plan.faults.append(Fault("image in two splits", "lvis", image.id, None, reason))
                if plan._belongs(image, folder, things.count(image.id) > 0):
                    plan.images[split].append((image, folder, name))
            malformed = sum(fault.kind == "malformed image" for fault in plan.faults[known:])
            plan._unusable[split] = 0 if options.limit == 0 else malformed
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

    @property
    def vocabulary(self) -> Vocabulary:
        """The 1284 classes."""
        return coco_lvis()

    def unusable(self) -> dict[str, int]:
        """Split -> images of the LVIS file whose records are malformed; 0 where none was asked for."""
        return self._unusable

    def inputs(self) -> dict[str, str]:
        """File name -> SHA-256 of each annotation file that was read."""
        return self.sources.digests()

    def image_root(self) -> Path | None:
        """The folder that the recorded paths start from, for a data set that refers to its pictures; a DataError for a zip."""
        if self.options.images != "path":
            return None
        roots = {self.sources.pictures(folder).root for images in self.images.values() for _, folder, _ in images}
        if len(roots) > 1:
            raise DataError(f"the pictures lie in {' and '.join(map(str, sorted(roots)))}; --images path needs one folder")
        return next(iter(roots), None)

    def task(self, name: str, split: str, rows: list[tuple[ImageRecord, str, str]]) -> MergeTask:
        """The task of one shard, with all annotations of its images."""
        things = self.sources.things(split)
        tasks = [self.image_task(things, *row) for row in rows]
        return MergeTask(name=name, split=split, images=tasks, options=self.options, vocabulary=self.vocabulary.digest)

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

    def row_name(self, row: tuple[ImageRecord, str, str]) -> tuple[int, str]:
        """The image's id, and its path from the folder of the pictures."""
        image, folder, name = row
        return image.id, f"{folder}/{name}"

    def warm_up(self) -> None:
        """Compile or load the kernels that merge."""
        merge_task.warm_up()
        if self.options.decode:
            images.warm_up()

    def _picture(self, folder: str, name: str) -> Place | None:
        return None if self.options.images == "none" else self.sources.pictures(folder).find(name)

    def row_bytes(self, split: str, rows: list[tuple[ImageRecord, str, str]]) -> int:
        """Measured on some rows: pictures by their files, masks by their annotations."""
        looked_at = rows[:: max(1, len(rows) // _SAMPLED)]
        return len(rows) * sum(self._bytes_of(split, *row) for row in looked_at) // len(looked_at)

    def _bytes_of(self, split: str, image: ImageRecord, folder: str, name: str) -> int:
        segments = self.sources.things(split).segments(image.id) + self.sources.segments(folder, image.id)
        masks = ROW_BYTES + sum(len(segment.segmentation) for segment in segments) // _ANNOTATION_BYTES
        picture = self._picture(folder, name) if self.options.images == "embed" else None
        return masks + (picture.length() if picture else 0)
