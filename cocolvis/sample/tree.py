"""Writes planned images as a COCO + LVIS tree: the pictures, and annotations in the formats of the real data sets."""

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.progress import Progress
from cocolvis.sample.processes import in_order
from cocolvis.sample.scenes import Look, Picture, paint
from cocolvis.vocabulary import STUFF_OTHER, ClassInfo, coco_lvis

SPLITS = ("train", "val")
FOLDERS = ("train2017", "val2017")
MAX_IMAGE_ID = 581_929


@dataclass(slots=True)
class Scene:
    """One planned image: its folder, and the classes that it shows, ``things`` front-most first.

    ``index`` chooses the random numbers with which it is painted.
    """

    index: int
    image_id: int
    split: str
    folder: str
    things: list[ClassInfo]
    stuff: list[ClassInfo]
    role: str = ""


@dataclass(slots=True)
class Drawing:
    """How scenes are drawn: the ``used`` classes, their looks, the size in pixels, and the seed.

    With ``heights``, class id -> place between top (0) and bottom (1), stuff is stacked in layers; see
    :func:`cocolvis.sample.scenes.paint`.
    """

    used: Sequence[ClassInfo]
    looks: dict[int, Look]
    size: int
    seed: tuple[int, ...]
    heights: dict[int, float] | None = None


class _Records(NamedTuple):
    """The records of one image as JSON texts; those of annotations lack the id, which is counted through the whole file."""

    stuff_image: str
    stuff: list[str]
    lvis_image: str
    lvis: list[str]


@dataclass(slots=True)
class _File:
    """The records of one annotation file as JSON texts."""

    images: list[str] = field(default_factory=list)
    annotations: list[str] = field(default_factory=list)


def write_tree(root: Path, scenes: Sequence[Scene], drawing: Drawing, progress: Progress, workers: int = 1) -> None:
    """Paint the ``scenes`` in ``workers`` processes and write the tree to the existing folder ``root``.

    The bytes do not depend on ``workers``. ``progress`` is called with (images written, images).
    """
    for folder in ("coco/train2017", "coco/val2017", "coco/annotations", "lvis"):
        (root / folder).mkdir(parents=True)
    stuff, lvis = {folder: _File() for folder in FOLDERS}, {split: _File() for split in SPLITS}
    with closing(in_order(partial(_write_image, root, drawing), scenes, workers)) as results:
        for done, (scene, records) in enumerate(zip(scenes, results, strict=True), 1):
            if scene.role != "unlisted":
                stuff[scene.folder].images.append(records.stuff_image)
            stuff[scene.folder].annotations += records.stuff
            lvis[scene.split].images.append(records.lvis_image)
            lvis[scene.split].annotations += records.lvis
            progress(done, len(scenes))
    for folder, file in stuff.items():
        _write_json(root / "coco" / "annotations" / f"stuff_{folder}.json", file, 10_000_001, _stuff_categories())
    for split, file in lvis.items():
        _write_json(root / "lvis" / f"lvis_v1_{split}.json", file, 1, _lvis_categories())


def write_jpeg(path: Path, picture: np.ndarray, gray: bool = False) -> None:
    """Write an (H, W, 3) uint8 RGB picture as JPEG of quality 95 with full colour resolution."""
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY if gray else cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    path.write_bytes(cv2.imencode(".jpg", pixels, quality)[1].tobytes())


def _write_image(root: Path, drawing: Drawing, scene: Scene) -> _Records:
    """Paint a scene and write its picture."""
    rng = np.random.default_rng([*drawing.seed, scene.index])
    heights = None if drawing.heights is None else [drawing.heights[c.id] for c in scene.stuff]
    picture = paint(scene.things, scene.stuff, drawing.looks, drawing.size, rng, heights)
    name = f"{scene.image_id:012d}.jpg"
    write_jpeg(root / "coco" / scene.folder / name, picture.pixels, gray=scene.role == "gray")
    record = _image_record(scene, *picture.pixels.shape[:2])
    return _Records(
        _text({"file_name": name, **record}),
        [_text(a) for a in _stuff_annotations(scene, picture)],
        _text(record | _federated(scene, drawing.used, rng)),
        [_text(a) for a in _thing_annotations(scene, picture)],
    )


def _text(record: object) -> str:
    return json.dumps(record, separators=(",", ":"))


def _thing_annotations(scene: Scene, picture: Picture) -> list[dict]:
    return [
        _annotation(scene, o.class_info.sources["lvis"], o.mask, [outline.ravel().tolist() for outline in o.outlines])
        for o in picture.objects
    ]


def _stuff_annotations(scene: Scene, picture: Picture) -> list[dict]:
    """One annotation per visible stuff class, in ascending order; "other" covers the things, as in COCO-Stuff."""
    visible = [(c.sources["stuff"], region) for c, region in zip(scene.stuff, picture.regions, strict=True)]
    visible += [(STUFF_OTHER, picture.covered)] if scene.stuff else []
    visible.sort(key=lambda v: v[0])
    return [_annotation(scene, category, mask) | {"iscrowd": 0} for category, mask in visible if mask.any()]


def _annotation(scene: Scene, category: int, mask: np.ndarray, polygons: list[list[float]] | None = None) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "image_id": scene.image_id,
        "category_id": category,
        "segmentation": polygons or {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
    }


def _image_record(scene: Scene, height: int, width: int) -> dict:
    return {
        "id": scene.image_id,
        "coco_url": f"http://images.cocodataset.org/{scene.folder}/{scene.image_id:012d}.jpg",
        "height": height,
        "width": width,
        "license": 1,
        "flickr_url": "",
        "date_captured": "2013-11-14 00:00:00",
    }


def _federated(scene: Scene, used: Sequence[ClassInfo], rng: np.random.Generator) -> dict:
    """LVIS's federated lists: some categories as verified to be absent, some present ones as not exhaustively annotated."""
    shown = {c.id for c in scene.things + scene.stuff}
    absent = [c.sources["lvis"] for c in used if "lvis" in c.sources and c.id not in shown]
    verified = rng.choice(absent, size=min(len(absent), int(rng.integers(2, 8))), replace=False)
    unfinished = [c.sources["lvis"] for c in scene.things if rng.random() < 0.1]
    return {"neg_category_ids": sorted(verified.tolist()), "not_exhaustive_category_ids": sorted(unfinished)}


def _lvis_categories() -> list[dict]:
    return [
        {
            "frequency": (c.group or "")[:1],
            "synset": c.synset,
            "synonyms": [c.name],
            "id": c.sources["lvis"],
            "def": "",
            "name": c.name,
            "image_count": c.images,
        }
        for c in coco_lvis()
        if "lvis" in c.sources
    ]


def _stuff_categories() -> list[dict]:
    names = sorted(coco_lvis().categories("stuff").items())
    return [{"supercategory": name.split("-")[0], "id": i, "name": name} for i, name in names]


def _write_json(path: Path, file: _File, first_id: int, categories: list[dict]) -> None:
    """Write an annotation file piece by piece; the annotations get consecutive ids from ``first_id`` on."""
    info = {"description": "generated by cocolvis sample", "version": "1.0"}
    licenses = [{"id": 1, "name": "generated, free of rights", "url": ""}]
    with path.open("w", encoding="utf-8") as out:
        out.write(f'{{"info":{_text(info)},"licenses":{_text(licenses)},"images":[')
        out.writelines(f"{',' if k else ''}{image}" for k, image in enumerate(file.images))
        out.write('],"annotations":[')
        out.writelines(f'{"," if k else ""}{{"id":{first_id + k},{a[1:]}' for k, a in enumerate(file.annotations))
        out.write(f'],"categories":{_text(categories)}}}')
