"""Writes a generated COCO + LVIS tree: procedural pictures with exact annotations in the formats of the real data sets."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.disk.files import reason
from cocolvis.errors import DataError
from cocolvis.progress import Progress, ignore
from cocolvis.sample.scenes import GOLDEN, Picture, looks_of, paint
from cocolvis.vocabulary import STUFF_OTHER, ClassInfo, coco_lvis

ODDITIES = {"train": ("", "no stuff", "gray", "unlisted", "no things", "no stuff"), "val": ("", "no stuff")}
TURNS = ("stuff", "frequent", "common", "stuff", "frequent", "rare")
MAX_IMAGE_ID = 581_929
PARTIAL = ".cocolvis-sample.partial"


@dataclass(slots=True)
class _Scene:
    """One planned image: its folder, and the classes that it shows, ``things`` front-most first."""

    index: int
    image_id: int
    split: str
    folder: str
    things: list[ClassInfo]
    stuff: list[ClassInfo]
    role: str = ""


def write_sample(
    out: Path,
    *,
    images: int = 120,
    classes: int = 120,
    size: int = 96,
    seed: int = 0,
    progress: Progress = ignore,
) -> None:
    """Write a generated COCO + LVIS tree to the folder ``out``, with the layout of the real data sets.

    A quarter of the ``images`` form the LVIS val split. They show ``classes`` of the 1284 classes, each with its own colours,
    texture and (for things) outline, which do not depend on ``seed``. Width and height are within 25 % of ``size`` pixels.
    ``progress`` is called with (images written, images). The same arguments produce the same bytes. ``out`` must be new or
    empty and stays so until everything is written. Raises DataError if an argument is out of range, or if the folder is not
    empty or cannot be written.
    """
    out = Path(out)
    partial, existed = out / PARTIAL, out.is_dir()
    try:
        _check(out, images, classes, size, seed)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_tree(partial, images, classes, size, seed, progress)
        for part in ("coco", "lvis"):
            (partial / part).rename(out / part)
    except OSError as error:
        raise DataError(f"{out}: cannot write the sample: {reason(error)}; choose a folder that you can write to") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _check(out: Path, images: int, classes: int, size: int, seed: int) -> None:
    total = len(coco_lvis())
    if not 8 <= images <= MAX_IMAGE_ID:
        raise DataError(f"sample: images is {images}, expected 8..{MAX_IMAGE_ID}")
    if not 20 <= classes <= total:
        raise DataError(f"sample: classes is {classes}, expected 20..{total}")
    if size < 32:
        raise DataError(f"sample: size is {size} pixels, expected 32 or more")
    if seed < 0:
        raise DataError(f"sample: seed is {seed}, expected 0 or more")
    if out.exists() and (not out.is_dir() or any(p.name != PARTIAL for p in out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose a new folder, or remove this one first")


def _write_tree(root: Path, images: int, classes: int, size: int, seed: int, progress: Progress) -> None:
    used = _used_classes(classes)
    looks = looks_of(used, size)
    for folder in ("coco/train2017", "coco/val2017", "coco/annotations", "lvis"):
        (root / folder).mkdir(parents=True)
    stuff: dict[str, dict[str, list]] = {folder: {"images": [], "annotations": []} for folder in ("train2017", "val2017")}
    lvis: dict[str, dict[str, list]] = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    for done, scene in enumerate(_plan(used, images, seed), 1):
        rng = np.random.default_rng([seed, scene.index])
        picture = paint(scene.things, scene.stuff, looks, size, rng)
        _write_jpeg(root / "coco" / scene.folder / f"{scene.image_id:012d}.jpg", picture.pixels, gray=scene.role == "gray")
        record = _image_record(scene, *picture.pixels.shape[:2])
        if scene.role != "unlisted":
            stuff[scene.folder]["images"].append({"file_name": f"{scene.image_id:012d}.jpg", **record})
        stuff[scene.folder]["annotations"] += _stuff_annotations(scene, picture)
        lvis[scene.split]["images"].append(record | _federated(scene, used, rng))
        lvis[scene.split]["annotations"] += _thing_annotations(scene, picture)
        progress(done, images)
    for folder, content in stuff.items():
        _write_json(root / "coco" / "annotations" / f"stuff_{folder}.json", content, 10_000_001, _stuff_categories())
    for split, content in lvis.items():
        _write_json(root / "lvis" / f"lvis_v1_{split}.json", content, 1, _lvis_categories())


def _used_classes(count: int) -> list[ClassInfo]:
    """The 10 shared classes, then stuff, frequent, common and rare classes in turn, spread over the ids of each group.

    Two out of three are stuff or frequent, so that most classes of a small sample can be learnt; the others form its tail.
    """
    vocabulary = coco_lvis()
    streams = {}
    for group in set(TURNS):
        members = [c for c in vocabulary if c.group == group and c.kind != "both"]
        streams[group] = iter([members[k] for k in np.argsort(np.arange(len(members)) * GOLDEN % 1, kind="stable")])
    used = [c for c in vocabulary if c.kind == "both"]
    turns = cycle(TURNS)
    while len(used) < count:
        used += islice(streams[next(turns)], 1)
    return used


def _plan(used: Sequence[ClassInfo], images: int, seed: int) -> list[_Scene]:
    """Plan what each image shows, in order of image id; of 40 or more images, some have an oddity of the real data sets."""
    rng = np.random.default_rng([seed, images, len(used)])
    ids = np.sort(rng.choice(MAX_IMAGE_ID, size=images, replace=False) + 1).tolist()
    order = rng.permutation(images)
    val = max(2, round(images / 4))
    scenes = []
    for split, members in (("val", np.sort(order[:val]).tolist()), ("train", np.sort(order[val:]).tolist())):
        odd = ODDITIES[split] if images >= 40 else ()
        roles = [odd[k] if k < len(odd) else "" for k in range(len(members))]
        stuff_room = [0 if role in ("no stuff", "unlisted") else int(rng.integers(2, 5)) for role in roles]
        thing_room = [0 if role == "no things" else int(rng.integers(4, 8)) for role in roles]
        floor = 3 if split == "train" else 1
        stuff = _deal([c for c in used if "stuff" in c.sources], stuff_room, floor, 0.5, rng)
        things = _deal([c for c in used if "lvis" in c.sources], thing_room, floor, 1.0, rng)
        for k, index in enumerate(members):
            folder = "val2017" if split == "val" and k % 3 else "train2017"
            scenes.append(_Scene(index, ids[index], split, folder, things[k], stuff[k], roles[k]))
    return sorted(scenes, key=lambda s: s.image_id)


def _deal(
    classes: Sequence[ClassInfo], room: Sequence[int], floor: int, power: float, rng: np.random.Generator
) -> list[list[ClassInfo]]:
    """Deal classes to images, at most ``room[i]`` different ones to image i: each to ``floor`` images, then by Zipf's law.

    The classes are ranked stuff, frequent, shared, common, rare, so that LVIS's frequency groups keep their order.
    """
    groups = ("stuff", "frequent", "common", "rare")
    ranked = sorted(classes, key=lambda c: (groups.index(c.group), c.kind == "both"))
    weights = np.array([(5 + ranked.index(c)) ** -power for c in classes])
    drawn = rng.choice(len(classes), size=4 * sum(room), p=weights / weights.sum()).tolist()
    hands: list[list[ClassInfo]] = [[] for _ in room]
    free = np.asfortranarray(np.tile(np.array(room)[:, None], len(classes)))
    for k in [*range(len(classes))] * floor + drawn:
        if free[:, k].any():
            hand = int(rng.choice(len(room), p=free[:, k] / free[:, k].sum()))
            hands[hand].append(classes[k])
            free[hand] = np.maximum(free[hand] - 1, 0)
            free[hand, k] = 0
    return [[hand[k] for k in rng.permutation(len(hand))] for hand in hands]


def _thing_annotations(scene: _Scene, picture: Picture) -> list[dict]:
    return [
        _annotation(scene, o.class_info.sources["lvis"], o.mask, [outline.ravel().tolist() for outline in o.outlines])
        for o in picture.objects
    ]


def _stuff_annotations(scene: _Scene, picture: Picture) -> list[dict]:
    """One annotation per visible stuff class, in ascending order; "other" covers the things, as in COCO-Stuff."""
    visible = [(c.sources["stuff"], region) for c, region in zip(scene.stuff, picture.regions, strict=True)]
    visible += [(STUFF_OTHER, picture.covered)] if scene.stuff else []
    visible.sort(key=lambda v: v[0])
    return [_annotation(scene, category, mask) | {"iscrowd": 0} for category, mask in visible if mask.any()]


def _annotation(scene: _Scene, category: int, mask: np.ndarray, polygons: list[list[float]] | None = None) -> dict:
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {
        "image_id": scene.image_id,
        "category_id": category,
        "segmentation": polygons or {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "area": float(coco_mask.area(rle)),
        "bbox": coco_mask.toBbox(rle).tolist(),
    }


def _image_record(scene: _Scene, height: int, width: int) -> dict:
    return {
        "id": scene.image_id,
        "coco_url": f"http://images.cocodataset.org/{scene.folder}/{scene.image_id:012d}.jpg",
        "height": height,
        "width": width,
        "license": 1,
        "flickr_url": "",
        "date_captured": "2013-11-14 00:00:00",
    }


def _federated(scene: _Scene, used: Sequence[ClassInfo], rng: np.random.Generator) -> dict:
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


def _write_jpeg(path: Path, picture: np.ndarray, gray: bool) -> None:
    pixels = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY if gray else cv2.COLOR_RGB2BGR)
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    path.write_bytes(cv2.imencode(".jpg", pixels, quality)[1].tobytes())


def _write_json(path: Path, content: dict, first_id: int, categories: list[dict]) -> None:
    """Write an annotation file; the annotations get consecutive ids from ``first_id`` on."""
    data = {
        "info": {"description": "generated by cocolvis sample", "version": "1.0"},
        "licenses": [{"id": 1, "name": "generated, free of rights", "url": ""}],
        "images": content["images"],
        "annotations": [{"id": k} | a for k, a in enumerate(content["annotations"], first_id)],
        "categories": categories,
    }
    path.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
