"""Label files: PNGs whose pixels are label numbers or palette indices, and label maps in MATLAB files."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.disk.formats import format_name
from cocolvis.masks import runlength
from cocolvis.pictures import jpeg, matlab, png
from cocolvis.pictures.encoded import check_pixels
from cocolvis.pictures.other_formats import opened, pixels

LABELS = 2**16
"""Labels are below this number, because class ids on disk have 16 bits."""

LOSSY = "a JPEG, which is lossy: its numbers are not those that were drawn"

_MATLAB_VARIABLE = "S"
"""The label map in the files of COCO-Stuff."""

_GRAY, _PALETTE, _WITH_ALPHA = 0, 3, (4, 6)
"""PNG colour types."""


class Labels(NamedTuple):
    """A label file that is not decoded yet, so that callers can check its (H, W) first.

    ``read`` returns the (H, W) numbers 0..65535, uint8 or uint16, and raises ValueError if they cannot be read.
    """

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def open_labels(content: bytes, *, drawn: bool = False) -> Labels:
    """Open a label file given its bytes; raises ValueError if they are not a label file. Of a PNG only the header is read.

    A colour PNG holds labels if all its channels are equal and its alpha channel, if any, is opaque. With ``drawn``, a PNG in
    black and one other colour holds the labels 0 and 1.
    """
    if matlab.is_matlab(content):
        return Labels(*matlab.open_matrix(content, _MATLAB_VARIABLE))
    if not content.startswith(png.SIGNATURE):
        raise ValueError(f"it is {_format(content)}; expected a PNG" if content else "the file is empty")
    header = png.read_header(content)
    check_pixels(header[:2])
    return Labels(header[:2], partial(_decode, content, header, drawn))


def label_pixels(labels: np.ndarray) -> dict[int, int]:
    """Count the pixels of each label that occurs in (H, W), in ascending order of labels."""
    pixels = np.bincount(*runlength.encode(labels)).astype(np.int64)
    return {label: int(pixels[label]) for label in np.flatnonzero(pixels).tolist()}


def to_classes(labels: np.ndarray, known: Mapping[int, int]) -> np.ndarray:
    """Convert labels to (H, W) uint16 class ids, with 0 for labels that are not in ``known``."""
    lookup = np.zeros(LABELS, np.uint16)
    lookup[list(known)] = list(known.values())
    return lookup.take(labels)


def _format(content: bytes) -> str:
    """Name the format of a file that is not a label file, from its first bytes."""
    return LOSSY if content.startswith(jpeg.START) else format_name(content) or "neither a PNG nor a MATLAB file"


def _decode(content: bytes, header: png.Header, drawn: bool) -> np.ndarray:
    png.check(content)
    if header.colour not in (_GRAY, _PALETTE):
        return _one_channel(content, header, drawn)
    with opened(png.essential(content), ("PNG",)) as image:  # Pillow refuses large texts and colour profiles
        labels = pixels(image)
    if header.colour == _GRAY and header.bits in (2, 4):  # Pillow spreads grey values over 0..255
        labels = labels // (255 // (2**header.bits - 1))
    return labels.astype(np.uint16 if header.bits == 16 else np.uint8)


def _one_channel(content: bytes, header: png.Header, drawn: bool) -> np.ndarray:
    """The labels of a PNG with several channels; raises ValueError if the channels differ or a pixel is not opaque."""
    try:
        stored = cv2.imdecode(np.frombuffer(png.essential(content), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"the PNG's pixels cannot be decoded: {error.err}") from None
    if stored is None or stored.shape[:2] != header[:2]:
        raise ValueError("the PNG's pixels cannot be decoded")
    if header.colour in _WITH_ALPHA and (
        clear := np.count_nonzero(stored[..., 3] < (255 if stored.dtype == np.uint8 else 65535))
    ):
        raise ValueError(
            f"the PNG has an alpha channel in which {clear} pixels are not opaque, so it is unclear whether they have a label;"
            " expected one channel of label numbers: give these pixels a number of their own, such as 255"
        )
    colours = stored[..., :3]
    if (colours == colours[..., :1]).all():
        return np.ascontiguousarray(colours[..., 0])
    packed = np.zeros(header[:2], np.uint64)
    for channel in range(3):
        packed = packed << np.uint64(16) | colours[..., channel].astype(np.uint64)
    found = np.unique(packed)
    if drawn and len(found) == 2 and found[0] == 0:
        return (packed > 0).astype(np.uint8)
    raise ValueError(
        f"the PNG is in {len(found)} colour{'s' * (len(found) > 1)}; expected one channel of label numbers:"
        " each colour must be mapped to the number of its class first"
    )
