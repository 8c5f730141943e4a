"""Decodes pictures that are neither JPEG nor PNG, with Pillow, which reads the header first and pixels on demand."""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import NoReturn

import numpy as np
from PIL import Image

from cocolvis.disk.formats import foreign_format
from cocolvis.limits import MAX_PIXELS
from cocolvis.pictures.tiff_tags import numbers, upright

FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")
"""The formats that :func:`decode` reads, by their names in Pillow."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""TIFF tags; libtiff allocates whole tiles, however small the picture is."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""Exceptions that Pillow raises on damaged files."""

_lock = threading.RLock()
"""Pillow's limit and Python's warning filters are global, so only one thread at a time may change them."""


@contextmanager
def opened(content: bytes, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """Open a file in one of these formats without decoding pixels; raises ValueError if it has another format.

    Pillow's own size limit and its warnings are off, so the caller must check the size first.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with _opened(content, formats) as image:
                yield image
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def pixels(image: Image.Image) -> np.ndarray:
    """Decode the pixels; raises ValueError if they are damaged."""
    try:
        return np.asarray(image)
    except _BROKEN as error:
        _refuse(error, "its pixels cannot be decoded")


def decode(content: bytes, check_size: Callable[[tuple[int, int]], None]) -> np.ndarray:
    """Decode the first picture in a file: (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB, without palette and alpha.

    ``check_size`` is called with (height, width) before anything is decoded and may raise. Raises ValueError if the file cannot
    be read. One library reads both header and pixels, because two libraries could disagree about the size.
    """
    with opened(content, FORMATS) as image:
        check_size((image.height, image.width))
        if _tile(image) > MAX_PIXELS:
            raise ValueError(f"its tiles are larger than {MAX_PIXELS} pixels")
        if image.format == "PPM" and image.mode == "I":  # 16 bits, which Pillow scales to the whole range
            return pixels(image).astype(np.uint16)
        if image.mode in ("I", "F"):
            raise ValueError(_describe_numbers(content) or "it holds 32-bit numbers; expected pixels of 8 or 16 bits")
        if image.mode.startswith("I;16"):
            return pixels(image).astype(np.uint16)
        pixels(image)  # convert() also raises for reasons other than damage
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def is_animated(content: bytes) -> bool:
    """Whether a GIF holds several pictures; False if it is damaged."""
    try:
        with opened(content, ("GIF",)) as image:
            return bool(getattr(image, "is_animated", False))
    except _BROKEN:
        return False


def _opened(content: bytes, formats: tuple[str, ...]) -> Image.Image:
    try:
        return Image.open(BytesIO(upright(content)), formats=formats)  # Pillow would rotate TIFFs, but no other format
    except Image.UnidentifiedImageError:
        if held := _describe_numbers(content):
            raise ValueError(held) from None
        known = ", ".join(dict.fromkeys(("JPEG", "PNG", *formats)))
        if name := foreign_format(content):
            raise ValueError(f"it is {name}; expected one of {known}") from None
        raise ValueError(f"its format is not one of {known}, or its header is damaged") from None
    except _BROKEN as error:
        _refuse(error, "its header cannot be read")


def _refuse(error: Exception, reason: str) -> NoReturn:
    """Raise ValueError with our own reason: Pillow's messages differ between versions and may name objects."""
    if isinstance(error, OSError) and error.errno:
        raise error  # from the system, not about these bytes
    raise ValueError(reason) from None


def _describe_numbers(content: bytes) -> str:
    """Describe the numbers of a TIFF that cannot be read; "" for all other formats."""
    held = numbers(content)
    return held and f"it holds {held}; expected pixels of 8 or 16 bits, gray or in colours"


def _tile(image: Image.Image) -> int:
    """The number of pixels in a tile, as a TIFF declares it; 1 for all other formats."""
    tags = getattr(image, "tag_v2", {})
    sides = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if not all(isinstance(side, int) for side in sides):
        raise ValueError("it is damaged: its tiles have no size")
    return sides[0] * sides[1]
