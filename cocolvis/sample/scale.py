"""The scale sample: the same pictures with 100 to 10,000 classes, as a tree for ``cocolvis import folder``."""

import math
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.errors import DataError
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sample.attributes import FEWEST, MOST, Bin, coarsened, hierarchy
from cocolvis.sample.output import filled
from cocolvis.sample.processes import in_order
from cocolvis.sample.scenes import Look, draw, outlines_of, posed, rasterised, side_length, smooth, texture
from cocolvis.sample.tree import write_jpeg

IMAGES = {"train": 2500, "val": 625}
"""Images of each split; with 16 objects each, every finest class is painted four times in train and once in val."""

_OBJECTS, _SIZE = 16, 128
_SHAPES = (("ellipse", 5), ("polygon", 5), ("polygon", 6), ("star", 5), ("blob", 4), ("blob", 5), ("cross", 5), ("heart", 3))
_VISIBLE = 0.75
_KEY = 10_000
"""Separates the random numbers from those of other samples."""


class _Canvas(NamedTuple):
    """One planned picture: its name below images/ and masks/, its random key, and the finest classes of its objects."""

    name: str
    key: tuple[int, ...]
    classes: list[int]


def write_scale(
    out: Path,
    *,
    classes: int = 1000,
    seed: int = 0,
    workers: int = 1,
    images: dict[str, int] | None = None,
    progress: Progress = ignore,
    announce: Announce = ignore,
) -> None:
    """Write pictures of objects with visible attributes to the folder ``out``, and which of ``classes`` each object is.

    The folder has images/{train,val}/*.jpg, masks/{train,val}/*.png (uint16, 0 is unlabelled) and classes.csv, as
    ``cocolvis import folder`` reads them. The pictures depend only on ``seed`` and ``images`` (split -> number); masks with
    fewer classes follow from those with more: class c of more than ``classes`` becomes its ``parent`` in classes.csv.
    ``progress`` and ``announce`` are those of :func:`cocolvis.sample.writer.write_sample`. ``out`` must be new or empty and
    stays so until everything is written. Raises DataError if an argument is out of range, or if the folder is not empty, cannot
    be written, or is written by another process.
    """
    if not FEWEST <= classes <= MOST:
        raise DataError(f"sample: classes is {classes}, expected {FEWEST}..{MOST} with --preset scale")
    with filled(out, seed, announce) as root:
        tasks = [task for split, count in (images or IMAGES).items() for task in _plan(split, count, seed)]
        for folder in {Path(kind) / Path(task.name).parent for task in tasks for kind in ("images", "masks")}:
            (root / folder).mkdir(parents=True)
        for done, _ in enumerate(in_order(partial(_write_image, root, classes), tasks, workers), 1):
            progress(done, len(tasks))
        _write_classes(root / "classes.csv", classes)


def _plan(split: str, count: int, seed: int) -> list[_Canvas]:
    """The pictures of a split; every finest class gets an object before any gets its second one."""
    key = (seed, _KEY, len(split))
    rng = np.random.default_rng(key)
    rounds = math.ceil(count * _OBJECTS / MOST)
    order = np.concatenate([rng.permutation(MOST) + 1 for _ in range(rounds)])[: count * _OBJECTS].reshape(count, _OBJECTS)
    first = 1 if split == "train" else 500_001
    return [_Canvas(f"{split}/{first + k:06d}", (*key, k), row) for k, row in enumerate(order.tolist())]


def _write_image(root: Path, classes: int, task: _Canvas) -> None:
    picture, labels = _paint(task.classes, np.random.default_rng(task.key))
    write_jpeg(root / "images" / f"{task.name}.jpg", picture)
    encoded = cv2.imencode(".png", coarsened(classes)[labels])[1]
    (root / "masks" / f"{task.name}.png").write_bytes(encoded.tobytes())


def _paint(classes: list[int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A picture with one object of each class, (H, W, 3) uint8 RGB, and its finest labels, (H, W) uint16."""
    height, width = (side_length(_SIZE, rng) for _ in range(2))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    labels = np.zeros((height, width), np.uint16)
    placed = []
    for c in classes:
        look, radius = _look(hierarchy().bins[c - 1], rng)
        mask, centre, turn = _place(look, radius, labels > 0, rng)
        labels[mask & (labels == 0)] = c
        placed.append((look, mask, centre, turn))
    tint = 214 + rng.uniform(-8, 8, 3)
    canvas = (
        tint + (7 * smooth(rng, height, width))[..., None] + (4 * smooth(rng, height, width))[..., None] * rng.normal(size=3)
    )
    for look, mask, (cx, cy), turn in reversed(placed):
        draw(canvas, mask, texture(look, (x - cx)[mask], (y - cy)[mask], turn), _SIZE)
    canvas += rng.normal(0, 2, canvas.shape)
    return canvas.clip(0, 255).round().astype(np.uint8), labels


def _look(cell: Bin, rng: np.random.Generator) -> tuple[Look, float]:
    """A look with the attributes of a class, and the radius in pixels; attributes keep a distance from the borders of bins."""
    hue, size, period, contrast = (
        low + (high - low) * rng.uniform(0.2, 0.8) for low, high in (cell.hue, cell.size, cell.period, cell.contrast)
    )
    light = 10 + 60 * contrast if contrast < 0.5 else 78 + 44 * (contrast - 0.5)
    shape, corners = _SHAPES[int(rng.integers(len(_SHAPES)))]
    look = Look(
        base=_colour(62, 52, hue),
        second=_colour(light, 12, hue),
        texture=cell.kind,
        period=3.6 * 2.5**period,
        angle=float(rng.uniform(0, math.pi)),
        shape=shape,
        corners=corners,
    )
    return look, 6.5 * 3.2**size


def _colour(light: float, chroma: float, hue: float) -> np.ndarray:
    """The colour of lightness 0..100, chroma and hue 0..1 in Lab, as RGB (3,) float32 in 0..255."""
    angle = 2 * math.pi * (hue + 0.05)
    lab = np.array([[[light, chroma * math.cos(angle), chroma * math.sin(angle)]]], np.float32)
    return cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)[0, 0].clip(0, 1) * 255


def _place(look: Look, radius: float, taken: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """Mask (H, W) bool, centre and rotation of an object that has the area of a circle of this ``radius``.

    Of up to 20 random poses, the first that leaves most of it visible, or the most visible one.
    """
    height, width = taken.shape
    outline = outlines_of(look)[0]
    scale = radius * math.sqrt(math.pi / cv2.contourArea(outline.astype(np.float32)))
    tried: list[tuple[float, tuple[np.ndarray, np.ndarray, float]]] = []
    for _ in range(20):
        turn = float(rng.uniform(-math.pi, math.pi))
        centre = rng.uniform((0.7 * radius, 0.7 * radius), (width - 0.7 * radius, height - 0.7 * radius))
        mask = rasterised([posed(outline, scale, turn, centre, width, height)], height, width)
        visible = (mask & ~taken).sum() / max(mask.sum(), 1)
        tried.append((visible, (mask, centre, turn)))
        if visible > _VISIBLE:
            break
    return max(tried, key=lambda one: one[0])[1]


def _write_classes(path: Path, classes: int) -> None:
    """Write the names of the classes, and of each the class of which it is a part if there are fewer classes."""
    names, parents = hierarchy().names[:classes], hierarchy().parents[:classes]
    rows = [f"{name},thing,{parent or ''}\n" for name, parent in zip(names, parents, strict=True)]
    path.write_text("name,kind,parent\n" + "".join(rows), encoding="utf-8")
