"""Draws masks as pictures: with a fixed colour for each class, and as overlays that name the largest classes."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np

from cocolvis.palette import palette
from cocolvis.vocabulary import UNLABELLED, Vocabulary

NAMED = 12
"""The most classes that are named in one picture."""

_SMALLEST = 0.004
"""Classes with a smaller share of the pixels are not named."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_LEGIBLE = 480
"""The shorter side, in pixels, that :func:`enlarge` aims for so that names are legible."""

_LONGEST = 8192
"""The longer side, in pixels, that :func:`enlarge` never exceeds, so that pictures of narrow strips stay small."""

_LANES = 16
"""Columns that OpenCV's distance transform processes together; its rounding depends on a pixel's position among them."""

_GAP = 8
"""Pixels between pictures side by side; pictures that are narrower than this get a gap of their own width."""

_BRIGHT = (255, 240, 0)
"""The colour of the outline of a single class."""


def colourise(mask: np.ndarray) -> np.ndarray:
    """Convert (H, W) class ids to (H, W, 3) uint8 RGB; 0 is black."""
    return _palette_of(mask)[mask]


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    names: Vocabulary | Sequence[str],
    opacity: float = 0.55,
    outlined: int = UNLABELLED,
) -> np.ndarray:
    """Blend a picture with the colours of its classes, outline them, and name the largest: (H, W, 3) uint8 RGB.

    ``image`` (H, W, 3) uint8 RGB; ``mask`` (H, W) class ids below 65536, 0 = unlabelled, whose pixels stay unchanged.
    ``names[c]`` is the name of class c, or ``names`` is a vocabulary. The class ``outlined`` gets a bright outline below the
    names. Time and memory grow linearly with the number of pixels.
    """
    from cocolvis.inspection.blend import BOTTOM, COUNT, LEFT, RIGHT, TOP, blend  # numba is slow to import

    image, mask = np.require(image, np.uint8, ("C", "W")), np.require(mask, np.uint16, ("C", "W"))
    colours = _palette_of(mask)
    picture, extents = np.empty_like(image), np.zeros((len(colours), 5), np.int64)
    blend(image, mask, colours, *_blended_colours(opacity), picture, extents)
    picture = outline(picture, mask, outlined)
    pixels = extents[:, COUNT]
    pixels[0] = 0
    taken: list[tuple[int, int, int, int]] = []
    for c in np.argsort(-pixels, kind="stable")[:NAMED].tolist():
        if pixels[c] and pixels[c] >= _SMALLEST * mask.size:
            top, left = extents[c, TOP], extents[c, LEFT]
            region = mask[top : extents[c, BOTTOM] + 1, left : extents[c, RIGHT] + 1] == c
            centre = _widest(region, int(top), int(left))
            _write(picture, names.name(c) if isinstance(names, Vocabulary) else names[c], centre, taken)
    return picture


def enlarge(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge small pictures and their masks by an integer factor so that names are legible; return large ones unchanged."""
    factor = max(1, min(round(_LEGIBLE / min(mask.shape)), _LONGEST // max(mask.shape)))
    if factor == 1:
        return image, mask
    size = mask.shape[1] * factor, mask.shape[0] * factor
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def side_by_side(
    image: np.ndarray, mask: np.ndarray, names: Vocabulary | Sequence[str], outlined: int = UNLABELLED
) -> np.ndarray:
    """Picture, mask and overlay, enlarged if they are small: (h, w, 3) uint8 RGB.

    They are side by side, or one above the other if they are more than twice as wide as high. The class ``outlined`` gets a
    bright outline in all three.
    """
    image, mask = enlarge(image, mask)
    panels = [outline(image, mask, outlined), outline(colourise(mask), mask, outlined)]
    panels.append(overlay(image, mask, names, outlined=outlined))
    height, width = mask.shape
    axis = 0 if width > 2 * height else 1
    gap = np.full((height, min(_GAP, width), 3) if axis else (min(_GAP, height), width, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=axis)


def mask_alone(mask: np.ndarray, names: Vocabulary | Sequence[str], outlined: int = UNLABELLED) -> np.ndarray:
    """The mask in the colours of its classes, with the largest named and ``outlined`` outlined: (h, w, 3) uint8 RGB.

    It is enlarged if it is small.
    """
    black, mask = enlarge(np.zeros((*mask.shape, 3), np.uint8), mask)
    return overlay(black, mask, names, opacity=1.0, outlined=outlined)


def outline(picture: np.ndarray, mask: np.ndarray, class_id: int) -> np.ndarray:
    """A copy of a picture (H, W, 3) with a bright line on a dark one around a class; the picture itself if that is absent."""
    if class_id == UNLABELLED or not (region := (mask == class_id).astype(np.uint8)).any():
        return picture
    contours, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    width = max(1, round(min(mask.shape) / 240))
    outlined = cv2.drawContours(picture.copy(), contours, -1, (0, 0, 0), 3 * width, cv2.LINE_8)
    return cv2.drawContours(outlined, contours, -1, _BRIGHT, width, cv2.LINE_8)


def _palette_of(mask: np.ndarray) -> np.ndarray:
    """A palette that covers all classes of a mask."""
    return palette(max(1284, int(mask.max(initial=0))))


@lru_cache(maxsize=8)
def _blended_colours(opacity: float) -> tuple[np.ndarray, np.ndarray]:
    """Tables of blended values, (257, 256) uint8: one for the inside of regions and one for their outlines.

    The row is a channel of the class's colour, or 256 for unlabelled pixels; the column is the same channel of the picture.
    """
    values = np.arange(256, dtype=np.uint8)
    blended = np.vstack([values * (1 - opacity) + values[:, None] * opacity, values])
    return blended.astype(np.uint8), (blended * 0.35).astype(np.uint8)


def _widest(region: np.ndarray, top: int, left: int) -> tuple[int, int]:
    """The (row, column) in the picture where a region is widest; (h, w) bool, cut out at ``top`` and ``left``."""
    shift = left % _LANES
    padded = np.zeros((region.shape[0] + 2, region.shape[1] + 2 + shift), np.uint8)
    padded[1:-1, 1 + shift : -1] = region
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, 5)
    row, column = divmod(int(inside.argmax()), inside.shape[1])
    return top + row - 1, left - shift + column - 1


def _write(picture: np.ndarray, name: str, centre: tuple[int, int], taken: list[tuple[int, int, int, int]]) -> None:
    """Write a name near ``centre``, away from the border and the boxes in ``taken``; leave it out if there is no room."""
    height, width = picture.shape[:2]
    scale = min(0.75, max(0.35, min(height, width) / 640))
    (w, h), base = cv2.getTextSize(name, _FONT, scale, 1)
    y, x = centre
    left = min(max(x - w // 2, 2), max(2, width - w - 2))
    for shift in (0, 1, -1, 2, -2):
        bottom = min(max(y + h // 2 + shift * (h + base), h + 2), height - base)
        box = left, bottom - h - 2, left + w, bottom + base
        if not any(box[0] < r and l < box[2] and box[1] < b and t < box[3] for l, t, r, b in taken):  # noqa: E741
            taken.append(box)
            margin = h + base  # room for the outline, and for glyphs that exceed their box
            rows = slice(max(0, box[1] - margin), max(0, box[3] + margin))
            columns = slice(max(0, left - margin), left + w + margin)
            _outlined(picture[rows, columns], name, (left - columns.start, bottom - rows.start), scale)
            return


def _outlined(picture: np.ndarray, text: str, origin: tuple[int, int], scale: float) -> None:
    """Draw white text on a dark outline, which is the same glyphs dilated: thicker fonts would have other widths."""
    if not picture.size:
        return
    glyphs = np.zeros(picture.shape[:2], np.uint8)
    cv2.putText(glyphs, text, origin, _FONT, scale, 255, 1, cv2.LINE_AA)
    grown = cv2.dilate(glyphs, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5)))
    for shape, colour in ((grown, 20.0), (glyphs, 255.0)):
        alpha = shape[..., None] / 255
        picture[:] = np.rint(picture * (1 - alpha) + colour * alpha)
