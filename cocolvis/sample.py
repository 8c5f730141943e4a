"""A generated COCO + LVIS tree: procedural pictures with exact annotations, in the dialects of the real sets."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.errors import DataError
from cocolvis.vocabulary import STUFF_OTHER, ClassInfo, coco_lvis

GOLDEN = 0.6180339887
TEXTURES = ("stripes", "dots", "solid", "checks", "rings", "waves", "gradient", "grid")
SHAPES = ("polygon", "star", "ellipse", "cross", "blob", "pair", "heart")
ODDITIES = {"train": ("", "no stuff", "gray", "unlisted", "no things", "no stuff"), "val": ("", "no stuff")}
MAX_IMAGE_ID = 581_929
PARTIAL = ".cocolvis-sample.partial"


@dataclass(frozen=True, slots=True)
class _Look:
    """How a class looks: RGB colours (3,) float32 in 0..255, a texture with its period in pixels, and an outline."""

    base: np.ndarray
    second: np.ndarray
    texture: str
    period: float
    angle: float
    shape: str
    corners: int


@dataclass(slots=True)
class _Scene:
    """One image of the plan: where it lies and which classes it shows, ``things`` front-most first."""

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
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a generated COCO + LVIS tree to the folder ``out``, laid out as the real data sets ship.

    ``images`` counts all images, a quarter of which are the LVIS val split; ``classes`` of the 1284 classes are shown, each
    with colours, a texture and (things) an outline of its own, which do not depend on ``seed``; width and height lie within
    25 % of ``size`` pixels. ``progress`` is called with (images written, images). The same arguments give the same bytes.
    ``out`` must be new or empty and stays so until everything is written. Raises DataError for arguments out of range, and
    for a folder that is in use or cannot be written.
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
        raise DataError(f"{out}: cannot write the sample: {error.strerror}; give a folder that you can write to") from None
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
        raise DataError(f"{out}: exists and is not an empty folder; give a new folder, or remove this one first")


def _write_tree(
    root: Path, images: int, classes: int, size: int, seed: int, progress: Callable[[int, int], None] | None
) -> None:
    used = _used_classes(classes)
    looks = _looks(used, size)
    for folder in ("coco/train2017", "coco/val2017", "coco/annotations", "lvis"):
        (root / folder).mkdir(parents=True)
    stuff = {folder: {"images": [], "annotations": []} for folder in ("train2017", "val2017")}
    lvis = {split: {"images": [], "annotations": []} for split in ("train", "val")}
    for done, scene in enumerate(_plan(used, images, seed), 1):
        rng = np.random.default_rng([seed, scene.index])
        picture, things, regions = _paint(scene, looks, size, rng)
        _write_jpeg(root / "coco" / scene.folder / f"{scene.image_id:012d}.jpg", picture, gray=scene.role == "gray")
        record = _image_record(scene, *picture.shape[:2])
        if scene.role != "unlisted":
            stuff[scene.folder]["images"].append({"file_name": f"{scene.image_id:012d}.jpg", **record})
        stuff[scene.folder]["annotations"] += regions
        lvis[scene.split]["images"].append(record | _federated(scene, used, rng))
        lvis[scene.split]["annotations"] += things
        if progress is not None:
            progress(done, images)
    for folder, content in stuff.items():
        _write_json(root / "coco" / "annotations" / f"stuff_{folder}.json", content, 10_000_001, _stuff_categories())
    for split, content in lvis.items():
        _write_json(root / "lvis" / f"lvis_v1_{split}.json", content, 1, _lvis_categories())


def _used_classes(count: int) -> list[ClassInfo]:
    """The 10 shared classes, then stuff, frequent, common and rare ones in turn, spread over the ids of each group."""
    vocabulary = coco_lvis()
    streams = []
    for group in ("stuff", "frequent", "common", "rare"):
        members = [c for c in vocabulary if c.group == group and c.kind != "both"]
        streams.append([members[k] for k in np.argsort(np.arange(len(members)) * GOLDEN % 1, kind="stable")])
    turns = [c for turn in zip_longest(*streams) for c in turn if c is not None]
    return ([c for c in vocabulary if c.kind == "both"] + turns)[:count]


def _palette(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours, each chosen farthest in Lab from those before: RGB in 0..255 and Lab, (count, 3) float32 both."""
    levels = np.linspace(0, 1, 24, dtype=np.float32)
    rgb = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    usable = (lab[:, 0] > 24) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 14)
    rgb, lab = rgb[usable], lab[usable]
    chosen = [0]
    distance = np.full(len(lab), np.inf)
    while len(chosen) < count:
        distance = np.minimum(distance, ((lab - lab[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    return rgb[chosen] * 255, lab[chosen]


def _looks(used: Sequence[ClassInfo], size: int) -> dict[int, _Look]:
    """Class id -> look; the second colour is one of the palette's, at a middle to great distance from the base colour."""
    rgb, lab = _palette(len(used))
    looks = {}
    for k, c in enumerate(used):
        by_distance = np.argsort(((lab - lab[k]) ** 2).sum(axis=1), kind="stable")
        second = by_distance[int(len(used) * (0.35 + 0.6 * (k * GOLDEN % 1)))]
        looks[c.id] = _Look(
            base=rgb[k],
            second=0.35 * rgb[k] + 0.65 * rgb[second],
            texture=TEXTURES[(k + k // 8) % len(TEXTURES)],
            period=size * (0.07 + 0.06 * (k * GOLDEN * 3 % 1)),
            angle=math.pi * (k * GOLDEN * 5 % 1),
            shape=SHAPES[k // 4 % len(SHAPES)],
            corners=3 + k % 5,
        )
    return looks


def _plan(used: Sequence[ClassInfo], images: int, seed: int) -> list[_Scene]:
    """What each image shows, in ascending order of image id; of 40 images or more, some have an oddity of the real sets."""
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

    Its ranks run over stuff, frequent, shared, common and rare classes, so that LVIS's groups keep their order.
    """
    groups = ("stuff", "frequent", "common", "rare")
    ranked = sorted(classes, key=lambda c: (groups.index(c.group), c.kind == "both"))
    weights = np.array([(5 + ranked.index(c)) ** -power for c in classes])
    drawn = rng.choice(len(classes), size=4 * sum(room), p=weights / weights.sum()).tolist()
    hands = [[] for _ in room]
    free = np.asfortranarray(np.tile(np.array(room)[:, None], len(classes)))
    for k in [*range(len(classes))] * floor + drawn:
        if free[:, k].any():
            hand = int(rng.choice(len(room), p=free[:, k] / free[:, k].sum()))
            hands[hand].append(classes[k])
            free[hand] = np.maximum(free[hand] - 1, 0)
            free[hand, k] = 0
    return [[hand[k] for k in rng.permutation(len(hand))] for hand in hands]


def _paint(
    scene: _Scene, looks: dict[int, _Look], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, list[dict], list[dict]]:
    """The picture (H, W, 3) uint8 RGB, its LVIS annotations (front-most first) and its stuff annotations."""
    height, width = (_side(size, rng) for _ in range(2))
    placed, covered = _place(scene.things, looks, (height, width), size, rng)
    regions = _regions(len(scene.stuff), height, width, rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    drift = _smooth(rng, height, width) * np.float32(0.03 * size)
    canvas = (128 + 10 * _smooth(rng, height, width))[..., None].repeat(3, axis=2)
    for k, c in enumerate(scene.stuff):
        where, (dx, dy) = regions == k, rng.uniform(0, size, 2).astype(np.float32)
        canvas[where] = _texture(looks[c.id], x + drift + dx, y + drift + dy, strength=0.6)[where]
    canvas *= (1 + 0.06 * _smooth(rng, height, width))[..., None]
    for c, mask, _, (cx, cy), turn in reversed(placed):
        _draw(canvas, mask, _texture(looks[c.id], x - cx, y - cy, turn), size)
    canvas = canvas * rng.uniform(0.94, 1.06) + rng.normal(0, 2.5, canvas.shape)

    things = [
        _annotation(scene, c.sources["lvis"], m, [o.ravel().tolist() for o in outlines]) for c, m, outlines, _, _ in placed
    ]
    visible = [(c.sources["stuff"], (regions == k) & ~covered) for k, c in enumerate(scene.stuff)]
    visible += [(STUFF_OTHER, covered)] if scene.stuff else []
    stuff = [_annotation(scene, i, mask) | {"iscrowd": 0} for i, mask in sorted(visible, key=lambda v: v[0]) if mask.any()]
    return canvas.clip(0, 255).round().astype(np.uint8), things, stuff


def _side(size: int, rng: np.random.Generator) -> int:
    """A width or height within 25 % of ``size`` that no decoder's stride of 16 divides."""
    side = int(rng.integers(int(np.ceil(0.75 * size)), int(1.25 * size) + 1))
    return side if side % 16 else side + (1 if side < size else -1)


def _smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random field (height, width) float32 of about unit deviation."""
    return cv2.resize(rng.normal(size=(5, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _regions(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Split the picture into ``count`` regions with organic borders: (height, width) int, the best balanced of some tries."""
    if count == 0:
        return np.full((height, width), -1)
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.float32([[[height]], [[width]]])
    best, best_share = None, -1.0
    for _ in range(4):
        centres = rng.uniform(0.1, 0.9, (count, 2)).tolist()
        fields = [0.25 * _smooth(rng, height, width) - 2 * np.hypot(x - cx, y - cy) for cx, cy in centres]
        regions = np.argmax(fields, axis=0)
        share = np.bincount(regions.ravel(), minlength=count).min() / regions.size
        if share > best_share:
            best, best_share = regions, share
    return best


def _place(
    classes: Sequence[ClassInfo], looks: dict[int, _Look], shape: tuple[int, int], size: int, rng: np.random.Generator
) -> tuple[list[tuple], np.ndarray]:
    """Place one object of each class, front-most first, each more than half visible where there is room for that.

    Returns (class, mask (H, W) bool, polygons, centre, turn in radians) for each, and the (H, W) bool union of the masks.
    """
    height, width = shape
    covered = np.zeros(shape, bool)
    placed = []
    for c in classes:
        best, best_seen = None, -1.0
        for _ in range(12):
            radius, turn = size * rng.uniform(0.12, 0.21), float(rng.uniform(-0.3, 0.3))
            centre = rng.uniform((0.6 * radius, 0.6 * radius), (width - 0.6 * radius, height - 0.6 * radius))
            outlines = [_posed(o, radius, turn, centre, width, height) for o in _outlines(looks[c.id])]
            mask = _rasterised(outlines, height, width)
            seen = (mask & ~covered).sum() / max(mask.sum(), 1)
            if seen > best_seen:
                best, best_seen = (c, mask, outlines, centre, turn), seen
            if seen > 0.6:
                break
        placed.append(best)
        covered |= best[1]
    return placed, covered


def _outlines(look: _Look) -> list[np.ndarray]:
    """The closed outlines of a class, (P, 2) each, within the unit circle."""
    n = look.corners
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack([np.cos(t), np.sin(t)], axis=1)
    if look.shape in ("polygon", "star"):
        count = n if look.shape == "polygon" else 2 * n + 2
        t = 2 * np.pi * np.arange(count) / count - np.pi / 2
        radius = np.where(np.arange(count) % 2, 0.5 if look.shape == "star" else 1, 1)
        return [np.stack([radius * np.cos(t), radius * np.sin(t)], axis=1)]
    if look.shape == "ellipse":
        return [circle * (1, 0.45 + 0.07 * n)]
    if look.shape == "cross":
        a = 0.2 + 0.05 * n
        corner = np.array([(0.9, a), (a, a), (a, 0.9)])
        return [np.concatenate([_turned(corner, k * np.pi / 2) for k in range(4)])]
    if look.shape == "blob":
        return [circle * (0.78 + 0.22 * np.cos(n * t))[:, None]]
    if look.shape == "pair":
        return [circle * 0.5 + (0.5, 0.2), circle * 0.42 - (0.5, 0.2)]
    return [np.stack([np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], axis=1)]


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _posed(outline: np.ndarray, radius: float, turn: float, centre: np.ndarray, width: int, height: int) -> np.ndarray:
    """The outline in pixels (x, y), rounded as COCO's polygons are and cut off at the picture's border."""
    return (_turned(outline, turn) * radius + centre).clip(0, (width, height)).round(2)


def _rasterised(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The pixels (H, W) bool of the union of polygons, by pycocotools' own rule."""
    rles = coco_mask.frPyObjects([o.ravel().tolist() for o in outlines], height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def _texture(look: _Look, x: np.ndarray, y: np.ndarray, turn: float = 0, strength: float = 1) -> np.ndarray:
    """The class's colours (H, W, 3) float32 at pixel offsets ``x``, ``y`` (H, W) from the texture's origin."""
    cos, sin = math.cos(look.angle + turn), math.sin(look.angle + turn)
    u, v = (cos * x + sin * y) / look.period, (cos * y - sin * x) / look.period
    part_u, part_v = u % 1, v % 1
    share = {
        "solid": lambda: np.zeros_like(u),
        "stripes": lambda: part_u < 0.35,
        "dots": lambda: np.hypot(part_u - 0.5, part_v - 0.5) < 0.32,
        "checks": lambda: (part_u < 0.5) ^ (part_v < 0.5),
        "rings": lambda: np.hypot(u, v) % 1 < 0.4,
        "waves": lambda: (u + 0.25 * np.sin(2 * np.pi * v / 1.5)) % 1 < 0.4,
        "gradient": lambda: 0.4 - 0.4 * np.cos(2 * np.pi * u / 3),
        "grid": lambda: np.minimum(part_u, part_v) < 0.2,
    }[look.texture]()
    share = strength * np.asarray(share, np.float32)[..., None]
    return look.base * (1 - share) + look.second * share


def _draw(canvas: np.ndarray, mask: np.ndarray, colours: np.ndarray, size: int) -> None:
    """Draw an object on ``canvas`` in place: a soft shadow below it, and its colours, brighter towards its middle."""
    shadow = cv2.GaussianBlur(np.roll(mask, 1 + size // 48, axis=(0, 1)).astype(np.float32), (0, 0), size / 48)
    canvas *= 1 - 0.25 * shadow[..., None]
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    shade = 0.82 + 0.24 * np.sqrt(depth / max(depth.max(), 1))
    canvas[mask] = (colours * shade[..., None])[mask]


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
    """LVIS's federated lists: some absent categories that were verified, some present ones that were not finished."""
    shown = {c.id for c in scene.things + scene.stuff}
    absent = [c.sources["lvis"] for c in used if "lvis" in c.sources and c.id not in shown]
    verified = rng.choice(absent, size=min(len(absent), int(rng.integers(2, 8))), replace=False)
    unfinished = [c.sources["lvis"] for c in scene.things if rng.random() < 0.1]
    return {"neg_category_ids": sorted(verified.tolist()), "not_exhaustive_category_ids": sorted(unfinished)}


def _lvis_categories() -> list[dict]:
    return [
        {
            "frequency": c.group[0],
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
    """Write an annotation file; the annotations get ids from ``first_id`` on."""
    data = {
        "info": {"description": "generated by cocolvis sample", "version": "1.0"},
        "licenses": [{"id": 1, "name": "generated, free of rights", "url": ""}],
        "images": content["images"],
        "annotations": [{"id": k} | a for k, a in enumerate(content["annotations"], first_id)],
        "categories": categories,
    }
    path.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
