"""The work of one shard: annotations to masks, pictures to bytes, all into one file; runs in any process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cocolvis import compat, runlength
from cocolvis.annotations import Fault, Segment
from cocolvis.images import image_size
from cocolvis.merge import Region, merge
from cocolvis.plan import BuildOptions, ImageTask, ShardTask
from cocolvis.rasterize import BadSegmentation, Spans, rasterize
from cocolvis.shards import Sample, ShardWriter
from cocolvis.vocabulary import coco_lvis


def run_shard(task: ShardTask, shard: Path, tick: Callable[[], None] = lambda: None) -> dict:
    """Write the shard and return what the index needs: {"images", "bytes", "sha256", "faults"}.

    ``tick`` is called after each image. Faults of single records are collected; a file that cannot be written raises.
    """
    faults: list[Fault] = []
    attributes = {"split": task.split, "images": task.options.images, "vocabulary": task.vocabulary}
    writer = ShardWriter(shard, attributes)
    for image in task.images:
        sample = build_sample(image, task.options, faults)
        if sample is not None:
            writer.add(sample)
        tick()
    return writer.finish() | {"faults": faults}


def build_sample(image: ImageTask, options: BuildOptions, faults: list[Fault]) -> Sample | None:
    """One image's sample, or None where its picture is missing or does not fit; whatever is skipped is added to ``faults``."""
    content = b"" if image.picture is None else _picture(image, faults)
    if content is None:
        return None
    mask = merge(*regions(image, options, faults), image.height, image.width, overlap=options.overlap)
    things = coco_lvis().lookup("lvis")
    return Sample(
        image_id=image.image_id,
        path=image.path,
        mask=mask,
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


def _picture(image: ImageTask, faults: list[Fault]) -> bytes | None:
    def fault(kind: str, reason: str) -> None:
        faults.append(Fault(kind, "image", image.image_id, None, f"{image.path}: {reason}"))

    try:
        content = image.picture.read()
        size = image_size(content)
    except (FileNotFoundError, NotADirectoryError):
        return fault("missing image", "does not exist")
    except OSError as error:
        return fault("unreadable image", f"cannot be read: {error.strerror}")
    except (ValueError, IndexError) as error:
        return fault("unreadable image", str(error))
    if size != (image.height, image.width):
        return fault("wrong image size", f"is {size[0]} x {size[1]}, the annotations say {image.height} x {image.width}")
    return content


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
