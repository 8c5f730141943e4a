"""Label files: PNGs whose pixels are numbers, or palette indices, and the label maps of MATLAB files."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np

from cocolvis import png, runlength
from cocolvis.images import check_pixels
from cocolvis.importers import matlab
from cocolvis.other_formats import opened, pixels

LABELS = 2**16
"""Labels are 0 up to this; a class number on disk has 16 bits."""

_MATLAB_VARIABLE = "S"
"""The label map of COCO-Stuff's files."""


class Labels(NamedTuple):
    """A label file: its (H, W), and what decodes it; so that who knows the size that it must have can look first.

    ``read`` returns (H, W) numbers 0..65535, uint8 or uint16, or raises a ValueError that says why not.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_labels(content: bytes) -> Labels:
    """A label file by its bytes; a ValueError where they are none. Of a PNG, nothing but the header is looked at."""
    if matlab.is_matlab(content):
        return Labels(*matlab.open_matrix(content, _MATLAB_VARIABLE))
    if not content.startswith(png.SIGNATURE):
        raise ValueError("it is neither a PNG nor a MATLAB file" if content else "the file is empty")
    header = png.read_header(content)
    check_pixels(header[:2])
    if header.colour not in (0, 3):
        raise ValueError("the PNG holds colours; expected one channel of label numbers, or a palette")
    return Labels(header[:2], partial(_decode, content, header))


def read_labels(content: bytes) -> np.ndarray:
    """The (H, W) numbers 0..65535 that a label file holds, uint8 or uint16; a ValueError that says why not."""
    return open_labels(content).read()


def to_classes(labels: np.ndarray, known: Mapping[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    """((H, W) uint16 class ids, 0 where a label is ignored or unknown; unknown label -> its pixels)."""
    lookup = np.zeros(LABELS, np.uint16)
    lookup[list(known)] = list(known.values())
    pixels = np.bincount(*runlength.encode(labels)).astype(np.int64)
    unknown = {label: int(pixels[label]) for label in np.flatnonzero(pixels).tolist() if label not in known}
    return lookup.take(labels), unknown


def _decode(content: bytes, header: png.Header) -> np.ndarray:
    png.check(content)
    with opened(content, ["PNG"]) as image:
        labels = pixels(image)
    if header.colour == 0 and header.bits in (2, 4):  # Pillow spreads grey values over 0..255
        labels = labels // (255 // (2**header.bits - 1))
    return labels.astype(np.uint16 if header.bits == 16 else np.uint8)
