"""Pictures that are neither JPEG nor PNG, through Pillow, which reads the header first, and pixels when they are asked for."""

import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import NoReturn

import numpy as np
from PIL import Image

from cocolvis.limits import MAX_PIXELS
from cocolvis.pictures.tiff_tags import numbers, upright

FORMATS = ("BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Those that :func:`decode` reads, by the names that Pillow has for them."""

_TILE_WIDTH, _TILE_LENGTH = 322, 323
"""Tags of TIFF: libtiff makes room for whole tiles, however small the picture is."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
"""What Pillow raises on damaged files."""

_lock = threading.RLock()
"""Pillow's limit and Python's warnings belong to the whole process: one thread at a time may set them aside."""


@contextmanager
def opened(content: bytes, formats: Sequence[str]) -> Iterator[Image.Image]:
    """A file in one of these formats, its header read and no pixel decoded; a ValueError where it is none.

    Pillow's own limit is off, and so are its warnings: the size is for the caller to check, before anything else.
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
    """The pixels as Pillow decodes them; a ValueError where they are damaged."""
    try:
        return np.asarray(image)
    except _BROKEN as error:
        _refuse(error, "its pixels cannot be decoded")


def decode(content: bytes, check_size: Callable[[tuple[int, int]], None]) -> np.ndarray:
    """(H, W) uint8 or uint16, or (H, W, 3) uint8 RGB, of the first picture in a file; no palette and no alpha.

    ``check_size`` is given (height, width) before anything is decoded, and raises what it likes. A ValueError where the file
    cannot be read. Header and pixels are read by one library: two could read two sizes out of one file.
    """
    with opened(content, FORMATS) as image:
        check_size((image.height, image.width))
        if _tile(image) > MAX_PIXELS:
            raise ValueError(f"its tiles are larger than {MAX_PIXELS} pixels")
        if image.mode in ("I", "F"):
            raise ValueError(_held(content) or "it holds 32-bit numbers; expected pixels of 8 or 16 bits")
        if image.mode.startswith("I;16"):
            return pixels(image).astype(np.uint16)
        pixels(image)  # what convert() raises is not only of damaged files
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))


def _opened(content: bytes, formats: Sequence[str]) -> Image.Image:
    try:
        return Image.open(BytesIO(upright(content)), formats=formats)  # Pillow would turn a TIFF, and no other
    except Image.UnidentifiedImageError:
        if held := _held(content):
            raise ValueError(held) from None
        known = ", ".join(dict.fromkeys(("JPEG", "PNG", *formats)))
        raise ValueError(f"it is none of {known}, or its header is damaged") from None
    except _BROKEN as error:
        _refuse(error, "its header cannot be read")


def _refuse(error: Exception, reason: str) -> NoReturn:
    """Say what is wrong in our own words: Pillow's differ between versions, and may name objects."""
    if isinstance(error, OSError) and error.errno:
        raise error  # of the system, not of these bytes
    raise ValueError(reason) from None


def _held(content: bytes) -> str:
    """Which numbers a TIFF holds that is not read; "" for all others."""
    held = numbers(content)
    return held and f"it holds {held}; expected pixels of 8 or 16 bits, gray or in colours"


def _tile(image: Image.Image) -> int:
    """Pixels of a tile as a TIFF declares them, 1 for all others."""
    tags = getattr(image, "tag_v2", {})
    sides = tags.get(_TILE_WIDTH, 1), tags.get(_TILE_LENGTH, 1)
    if not all(isinstance(side, int) for side in sides):
        raise ValueError("it is damaged: its tiles have no size")
    return sides[0] * sides[1]
