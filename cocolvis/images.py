"""Encoded pictures (JPEG, PNG): their size without decoding, and their pixels as three RGB channels."""

import struct
from pathlib import Path

import cv2
import numpy as np

from cocolvis.files import write_aside

_START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_START_OF_SCAN = 0xDA
_END_OF_IMAGE = b"\xff\xd9"
_PNG = b"\x89PNG\r\n\x1a\n"


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) as stored, from the header of a JPEG or PNG; EXIF orientation plays no part.

    A ValueError with the reason when the bytes are neither, or break off before their end marker.
    """
    if content.startswith(_PNG):
        if len(content) < 24 or b"IEND" not in content[-16:]:
            raise ValueError("the PNG breaks off")
        width, height = struct.unpack(">II", content[16:24])
        return height, width
    if not content.startswith(b"\xff\xd8"):
        raise ValueError("it is neither a JPEG nor a PNG" if content else "the file is empty")
    size, at = None, 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _START_OF_FRAME:
            size = struct.unpack(">HH", content[at + 5 : at + 9])
        if marker == _START_OF_SCAN:
            break
        at += 2 + struct.unpack(">H", content[at + 2 : at + 4])[0]
    if size is None:
        raise ValueError("the JPEG has no frame header")
    if content.rfind(_END_OF_IMAGE, at) < 0:
        raise ValueError("the JPEG breaks off")
    return size


def decode_rgb(content: bytes | np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an encoded picture, EXIF orientation ignored; grayscale and CMYK become RGB.

    A ValueError when it cannot be decoded.
    """
    encoded = np.frombuffer(content, dtype=np.uint8)
    try:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION) if encoded.size else None
    except cv2.error as error:
        raise ValueError(f"the picture cannot be decoded: {error.err}") from None
    if pixels is None:
        raise ValueError("the picture cannot be decoded")
    return pixels


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write (H, W) uint16 class ids or (H, W, 3) uint8 RGB as a PNG, whole or not at all; a DataError where that fails."""
    encoded = cv2.imencode(".png", pixels if pixels.ndim == 2 else pixels[..., ::-1])[1]
    with write_aside(path) as aside:
        aside.write_bytes(encoded)
