"""Masks as pictures: a stable colour for each class, and overlays that name the largest classes."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from cocolvis.vocabulary import Vocabulary

NAMED = 12
"""At most so many classes of a picture are named in it."""

_SMALLEST = 0.004
"""Share of the pixels below which a class is not named."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEGIBLE = 480
"""Shorter side in pixels that :func:`enlarge` aims at: names are legible then."""


@lru_cache(maxsize=8)
def palette(classes: int) -> np.ndarray:
    """(classes + 1, 3) uint8 RGB, read-only: 0 is black, and a class keeps its colour whatever ``classes`` is.

    Hue, lightness and chroma follow a low-discrepancy sequence in Oklab, where distances are as large as they look.
    """
    steps = np.arange(1, classes + 1)[:, None] * [0.8191725134, 0.6710436067, 0.5497004779]
    hue, lightness, chroma = (steps % 1).T
    angle, lightness, chroma = 2 * np.pi * hue, 0.5 + 0.38 * lightness, 0.08 + 0.1 * chroma
    colours = np.zeros((classes + 1, 3), np.uint8)
    colours[1:] = _srgb(lightness, chroma * np.cos(angle), chroma * np.sin(angle))
    colours.setflags(write=False)
    return colours


def colourise(mask: np.ndarray) -> np.ndarray:
    """(H, W) class ids to (H, W, 3) uint8 RGB; 0 is black."""
    return palette(max(1284, int(mask.max(initial=0))))[mask]


def overlay(image: np.ndarray, mask: np.ndarray, names: Vocabulary | Sequence[str], opacity: float = 0.55) -> np.ndarray:
    """The picture under its classes' colours, with outlines and the names of the largest classes: (H, W, 3) uint8 RGB.

    ``image`` (H, W, 3) uint8 RGB; ``mask`` (H, W) class ids, 0 = unlabelled, which stays as it is. ``names[c]`` is the name of
    class c, or ``names`` is a vocabulary.
    """
    blend = np.where((mask > 0)[..., None], image * (1 - opacity) + colourise(mask) * opacity, image)
    picture = np.ascontiguousarray(np.where(_edges(mask)[..., None], blend * 0.35, blend).astype(np.uint8))
    classes, pixels = np.unique(mask[mask > 0], return_counts=True)
    largest = [c for c, n in sorted(zip(classes.tolist(), pixels.tolist(), strict=True), key=lambda cn: (-cn[1], cn[0]))]
    taken: list[tuple[int, int, int, int]] = []
    for c in largest[:NAMED]:
        region = mask == c
        if region.sum() >= _SMALLEST * mask.size:
            _write(picture, names.name(c) if isinstance(names, Vocabulary) else names[c], region, taken)
    return picture


def enlarge(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and mask at a whole multiple of their size, so that names are legible; large ones stay as they are."""
    factor = max(1, round(_LEGIBLE / min(mask.shape)))
    if factor == 1:
        return image, mask
    size = mask.shape[1] * factor, mask.shape[0] * factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def side_by_side(image: np.ndarray, mask: np.ndarray, names: Vocabulary | Sequence[str]) -> np.ndarray:
    """Picture, mask and overlay in one row, (h, 3 w + gaps, 3) uint8 RGB, enlarged where they are small."""
    image, mask = enlarge(image, mask)
    gap = np.full((mask.shape[0], 8, 3), 255, np.uint8)
    return np.concatenate([image, gap, colourise(mask), gap, overlay(image, mask, names)], axis=1)


def _srgb(lightness: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Oklab to (n, 3) uint8 sRGB, clipped."""
    cone = np.stack([lightness, a, b], 1) @ [[1, 1, 1], [0.3963377774, -0.1055613458, -0.0894841775],
                                             [0.2158037573, -0.0638541728, -1.2914855480]]  # fmt: skip
    linear = cone**3 @ [[4.0767416621, -1.2684380046, -0.0041960863], [-3.3077115913, 2.6097574011, -0.7034186147],
                        [0.2309699292, -0.3413193965, 1.7076147010]]  # fmt: skip
    linear = linear.clip(0, 1)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(np.uint8)


def _edges(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another class."""
    edges = np.zeros(mask.shape, bool)
    edges[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    edges[:-1] |= mask[:-1] != mask[1:]
    return edges


def _write(picture: np.ndarray, name: str, region: np.ndarray, taken: list[tuple[int, int, int, int]]) -> None:
    """Write a name where its region is widest, clear of the border and of the names in ``taken``; nowhere if none is free."""
    height, width = region.shape
    scale = min(0.75, max(0.35, min(height, width) / 640))
    (w, h), base = cv2.getTextSize(name, _FONT, scale, 1)
    inside = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 5)
    y, x = (int(v) - 1 for v in np.unravel_index(inside.argmax(), inside.shape))
    left = min(max(x - w // 2, 2), max(2, width - w - 2))
    for shift in (0, 1, -1, 2, -2):
        bottom = min(max(y + h // 2 + shift * (h + base), h + 2), height - base)
        box = left, bottom - h - 2, left + w, bottom + base
        if not any(box[0] < r and l < box[2] and box[1] < b and t < box[3] for l, t, r, b in taken):  # noqa: E741
            taken.append(box)
            _outlined(picture, name, (left, bottom), scale)
            return


def _outlined(picture: np.ndarray, text: str, origin: tuple[int, int], scale: float) -> None:
    """White text in a dark outline: the same glyphs, grown. (Fonts of another thickness have other widths.)"""
    glyphs = np.zeros(picture.shape[:2], np.uint8)
    cv2.putText(glyphs, text, origin, _FONT, scale, 255, 1, cv2.LINE_AA)
    grown = cv2.dilate(glyphs, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    for shape, colour in ((grown, 20.0), (glyphs, 255.0)):
        alpha = shape[..., None] / 255
        picture[:] = np.rint(picture * (1 - alpha) + colour * alpha)
