"""Label files: PNGs whose pixels are numbers, or palette indices, and the label maps of MATLAB files."""

import struct
import zlib
from collections.abc import Mapping
from io import BytesIO

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


def read_labels(content: bytes) -> np.ndarray:
    """The (H, W) numbers 0..65535 that a label file holds, uint8 or uint16; a ValueError that says why not."""
    if matlab.is_matlab(content):
        return matlab.read_matrix(content, _MATLAB_VARIABLE)
    if not content.startswith(b"\x89PNG"):
        raise ValueError("it is neither a PNG nor a MATLAB file" if content else "the file is empty")
    return _png(content)


def to_classes(labels: np.ndarray, known: Mapping[int, int]) -> tuple[np.ndarray, dict[int, int]]:
    """((H, W) uint16 class ids, 0 where a label is ignored or unknown; unknown label -> its pixels)."""
    lookup = np.zeros(LABELS, np.uint16)
    lookup[list(known)] = list(known.values())
    pixels = np.bincount(*runlength.encode(labels)).astype(np.int64)
    unknown = {label: int(pixels[label]) for label in np.flatnonzero(pixels).tolist() if label not in known}
    return lookup.take(labels), unknown


def _png(content: bytes) -> np.ndarray:
    height, width = image_size(content)
    if not 0 < height * width <= MAX_PIXELS:
        raise ValueError(f"{height} x {width} pixels are not in 1..{MAX_PIXELS}")
    bits, colour = content[24], content[25]
    if colour not in (0, 3):
        raise ValueError("the PNG holds colours; expected one channel of label numbers, or a palette")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            labels = np.asarray(image)
    except _BROKEN as error:
        if getattr(error, "errno", None):  # of the system, not of these bytes
            raise
        raise ValueError("the PNG is damaged: its pixels cannot be decoded") from None
    if colour == 0 and bits in (2, 4):  # Pillow spreads grey values over 0..255
        labels = labels // (255 // (2**bits - 1))
    return labels.astype(np.uint16 if bits == 16 else np.uint8)
