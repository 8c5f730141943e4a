"""Remarks on readable pictures that may surprise users: they look different in viewers, or show almost nothing."""

from collections.abc import Mapping

import numpy as np

from cocolvis.pictures import encoded, jpeg, png
from cocolvis.pictures.tiff_tags import BITS, ORIENTATION, has_more, read_tags

ROTATED, DARK, PAGES = "rotated", "dark", "pages"
"""The kinds of remarks."""

_WORDS = {
    ROTATED: "an EXIF orientation, which is ignored: labels refer to the pixels as stored",
    DARK: "16-bit values that do not exceed 4095, as if of 12 bits, and are read as almost black: multiply them by 16",
    PAGES: "several pictures in one file, of which only the first is read",
}

_TURNED = (5, 6, 7, 8)
"""Orientations that swap height and width."""

_ANIMATED = 0x02
"""The flag of an animation in the header of a WebP."""

_EXIF_START = b"Exif\0\0"


def orientation(content: bytes) -> int:
    """The orientation 1..8 in the EXIF data of a JPEG, PNG or WebP, or in a TIFF; 1 means as stored."""
    if content.startswith(jpeg.START):
        content = jpeg.exif(content)
    elif content.startswith(png.SIGNATURE):
        content = png.exif(content)
    elif content.startswith(b"RIFF"):
        content = content[place + 8 :] if (place := content.find(b"EXIF", 12)) > 0 else b""
    value = read_tags(content.removeprefix(_EXIF_START), (ORIENTATION,)).get(ORIENTATION, (1,))[0]
    return value if 1 <= value <= 8 else 1


def why_size(content: bytes, size: tuple[int, int], expected: tuple[int, int]) -> str:
    """The end of a message about a wrong size that the EXIF orientation would turn into the ``expected`` one; "" otherwise."""
    if size != expected[::-1] or (turned := orientation(content)) not in _TURNED:
        return ""
    return f"; only its EXIF orientation, {turned}, turns it to that size, and labels must refer to the pixels as stored"


def of_picture(content: bytes) -> list[str]:
    """The kinds of remarks that apply to a readable picture; a picture with 16-bit values is decoded once more."""
    applies = {ROTATED: orientation(content) > 1, DARK: _is_dark(content), PAGES: _has_more(content)}
    return [kind for kind, holds in applies.items() if holds]


def lines(counts: Mapping[str, int], first: Mapping[str, str] | None = None) -> list[str]:
    """One line for each kind of remark, with the number of pictures; ``first`` names one picture of each kind."""
    remarks = []
    for kind, words in _WORDS.items():
        if count := counts.get(kind, 0):
            named = f" ({first[kind]}{', ...' if count > 1 else ''})" if first else ""
            remarks.append((f"{count} pictures{named} have " if count > 1 else f"1 picture{named} has ") + words)
    return remarks


def _has_more(content: bytes) -> bool:
    """Whether a file holds several pictures: an animated GIF, PNG or WebP, or a TIFF with several pages."""
    if content.startswith(png.SIGNATURE):
        return png.is_animated(content)
    if content.startswith(b"RIFF"):
        return content[12:16] == b"VP8X" and len(content) > 20 and bool(content[20] & _ANIMATED)
    if content.startswith(b"GIF8"):
        from cocolvis.pictures import other_formats  # few pictures need Pillow

        return other_formats.is_animated(content)
    return has_more(content)


def _is_dark(content: bytes) -> bool:
    if content.startswith(png.SIGNATURE):
        deep = png.read_header(content).bits == 16
    else:
        deep = max(read_tags(content, (BITS,)).get(BITS, (1,))) in (12, 16)
    if not deep:
        return False
    pixels = encoded.decode_stored(content)
    return 0 < int(pixels.max()) < (2**12 if pixels.dtype == np.uint16 else 2**4)
