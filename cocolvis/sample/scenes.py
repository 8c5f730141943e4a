"""Paints the pictures of the generated sample: objects over organic regions, with exact masks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.vocabulary import ClassInfo

GOLDEN = 0.6180339887
TEXTURES = ("stripes", "dots", "solid", "checks", "rings", "waves", "gradient", "grid")
SHAPES = ("polygon", "star", "ellipse", "cross", "blob", "pair", "heart")


@dataclass(frozen=True, slots=True)
class Look:
    """The look of a class: two RGB colours (3,) float32 in 0..255, a texture with its period in pixels, and an outline."""

    base: np.ndarray
    second: np.ndarray
    texture: str
    period: float
    angle: float
    shape: str
    corners: int


class Placed(NamedTuple):
    """An object in a picture: its class, (H, W) bool mask, polygons (P, 2) of x and y, centre, and rotation in radians."""

    class_info: ClassInfo
    mask: np.ndarray
    outlines: list[np.ndarray]
    centre: np.ndarray
    turn: float


class Picture(NamedTuple):
    """A painted picture and its annotations.

    ``pixels`` (H, W, 3) uint8 RGB; ``objects``, front-most first; ``regions``, the visible part of each stuff class, and
    ``covered``, the union of all objects, (H, W) bool each.
    """

    pixels: np.ndarray
    objects: list[Placed]
    regions: list[np.ndarray]
    covered: np.ndarray


class Crowding(NamedTuple):
    """How objects are placed: their radii as shares of the size, and the smallest part that others leave visible.

    A centre is at least ``inside`` radii from the border.
    """

    radius: tuple[float, float]
    inside: float
    visible: float


SPACED = Crowding((0.12, 0.21), 0.6, 0.6)
CROWDED = Crowding((0.09, 0.2), 0.25, 0.45)


def farthest_colours(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours, each as far as possible in Lab from those before it: RGB in 0..255 and Lab, both (count, 3) float32."""
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


def looks_of(used: Sequence[ClassInfo], size: int) -> dict[int, Look]:
    """Give each class a look for pictures of ``size`` pixels: class id -> look.

    The second colour also comes from the palette, at a medium to large distance from the base colour.
    """
    rgb, lab = farthest_colours(len(used))
    looks = {}
    for k, c in enumerate(used):
        by_distance = np.argsort(((lab - lab[k]) ** 2).sum(axis=1), kind="stable")
        second = by_distance[int(len(used) * (0.35 + 0.6 * (k * GOLDEN % 1)))]
        looks[c.id] = Look(
            base=rgb[k],
            second=0.35 * rgb[k] + 0.65 * rgb[second],
            texture=TEXTURES[(k + k // 8) % len(TEXTURES)],
            period=size * (0.07 + 0.06 * (k * GOLDEN * 3 % 1)),
            angle=math.pi * (k * GOLDEN * 5 % 1),
            shape=SHAPES[k // 4 % len(SHAPES)],
            corners=3 + k % 5,
        )
    return looks


def paint(
    things: Sequence[ClassInfo],
    stuff: Sequence[ClassInfo],
    looks: dict[int, Look],
    size: int,
    rng: np.random.Generator,
    heights: Sequence[float] | None = None,
) -> Picture:
    """Paint ``things``, front-most first, over regions of ``stuff``; both sides are within 25 % of ``size`` pixels.

    With ``heights``, the regions are stacked by their place between top (0) and bottom (1), objects vary more in size, and
    more of them are cut by the border or hidden in part.
    """
    height, width = (side_length(size, rng) for _ in range(2))
    objects, covered = _place(things, looks, (height, width), size, rng, SPACED if heights is None else CROWDED)
    regions = _regions(len(stuff), height, width, rng) if heights is None else _layers(heights, height, width, rng)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    drift = smooth(rng, height, width) * np.float32(0.03 * size)
    canvas = (128 + 10 * smooth(rng, height, width))[..., None].repeat(3, axis=2)
    for k, c in enumerate(stuff):
        where, (dx, dy) = regions == k, rng.uniform(0, size, 2).astype(np.float32)
        canvas[where] = texture(looks[c.id], (x + drift + dx)[where], (y + drift + dy)[where], strength=0.6)
    canvas *= (1 + 0.06 * smooth(rng, height, width))[..., None]
    drawn = _draw_wrapped if heights is None else draw
    for o in reversed(objects):
        look, (cx, cy) = looks[o.class_info.id], o.centre
        drawn(canvas, o.mask, texture(look, (x - cx)[o.mask], (y - cy)[o.mask], o.turn), size)
    canvas = canvas * rng.uniform(0.94, 1.06) + rng.normal(0, 2.5, canvas.shape)
    return Picture(
        canvas.clip(0, 255).round().astype(np.uint8), objects, [(regions == k) & ~covered for k in range(len(stuff))], covered
    )


def side_length(size: int, rng: np.random.Generator) -> int:
    """A random width or height within 25 % of ``size`` that is not a multiple of 16, the usual stride of decoders."""
    side = int(rng.integers(int(np.ceil(0.75 * size)), int(1.25 * size) + 1))
    return side if side % 16 else side + (1 if side < size else -1)


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random field, (height, width) float32, with a standard deviation of about 1."""
    return cv2.resize(rng.normal(size=(5, 5)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)


def _regions(count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Split the picture into ``count`` regions with organic borders, the best balanced of four tries: (height, width) int."""
    if count == 0:
        return np.full((height, width), -1)
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.array([[[height]], [[width]]], np.float32)
    best, best_share = np.zeros((height, width), np.int64), -1.0
    for _ in range(4):
        centres = rng.uniform(0.1, 0.9, (count, 2)).tolist()
        fields = [0.25 * smooth(rng, height, width) - 2 * np.hypot(x - cx, y - cy) for cx, cy in centres]
        regions = np.argmax(fields, axis=0)
        share = np.bincount(regions.ravel(), minlength=count).min() / regions.size
        if share > best_share:
            best, best_share = regions, share
    return best


def _layers(heights: Sequence[float], height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Split the picture into one region per entry of ``heights``, from top to bottom with wavy borders: (height, width) int.

    The best balanced of up to four tries. Regions that are close in height have a steep border.
    """
    count = len(heights)
    if count == 0:
        return np.full((height, width), -1)
    y, x = np.mgrid[:height, :width].astype(np.float32) / np.array([[[height]], [[width]]], np.float32)
    tried: list[tuple[float, np.ndarray]] = []
    for _ in range(4):
        places = np.array(heights) + rng.uniform(-0.06, 0.06, count)
        centres = 0.5 * places + 0.5 * np.argsort(np.argsort(places)) / max(count - 1, 1)
        sides = rng.uniform(-0.2, 1.2, count)
        fields = [
            0.07 * smooth(rng, height, width) - np.hypot(0.35 * (x - cx), y - cy)
            for cx, cy in zip(sides.tolist(), centres.tolist(), strict=True)
        ]
        regions = np.argmax(fields, axis=0)
        tried.append((np.bincount(regions.ravel(), minlength=count).min() / regions.size, regions))
        if tried[-1][0] > 0.3 / count:
            break
    return max(tried, key=lambda one: one[0])[1]


def _place(
    classes: Sequence[ClassInfo],
    looks: dict[int, Look],
    shape: tuple[int, int],
    size: int,
    rng: np.random.Generator,
    crowding: Crowding,
) -> tuple[list[Placed], np.ndarray]:
    """Place one object of each class, front-most first; return them with the (H, W) bool union of their masks."""
    covered = np.zeros(shape, bool)
    placed = []
    for c in classes:
        placed.append(_place_one(c, looks[c.id], covered, size, rng, crowding))
        covered |= placed[-1].mask
    return placed, covered


def _place_one(
    c: ClassInfo, look: Look, covered: np.ndarray, size: int, rng: np.random.Generator, crowding: Crowding
) -> Placed:
    """Try up to 12 random poses: the first that leaves enough of the object visible, or the most visible one."""
    height, width = covered.shape
    tried: list[tuple[float, Placed]] = []
    for _ in range(12):
        radius, turn = size * rng.uniform(*crowding.radius), float(rng.uniform(-0.3, 0.3))
        edge = crowding.inside * radius
        centre = rng.uniform((edge, edge), (width - edge, height - edge))
        outlines = [posed(o, radius, turn, centre, width, height) for o in outlines_of(look)]
        mask = rasterised(outlines, height, width)
        visible = (mask & ~covered).sum() / max(mask.sum(), 1)
        tried.append((visible, Placed(c, mask, outlines, centre, turn)))
        if visible > crowding.visible:
            break
    return max(tried, key=lambda one: one[0])[1]


def outlines_of(look: Look) -> list[np.ndarray]:
    """The closed outlines of a class within the unit circle, (P, 2) each."""
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
        return [np.concatenate([turned(corner, k * np.pi / 2) for k in range(4)])]
    if look.shape == "blob":
        return [circle * (0.78 + 0.22 * np.cos(n * t))[:, None]]
    if look.shape == "pair":
        return [circle * 0.5 + (0.5, 0.2), circle * 0.42 - (0.5, 0.2)]
    return [np.stack([np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], axis=1)]


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (P, 2) of x and y, turned about the origin by an angle in radians, from x towards y."""
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def posed(outline: np.ndarray, radius: float, turn: float, centre: np.ndarray, width: int, height: int) -> np.ndarray:
    """The outline in pixels (x, y), clipped to the picture and rounded to two decimals as COCO's polygons are."""
    return (turned(outline, turn) * radius + centre).clip(0, (width, height)).round(2)


def rasterised(outlines: Sequence[np.ndarray], height: int, width: int) -> np.ndarray:
    """The union of polygons, (H, W) bool, rasterised by pycocotools."""
    rles = coco_mask.frPyObjects([o.ravel().tolist() for o in outlines], height, width)
    return coco_mask.decode(coco_mask.merge(rles)).astype(bool)


def texture(look: Look, x: np.ndarray, y: np.ndarray, turn: float = 0, strength: float = 1) -> np.ndarray:
    """The colours of a class, (N, 3) float32, at the pixel offsets ``x`` and ``y``, (N,), from the texture's origin."""
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


def draw(canvas: np.ndarray, mask: np.ndarray, colours: np.ndarray, size: int) -> None:
    """Draw an object onto ``canvas`` in place, with a soft shadow below it and colours that brighten towards its centre.

    ``canvas`` (H, W, 3) float; ``mask`` (H, W) bool with N pixels, whose ``colours`` are (N, 3).
    """
    shift, margin = 1 + size // 48, 2 + size // 8
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if len(rows):
        box = tuple(slice(max(0, line[0] - margin), line[-1] + 1 + margin) for line in (rows, columns))
        shadow = np.zeros_like(mask[box])
        shadow[shift:, shift:] = mask[box][:-shift, :-shift]
        _shade(canvas[box], mask[box], shadow, colours, size)


def _draw_wrapped(canvas: np.ndarray, mask: np.ndarray, colours: np.ndarray, size: int) -> None:
    """Draw an object as :func:`draw` does, except that a shadow that leaves the picture comes back on its other side."""
    _shade(canvas, mask, np.roll(mask, 1 + size // 48, axis=(0, 1)), colours, size)


def _shade(canvas: np.ndarray, mask: np.ndarray, shadow: np.ndarray, colours: np.ndarray, size: int) -> None:
    canvas *= 1 - 0.25 * cv2.GaussianBlur(shadow.astype(np.float32), (0, 0), size / 48)[..., None]
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    shade = 0.82 + 0.24 * np.sqrt(depth / max(depth.max(), 1))
    canvas[mask] = colours * shade[mask][:, None]
