"""The work of one shard: annotations to masks, pictures to bytes, all into one file; runs in any process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cocolvis import compat
from cocolvis.annotations import Fault, Segment
from cocolvis.images import image_size
from cocolvis.merge import Region, merge
from cocolvis.plan import BuildOptions, ImageTask, ShardTask
from cocolvis.rasterize import BadSegmentation, rasterize
from cocolvis.shards import Sample, ShardWriter
from cocolvis.vocabulary import coco_lvis


def run_shard(task: ShardTask, shard: Path, tick: Callable[[], None]) -> dict:
    """Write the shard and return what the index needs: {"images", "bytes", "sha256", "faults"}.

    ``tick`` is called after each image. Faults of single records are collected; a file that cannot be written raises.
    """
    faults: list[Fault] = []
    attributes = {"split": task.split, "images": task.options.images, "vocabulary": task.vocabulary}
    writer = ShardWriter(shard, attributes)
    for image in task.images:
        sample = build_sample(image, task.options, task.image_root, faults)
        if sample is not None:
            writer.add(sample)
        tick()
    return writer.finish() | {"faults": faults}


def build_sample(image: ImageTask, options: BuildOptions, image_root: Path | None, faults: list[Fault]) -> Sample | None:
    """One image's sample, or None where its picture is missing or does not fit; whatever is skipped is added to ``faults``."""
    content = b"" if image_root is None else _picture(image, image_root, faults)
    if content is None:
        return None
    vocabulary = coco_lvis()
    if options.compat == "essnet":
        lookup = compat.essnet_lookup(eight_bits=len(image.stuff) == 1)
    else:
        lookup = vocabulary.lookup("stuff")
    things = vocabulary.lookup("lvis")
    mask = merge(
        _regions(image.stuff, lookup, "stuff", image, faults),
        _regions(image.things, things, "lvis", image, faults),
        image.height,
        image.width,
        overlap=options.overlap,
    )
    return Sample(
        image_id=image.image_id,
        path=image.path,
        mask=mask,
        content=content if options.images == "embed" else b"",
        neg=_class_ids(image.neg, things),
        not_exhaustive=_class_ids(image.not_exhaustive, things),
    )


def _picture(image: ImageTask, image_root: Path, faults: list[Fault]) -> bytes | None:
    def fault(kind: str, reason: str) -> None:
        faults.append(Fault(kind, "image", image.image_id, None, f"{image.path}: {reason}"))

    try:
        content = (image_root / image.path).read_bytes()
        size = image_size(content)
    except FileNotFoundError:
        return fault("missing image", "does not exist")
    except OSError as error:
        return fault("unreadable image", f"cannot be read: {error.strerror}")
    except (ValueError, IndexError) as error:
        return fault("unreadable image", str(error))
    if size != (image.height, image.width):
        return fault("wrong image size", f"is {size[0]} x {size[1]}, the annotations say {image.height} x {image.width}")
    return content


def _regions(
    segments: list[Segment], lookup: dict[int, int], source: str, image: ImageTask, faults: list[Fault]
) -> list[Region]:
    regions = []
    for segment in segments:
        try:
            if segment.category_id not in lookup:
                known = f"{min(lookup)}..{max(lookup)}"
                kind, reason = "unknown category", f"category {segment.category_id} is not among {source}'s {known}"
            else:
                spans = rasterize(segment.segmentation, image.height, image.width)
                regions.append(Region(lookup[segment.category_id], spans))
                continue
        except BadSegmentation as error:
            kind, reason = "malformed annotation", f"the segmentation {error}"
        faults.append(Fault(kind, source, image.image_id, segment.annotation_id, reason))
    return regions


def _class_ids(categories: tuple[int, ...], lookup: dict[int, int]) -> np.ndarray:
    return np.array(sorted({lookup[c] for c in categories if c in lookup}), dtype=np.uint16)
