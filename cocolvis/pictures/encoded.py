"""Encoded pictures: reads their size from the header, checks their integrity, and decodes them.

A picture is decoded only after its size has been read and checked, because a few kilobytes can decode to gigabytes of pixels.
"""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from cocolvis.disk.files import write_aside
from cocolvis.disk.formats import format_name
from cocolvis.errors import DataError
from cocolvis.limits import MAX_PIXELS
from cocolvis.pictures import jpeg, png


class WrongSize(ValueError):
    """The header declares another size than expected; the message is a predicate such as "is 4 x 4"."""


class NoMemory(ValueError, MemoryError):
    """The machine has too little free memory to decode the picture; the picture itself may be fine."""


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) as stored, from the header of a JPEG or PNG; EXIF orientation is ignored.

    Raises ValueError if the bytes are neither JPEG nor PNG, or if they break off before their end marker.
    """
    if content.startswith(png.SIGNATURE):
        return png.read_header(content)[:2]
    if content.startswith(jpeg.START):
        return jpeg.read_size(content)
    if not content:
        raise ValueError("the file is empty")
    name = format_name(content)
    raise ValueError(f"it is {name}; expected a JPEG or PNG" if name else "it is neither a JPEG nor a PNG")


def check(content: bytes, expected: tuple[int, int], decode: bool = True) -> None:
    """Raise ValueError if a JPEG or PNG is damaged, or WrongSize if its (height, width) is not ``expected``.

    A PNG is always checked completely (:func:`png.check`), a JPEG (:func:`jpeg.check`) only if ``decode`` is set. A completely
    checked picture must also decode, because OpenCV rejects some optional chunks.
    """
    _check_size(image_size(content), expected)
    if content.startswith(png.SIGNATURE):
        png.check(content)
    elif decode:
        jpeg.check(content)
    else:
        return
    decode_rgb(content, expected)


def decode_rgb(content: bytes, expected: tuple[int, int] | None = None) -> np.ndarray:
    """Decode a JPEG or PNG to (H, W, 3) uint8 RGB without applying EXIF orientation; grayscale and CMYK are converted.

    Raises WrongSize if the header declares another size than ``expected``, NoMemory if there is too little free memory, and
    ValueError if the header declares more than 2^27 pixels or the picture cannot be decoded.
    """
    return _by_opencv(content, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, expected)


def decode_file(content: bytes, expected: tuple[int, int] | None = None) -> np.ndarray:
    """Like :func:`decode_rgb`, for more formats: JPEG, PNG, and the first picture of a BMP, GIF, PPM, TIFF or WebP."""
    if _is_common(content):
        return decode_rgb(content, expected)
    pixels = _of_other_format(content, expected)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def decode_stored(content: bytes, expected: tuple[int, int] | None = None) -> np.ndarray:
    """Like :func:`decode_file`, but keep 16-bit values and grayscale: (H, W) or (H, W, 3), uint8 or uint16."""
    if not _is_common(content):
        return _of_other_format(content, expected)
    pixels = _by_opencv(content, cv2.IMREAD_UNCHANGED, expected)
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def check_pixels(size: tuple[int, int]) -> None:
    """Raise ValueError unless (height, width) has between 1 and 2^27 pixels."""
    if not 0 < size[0] * size[1] <= MAX_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are not in 1..{MAX_PIXELS}")


def warm_up() -> None:
    """Compile the kernels of :func:`check`, or load them from the cache, before processes and threads need them."""
    check(cv2.imencode(".jpg", np.zeros((8, 8), np.uint8))[1].tobytes(), (8, 8))


def write_png(path: Path, pixels: np.ndarray, permit: Callable[[], None] = lambda: None, *, sync: bool = True) -> None:
    """Write (H, W) uint16 class ids or (H, W, 3) uint8 RGB as a PNG, whole or not at all; raises DataError if that fails.

    ``permit`` and ``sync`` are passed to :func:`cocolvis.disk.files.write_aside`.
    """
    done, encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])
    if not done:
        raise DataError(f"{path}: cannot be written: a PNG cannot hold {pixels.shape[0]} x {pixels.shape[1]} pixels")
    with write_aside(path, permit, sync=sync) as aside:
        aside.write_bytes(encoded.data)


def _is_common(content: bytes) -> bool:
    return not content or content.startswith((png.SIGNATURE, jpeg.START))


def _of_other_format(content: bytes, expected: tuple[int, int] | None) -> np.ndarray:
    from cocolvis.pictures import other_formats  # few pictures need Pillow

    return other_formats.decode(content, lambda size: _check_size(size, expected))


def _check_size(size: tuple[int, int], expected: tuple[int, int] | None) -> None:
    if expected is not None and size != expected:
        raise WrongSize(f"is {size[0]} x {size[1]}")
    check_pixels(size)


def _by_opencv(content: bytes, flags: int, expected: tuple[int, int] | None) -> np.ndarray:
    size = image_size(content)
    _check_size(size, expected)
    if content.startswith(png.SIGNATURE):
        content = png.without_profile(content)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        if error.code == cv2.Error.StsNoMem:
            raise NoMemory(f"not enough memory for its {size[0]} x {size[1]} pixels") from None
        raise ValueError(f"its pixels cannot be decoded: {error.err}") from None
    if pixels is None or pixels.shape[:2] != size:
        raise ValueError("its pixels cannot be decoded")
    return pixels
