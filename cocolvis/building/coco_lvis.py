"""COCO+LVIS: the plan of which images belong to it, and the task that makes masks from their annotations."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cocolvis.building.shard_plan import ROW_BYTES, ShardPlan
from cocolvis.building.shard_task import ShardOptions, ShardTask, read_picture
from cocolvis.disk.archives import Place
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.masks import compat, runlength
from cocolvis.masks.merge import OVERLAPS, Region, merge, merge_at_once
from cocolvis.masks.rasterize import BadSegmentation, Spans, rasterize, rasterize_all
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.sources.annotations import AnnotationFile, ImageRecord, Segment
from cocolvis.sources.inputs import Sources
from cocolvis.storage.samples import Sample
from cocolvis.vocabulary import Vocabulary, coco_lvis

_SAMPLED = 250
"""How many images of a split are measured to estimate the disk space of all of them."""

_ANNOTATION_BYTES = 1
"""Bytes of annotation for one byte of mask, on the safe side; 1.6 to 2.4 are measured."""

_Row = tuple[ImageRecord, str, str]
"""An image, and the folder and the file name of its picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoLvisOptions(ShardOptions):
    """Everything besides the annotations and pictures that decides the shards of COCO+LVIS.

    ``overlap`` is one of ``OVERLAPS``; ``compat="essnet"`` reproduces the masks of the published generator. Raises DataError if
    a value is out of range or contradicts another one.
    """

    shard_size: int = 500
    overlap: str = "first"
    compat: str | None = None

    records_instances = True

    def __post_init__(self):
        ShardOptions.__post_init__(self)  # super() without arguments fails in a dataclass with slots
        for name, value, allowed in (("overlap", self.overlap, OVERLAPS), ("compat", self.compat, (None, "essnet"))):
            if value not in allowed:
                raise DataError(f"{name} is {value!r}; expected one of {allowed}")
        if self.compat and self.overlap != "first":
            raise DataError(f"overlap {self.overlap!r} with compat {self.compat!r}: the published masks know only 'first'")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnnotatedImage:
    """One image with all its annotations in file order; the segmentations are not parsed yet.

    ``path`` is recorded in the shard; ``picture`` is the location of the bytes, None if they are not read.
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
class CocoLvisTask(ShardTask[AnnotatedImage]):
    """The task of a shard of COCO+LVIS."""

    images: list[AnnotatedImage]
    options: CocoLvisOptions

    def sample(self, image: AnnotatedImage, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """One image with its merged mask; see :func:`build_sample`."""
        return build_sample(image, self.options, faults, seen)

    def __reduce__(self):
        """Pickle as JSON, which copies segmentations unparsed: one planning process has to keep all workers busy."""
        try:
            return _task_from_json, (msgspec.json.encode(self),)
        except UnicodeEncodeError:  # the name of a folder is not UTF-8
            return _task_from_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__},)


def _task_from_json(content: bytes) -> CocoLvisTask:
    return msgspec.json.decode(content, type=CocoLvisTask)


def _task_from_fields(values: dict[str, Any]) -> CocoLvisTask:
    return CocoLvisTask(**values)


def build_sample(
    image: AnnotatedImage, options: CocoLvisOptions, faults: list[Fault], seen: Counter[str] | None = None
) -> Sample | None:
    """The sample of one image, or None if its picture is missing or of another size; everything skipped is added to ``faults``.

    ``seen`` counts remarks on pictures (:mod:`cocolvis.pictures.remarks`).
    """
    size = image.height, image.width
    content = read_picture(image, size, "the annotations say", faults, decode=options.decode, seen=seen)
    if content is None:
        return None
    runs, painted = _merged_at_once(image, options) or _merged(image, options, faults)
    lookup = coco_lvis().lookup("lvis")
    return Sample(
        image_id=image.image_id,
        path=image.path,
        runs=runs,
        content=content if options.images == "embed" else b"",
        neg=_class_ids(image.neg, lookup),
        not_exhaustive=_class_ids(image.not_exhaustive, lookup),
        instances=Counter(painted),
    )


def _merged_at_once(image: AnnotatedImage, options: CocoLvisOptions) -> tuple[Runs, list[int]] | None:
    """What :func:`_merged` returns, by one compiled call; None if an annotation or an option is unusual."""
    if options.overlap != "first" or options.compat:
        return None
    things, stuff = coco_lvis().lookup("lvis"), coco_lvis().lookup("stuff")
    try:
        class_ids = [things[segment.category_id] for segment in image.things]
        class_ids += [stuff[segment.category_id] for segment in image.stuff]
    except KeyError:
        return None
    segmentations = [segment.segmentation for segment in (*image.things, *image.stuff)]
    found = merge_at_once(segmentations, class_ids, image.height, image.width)
    if found is None:
        return None
    runs, painted = found
    return runs, list(compress(class_ids[: len(image.things)], painted))


def _merged(image: AnnotatedImage, options: CocoLvisOptions, faults: list[Fault]) -> tuple[Runs, list[int]]:
    """(the mask of an image, the class of each thing that covers a pixel); what is left out is added to ``faults``."""
    stuff, things = regions(image, options, faults)
    runs = merge(stuff, things, image.height, image.width, overlap=options.overlap)
    return runs, [region.class_id for region in things if region.spans.starts.size]


def regions(image: AnnotatedImage, options: CocoLvisOptions, faults: list[Fault]) -> tuple[list[Region], list[Region]]:
    """The regions of stuff and of things in file order, each with its annotation; what is left out is added to ``faults``."""
    things, lookup = coco_lvis().lookup("lvis"), coco_lvis().lookup("stuff")
    spans = rasterize_all([s.segmentation for s in (*image.things, *image.stuff)], image.height, image.width)
    count = len(image.things)
    painted_things = _painted(image.things, spans[:count], things, "lvis", image.image_id, faults)
    painted_stuff = _painted(image.stuff, spans[count:], lookup, "stuff", image.image_id, faults)
    if options.compat == "essnet":
        lookup = compat.essnet_lookup(eight_bits=len(painted_stuff) == 1)
    return (
        [Region(lookup[segment.category_id], spans, segment) for segment, spans in painted_stuff],
        [Region(things[segment.category_id], spans, segment) for segment, spans in painted_things],
    )


def warm_up() -> None:
    """Compile the kernels that merge, or load them from their cache."""
    plain = b"[[0,0,2,0,2,2],[0,0,1,1,0,2]]", b'{"size":[2,2],"counts":"04"}'
    unusual = b"[[0,0,2e0,0,2,2]]", b'{"size":[2,2],"counts":"04","id":1}', b'{"size":[2,2],"counts":[0,4]}'
    merge_at_once(plain, [1, 1], 2, 2)
    for segmentation in unusual:
        runs = merge([Region(1, rasterize(segmentation, 2, 2))], [], 2, 2)
    runlength.pixel_counts(runs.classes, runs.lengths)


def _painted(
    segments: list[Segment],
    found: list[Spans | BadSegmentation],
    known: dict[int, int],
    source: str,
    image_id: int,
    faults: list[Fault],
) -> list[tuple[Segment, Spans]]:
    """Each segment with its pixels, in order; a segment that is malformed or of an unknown category becomes a fault."""
    painted = []
    for segment, spans in zip(segments, found, strict=True):
        if segment.category_id not in known:
            kind, reason = "unknown category", f"{segment.category_id} is not among {source}'s {min(known)}..{max(known)}"
        elif isinstance(spans, BadSegmentation):
            kind, reason = "malformed annotation", f"the segmentation {spans}"
        else:
            painted.append((segment, spans))
            continue
        faults.append(Fault(kind, source, image_id, segment.annotation_id, reason))
    return painted


def _class_ids(categories: tuple[int, ...], lookup: dict[int, int]) -> np.ndarray:
    return np.array(sorted({lookup[c] for c in categories if c in lookup}), dtype=np.uint16)


@dataclass(slots=True)
class CocoLvisPlan(ShardPlan[_Row]):
    """The plan of COCO+LVIS: a row is an image with the folder and the file name of its picture."""

    sources: Sources
    options: CocoLvisOptions
    vocabulary: Vocabulary = field(default_factory=coco_lvis)
    images: dict[str, list[_Row]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    _unusable: dict[str, int] = field(default_factory=dict)

    @classmethod
    def make(cls, sources: Sources, options: CocoLvisOptions) -> "CocoLvisPlan":
        """Read the annotation files and decide which images belong to the data set."""
        plan = cls(sources, options)
        stuff_files: dict[str, AnnotationFile] = {}
        split_of: dict[int, str] = {}
        for split in options.splits:
            things, before = sources.things(split), len(plan.faults)
            plan.faults += things.faults
            plan.images[split] = []
            for image, folder, name in plan._located(things, split):
                stuff_files[folder] = sources.stuff(folder)
                if split_of.setdefault(image.id, split) != split:
                    reason = f"split {split_of[image.id]} has an image with this id too; both are kept"
                    plan.faults.append(Fault("image in two splits", "lvis", image.id, None, reason))
                if plan._belongs(image, folder, things.count(image.id) > 0):
                    plan.images[split].append((image, folder, name))
            malformed = sum(fault.kind == "malformed image" for fault in plan.faults[before:])
            plan._unusable[split] = 0 if options.limit == 0 else malformed
        plan.faults += [fault for file in stuff_files.values() for fault in file.faults]
        return plan

    def _located(self, things: AnnotationFile, split: str) -> Iterator[_Row]:
        """The first images of the split whose pictures can be located, as many as ``limit`` allows."""
        located = 0
        for image in things.images.values():
            if located == self.options.limit:
                return
            try:
                place = self.sources.locate(image, split)
            except DataError as error:
                self.faults.append(Fault("malformed image", "lvis", image.id, None, str(error)))
                continue
            located += 1
            yield image, *place

    def _belongs(self, image: ImageRecord, folder: str, has_things: bool) -> bool:
        """Whether an image is part of the data set: not if ``compat`` is set and the published generator wrote no mask for it.

        An image without stuff becomes a fault.
        """
        stuff = self.sources.stuff(folder)
        listed, has_stuff = image.id in stuff.images, stuff.count(image.id) > 0
        if not has_stuff:
            reason = "has no stuff annotation" if listed else f"is not in the image list of stuff_{folder}.json"
            self.faults.append(Fault("no stuff", "stuff", image.id, None, reason))
        if self.options.compat:
            return image.id != compat.MISSING_IMAGE and listed and (has_stuff or has_things)
        return True

    def unusable(self) -> dict[str, int]:
        """Split -> images of the LVIS file whose records are malformed; 0 if ``limit`` is 0."""
        return self._unusable

    def inputs(self) -> dict[str, str]:
        """File name -> SHA-256 of each annotation file that was read."""
        return self.sources.digests()

    def check_inputs(self) -> None:
        """Raise DataError if an annotation file was overwritten since it was read."""
        self.sources.check_unchanged()

    def image_root(self) -> Path | None:
        """The folder that the recorded paths start from if the data set refers to its pictures.

        Raises DataError if they are in a zip.
        """
        if self.options.images != "path":
            return None
        roots = {self.sources.pictures(folder).root for images in self.images.values() for _, folder, _ in images}
        if len(roots) > 1:
            raise DataError(f"the pictures are in {' and '.join(map(str, sorted(roots)))}; --images path needs one folder")
        return next(iter(roots), None)

    def task(self, name: str, split: str, rows: list[_Row]) -> CocoLvisTask:
        """The task of one shard, with all annotations of its images."""
        things = self.sources.things(split)
        images = [self.annotated_image(things, *row) for row in rows]
        return CocoLvisTask(name=name, split=split, images=images, options=self.options, vocabulary=self.vocabulary.digest)

    def annotated_image(self, things: AnnotationFile, image: ImageRecord, folder: str, name: str) -> AnnotatedImage:
        """One image with all its annotations, ``things`` of its split included; its picture is ``folder``/``name``."""
        return AnnotatedImage(
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

    def row_name(self, row: _Row) -> tuple[int, str]:
        """The image's id, and the path of its picture below the folder of all pictures."""
        image, folder, name = row
        return image.id, f"{folder}/{name}"

    def warm_up(self) -> None:
        """Compile the kernels that merge, and with ``decode`` those of the JPEG check, or load them from their cache."""
        warm_up()
        if self.options.decode:
            encoded.warm_up()

    def _picture(self, folder: str, name: str) -> Place | None:
        return None if self.options.images == "none" else self.sources.pictures(folder).find(name)

    def row_bytes(self, split: str, rows: list[_Row]) -> int:
        """An estimate from some of the rows: pictures by the size of their files, masks by the size of their annotations."""
        sampled = rows[:: max(1, len(rows) // _SAMPLED)]
        return len(rows) * sum(self._bytes_of(split, *row) for row in sampled) // len(sampled)

    def _bytes_of(self, split: str, image: ImageRecord, folder: str, name: str) -> int:
        segments = self.sources.things(split).segments(image.id) + self.sources.segments(folder, image.id)
        masks = ROW_BYTES + sum(len(segment.segmentation) for segment in segments) // _ANNOTATION_BYTES
        picture = self._picture(folder, name) if self.options.images == "embed" else None
        return masks + (picture.length() if picture else 0)
