"""Label files: PNGs whose pixels are numbers, or palette indices, and the label maps of MATLAB files."""

import struct
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from cocolvis import runlength
from cocolvis.images import image_size
from cocolvis.importers import matlab
from cocolvis.runlength import MAX_PIXELS

LABELS = 2**16
"""Labels are 0 up to this; a class number on disk has 16 bits."""

_MATLAB_VARIABLE = "S"
"""The label map of COCO-Stuff's files."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises on damaged files."""


class Labels(NamedTuple):
    """A label file: its (H, W), and what decodes it; so that who knows the size that it must have can look first.

    ``read`` returns (H, W) numbers 0..65535, uint8 or uint16, or raises a ValueError that says why not.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_labels(content: bytes) -> Labels:
    """A label file by its bytes; a ValueError where they are none. Nothing but what declares its size is looked at."""
    if matlab.is_matlab(content):
        return Labels(*matlab.open_matrix(content, _MATLAB_VARIABLE))
    if not content.startswith(b"\x89PNG"):
        raise ValueError("it is neither a PNG nor a MATLAB file" if content else "the file is empty")
    size = image_size(content)
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are not in 1..{MAX_PIXELS}")
    return Labels(size, partial(_png, content))


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


def _png(content: bytes) -> np.ndarray:
    bits, colour = content[24], content[25]
    if colour not in (0, 3):
        raise ValueError("the PNG holds colours; expected one channel of label numbers, or a palette")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            labels = np.asarray(image)
    except _BROKEN as error:
        raise ValueError(f"the PNG cannot be decoded: {error}") from None
    if colour == 0 and bits in (2, 4):  # Pillow spreads grey values over 0..255
        labels = labels // (255 // (2**bits - 1))
    return labels.astype(np.uint16 if bits == 16 else np.uint8)
