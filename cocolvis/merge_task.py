"""The work of one shard of COCO+LVIS: an image's annotations to its mask."""

from collections import Counter
from dataclasses import dataclass

import msgspec
import numpy as np

from cocolvis import compat, runlength
from cocolvis.annotations import Fault, Segment
from cocolvis.archives import Place
from cocolvis.errors import DataError
from cocolvis.merge import OVERLAPS, Region, merge
from cocolvis.rasterize import BadSegmentation, Spans, rasterize
from cocolvis.runlength import Runs
from cocolvis.shard_plan import ShardOptions
from cocolvis.shard_task import ShardTask, read_picture
from cocolvis.shards import Sample
from cocolvis.vocabulary import coco_lvis


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions(ShardOptions):
    """What decides the shards of COCO+LVIS, but for the input.

    ``overlap`` is one of ``OVERLAPS``; ``compat="essnet"`` reproduces the masks of the published generator.
    """

    overlap: str = "first"
    compat: str | None = None

    def __post_init__(self):
        ShardOptions.__post_init__(self)  # super() does not know a class with slots
        for name, value, allowed in (("overlap", self.overlap, OVERLAPS), ("compat", self.compat, (None, "essnet"))):
            if value not in allowed:
                raise DataError(f"{name} is {value!r}; expected one of {allowed}")
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
class MergeTask(ShardTask):
    """A shard of COCO+LVIS."""

    images: list[ImageTask]
    options: BuildOptions

    def sample(self, image: ImageTask, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """One image with its merged mask, as :func:`build_sample` makes it."""
        return build_sample(image, self.options, faults, seen)

    def __reduce__(self):
        """Pickle as JSON: segmentations go over as they stand, and the planning process has only one core for all workers."""
        try:
            return _task_from_json, (msgspec.json.encode(self),)
        except UnicodeEncodeError:  # the name of a folder that is no UTF-8
            return _task_from_fields, ({name: getattr(self, name) for name in self.__dataclass_fields__},)


def _task_from_json(content: bytes) -> MergeTask:
    return msgspec.json.decode(content, type=MergeTask)


def _task_from_fields(values: dict) -> MergeTask:
    return MergeTask(**values)


def build_sample(
    image: ImageTask, options: BuildOptions, faults: list[Fault], seen: Counter[str] | None = None
) -> Sample | None:
    """One image's sample, or None where its picture is missing or does not fit; whatever is skipped is added to ``faults``.

    ``seen`` counts remarks on pictures.
    """
    size, content = (image.height, image.width), b""
    if image.picture is not None:
        content = read_picture(image, size, "the annotations say", faults, decode=options.decode, seen=seen)
    if content is None:
        return None
    mask = merge(*regions(image, options, faults), image.height, image.width, overlap=options.overlap)
    things = coco_lvis().lookup("lvis")
    return Sample(
        image_id=image.image_id,
        path=image.path,
        runs=Runs.of(mask),
        content=content if options.images == "embed" else b"",
        neg=_class_ids(image.neg, things),
        not_exhaustive=_class_ids(image.not_exhaustive, things),
    )


def regions(image: ImageTask, options: BuildOptions, faults: list[Fault]) -> tuple[list[Region], list[Region]]:
    """The regions of stuff and of things, each with its annotation, in file order; what is left out is added to ``faults``."""
    things, lookup = coco_lvis().lookup("lvis"), coco_lvis().lookup("stuff")
    painted_things = _painted(image.things, things, "lvis", image, faults)
    painted_stuff = _painted(image.stuff, lookup, "stuff", image, faults)
    if options.compat == "essnet":
        lookup = compat.essnet_lookup(eight_bits=len(painted_stuff) == 1)
    return (
        [Region(lookup[segment.category_id], spans, segment) for segment, spans in painted_stuff],
        [Region(things[segment.category_id], spans, segment) for segment, spans in painted_things],
    )


def warm_up() -> None:
    """Compile the kernels, or load them from their cache, before processes start that would each do it."""
    for segmentation in (b"[[0,0,2,0,2,2],[0,0,1,1,0,2]]", b'{"size":[2,2],"counts":"04"}', b'{"size":[2,2],"counts":[0,4]}'):
        mask = merge([Region(1, rasterize(segmentation, 2, 2))], [], 2, 2)
    runlength.pixel_counts(*runlength.encode(mask))


def _painted(
    segments: list[Segment], known: dict[int, int], source: str, image: ImageTask, faults: list[Fault]
) -> list[tuple[Segment, Spans]]:
    """Each segment with its pixels in order; those of an unknown category, or malformed, become faults."""
    painted = []
    for segment in segments:
        if segment.category_id not in known:
            kind, reason = "unknown category", f"{segment.category_id} is not among {source}'s {min(known)}..{max(known)}"
        else:
            try:
                painted.append((segment, rasterize(segment.segmentation, image.height, image.width)))
                continue
            except BadSegmentation as error:
                kind, reason = "malformed annotation", f"the segmentation {error}"
        faults.append(Fault(kind, source, image.image_id, segment.annotation_id, reason))
    return painted


def _class_ids(categories: tuple[int, ...], lookup: dict[int, int]) -> np.ndarray:
    return np.array(sorted({lookup[c] for c in categories if c in lookup}), dtype=np.uint16)
