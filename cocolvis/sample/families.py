"""The looks of the long-tailed sample: families of things that differ in detail, and stuff in natural colours."""

import csv
import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from cocolvis.sample.scenes import GOLDEN, SHAPES, Look, farthest_colours
from cocolvis.vocabulary import ClassInfo

MEMBERS = 4
"""Classes in a family of things."""

_GREY = 0.15
"""How far the colours of things are drawn towards grey, so that they fit the natural colours of stuff."""

_TEXTURES = ("stripes", "dots", "checks", "rings", "waves", "grid")


class Stuff(NamedTuple):
    """A stuff class in the sample: how many of 1000 images of COCO-Stuff show it, its place between top (0) and bottom (1),
    its scenes, and its two colours as "#rrggbb" and texture, empty for classes that are things too."""

    images: int
    height: float
    scenes: tuple[str, ...]
    colour: str
    second: str
    texture: str


@cache
def stuff_table() -> dict[str, Stuff]:
    """The name of each of the 91 stuff classes of COCO -> its properties, from stuff.csv.

    The numbers of images are estimates: COCO-Stuff publishes no table of them. They follow its distribution, from a third of
    the images with trees, walls and sky down to 0.2 % with moss.
    """
    text = files("cocolvis.sample").joinpath("stuff.csv").read_text(encoding="utf-8")
    return {
        row["name"]: Stuff(
            int(row["images"]),
            float(row["height"]),
            tuple(row["scenes"].split()),
            row["colour"],
            row["second"],
            row["texture"],
        )
        for row in csv.DictReader(text.splitlines())
    }


def looks_of_families(used: Sequence[ClassInfo], size: int) -> dict[int, Look]:
    """Give each class a look for pictures of ``size`` pixels: class id -> look.

    Things form families of four from the four quarters of the ranking by frequency, so that rare classes resemble frequent
    ones. A family shares colours, outline and kind of texture; its members differ in the period of the texture and in the
    number of corners and the direction of the texture. Stuff has natural colours.
    """
    things = sorted((c for c in used if c.images is not None), key=lambda c: (-(c.images or 0), c.id))
    families = math.ceil(len(things) / MEMBERS)
    rgb, lab = farthest_colours(families)
    rgb = (1 - _GREY) * rgb + _GREY * rgb.mean(axis=1, keepdims=True)
    looks = {}
    for rank, c in enumerate(things):
        member, k = divmod(rank, families)
        by_distance = np.argsort(((lab - lab[k]) ** 2).sum(axis=1), kind="stable")
        second = by_distance[int(families * (0.45 + 0.54 * (k * GOLDEN % 1)))]
        looks[c.id] = Look(
            base=rgb[k],
            second=rgb[k] + (0.4 if c.kind == "both" else 0.8) * (rgb[second] - rgb[k]),
            texture=_TEXTURES[(k + k // 6) % len(_TEXTURES)],
            period=size * (0.095 + 0.03 * (k * GOLDEN * 3 % 1)) * (0.5 if member // 2 else 1),
            angle=math.pi * (k * GOLDEN * 5 % 1) + math.pi / 2 * (member % 2),
            shape=SHAPES[k // 6 % len(SHAPES)],
            corners=6 if member % 2 else 3,
        )
    table = stuff_table()
    for k, c in enumerate(c for c in used if c.kind == "stuff"):
        row = table[c.name]
        period, angle = size * (0.05 + 0.05 * (k * GOLDEN % 1)), 0.15 * math.sin(k) + (math.pi / 2 if k % 2 else 0)
        looks[c.id] = Look(_rgb(row.colour), _rgb(row.second), row.texture, period, angle, "", 0)
    return looks


def _rgb(text: str) -> np.ndarray:
    """The colour "#rrggbb", (3,) float32 in 0..255."""
    return np.frombuffer(bytes.fromhex(text[1:]), np.uint8).astype(np.float32)
