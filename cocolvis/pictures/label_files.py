"""Label files: PNGs whose pixels are numbers, or palette indices, and the label maps of MATLAB files."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.masks import runlength
from cocolvis.pictures import jpeg, matlab, png
from cocolvis.pictures.encoded import check_pixels
from cocolvis.pictures.other_formats import opened, pixels

LABELS = 2**16
"""Labels are 0 up to this; a class number on disk has 16 bits."""

LOSSY = "a JPEG, which is lossy: its numbers are not those that were drawn"

_MATLAB_VARIABLE = "S"
"""The label map of COCO-Stuff's files."""

_GRAY, _PALETTE, _WITH_ALPHA = 0, 3, (4, 6)
"""Colour types of PNG."""

_SIGNATURES = {
    **{jpeg.START: LOSSY, b"\x93NUMPY": "a NumPy array", b"PK\x03\x04": "a zip archive, as .npz is", b"BM": "a BMP"},
    **{b"II*\0": "a TIFF", b"MM\0*": "a TIFF", b"II+\0": "a BigTIFF", b"MM\0+": "a BigTIFF", b"GIF8": "a GIF"},
    **{b"P5": "a PGM", b"P6": "a PPM", b"\0\0\0\x0cjP  ": "a JPEG 2000", b"\x89HDF": "an HDF5 file"},
    b"\x1f\x8b": "a gzip file",
}
"""How files begin that people have for label files, and what they are."""


class Labels(NamedTuple):
    """A label file: its (H, W), and what decodes it; so that who knows the size that it must have can look first.

    ``read`` returns (H, W) numbers 0..65535, uint8 or uint16, or raises a ValueError that says why not.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_labels(content: bytes, *, drawn: bool = False) -> Labels:
    """A label file by its bytes; a ValueError where they are none. Of a PNG, nothing but the header is looked at.

    A PNG in colours holds labels where all its channels are equal and its alpha, if it has one, is opaque. With ``drawn``, one
    in black and a single other colour does too: these are 0 and 1.
    """
    if matlab.is_matlab(content):
        return Labels(*matlab.open_matrix(content, _MATLAB_VARIABLE))
    if not content.startswith(png.SIGNATURE):
        raise ValueError(f"it is {_format(content)}; expected a PNG" if content else "the file is empty")
    header = png.read_header(content)
    check_pixels(header[:2])
    return Labels(header[:2], partial(_decode, content, header, drawn))


def read_labels(content: bytes) -> np.ndarray:
    """The (H, W) numbers 0..65535 that a label file holds, uint8 or uint16; a ValueError that says why not."""
    return open_labels(content).read()


def label_pixels(labels: np.ndarray) -> dict[int, int]:
    """Each label that occurs in (H, W) -> its pixels, in order of the labels."""
    pixels = np.bincount(*runlength.encode(labels)).astype(np.int64)
    return {label: int(pixels[label]) for label in np.flatnonzero(pixels).tolist()}


def to_classes(labels: np.ndarray, known: Mapping[int, int]) -> np.ndarray:
    """(H, W) uint16 class ids of labels, 0 where one is ignored or unknown."""
    lookup = np.zeros(LABELS, np.uint16)
    lookup[list(known)] = list(known.values())
    return lookup.take(labels)


def _format(content: bytes) -> str:
    """What a file is that is no label file, by its first bytes."""
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "a WebP"
    return next((name for start, name in _SIGNATURES.items() if content.startswith(start)), "neither a PNG nor a MATLAB file")


def _decode(content: bytes, header: png.Header, drawn: bool) -> np.ndarray:
    png.check(content)
    if header.colour not in (_GRAY, _PALETTE):
        return _one_channel(content, header, drawn)
    with opened(content, ["PNG"]) as image:
        labels = pixels(image)
    if header.colour == _GRAY and header.bits in (2, 4):  # Pillow spreads grey values over 0..255
        labels = labels // (255 // (2**header.bits - 1))
    return labels.astype(np.uint16 if header.bits == 16 else np.uint8)


def _one_channel(content: bytes, header: png.Header, drawn: bool) -> np.ndarray:
    """The labels of a PNG of several channels; a ValueError where they differ, or where the alpha lets something through."""
    try:
        stored = cv2.imdecode(np.frombuffer(png.essential(content), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"the PNG's pixels cannot be decoded: {error.err}") from None
    if stored is None or stored.shape[:2] != header[:2]:
        raise ValueError("the PNG's pixels cannot be decoded")
    if header.colour in _WITH_ALPHA and (clear := np.count_nonzero(stored[..., 3] < np.iinfo(stored.dtype).max)):
        raise ValueError(
            f"the PNG has an alpha channel, by which {clear} of its pixels are not opaque, and nobody says whether these have"
            " a label; expected one channel of label numbers: give them a number of their own, such as 255"
        )
    colours = stored[..., :3]
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    packed = np.zeros(header[:2], np.uint64)
    for channel in range(3):
        packed = packed << 16 | colours[..., channel]
    found = np.unique(packed)
    if drawn and len(found) == 2 and found[0] == 0:
        return (packed > 0).astype(np.uint8)
    raise ValueError(
        f"the PNG is in {len(found)} colour{'s' * (len(found) > 1)}; expected one channel of label numbers:"
        " each colour must be mapped to the number of its class first"
    )
