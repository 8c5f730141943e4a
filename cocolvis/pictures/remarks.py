"""What is worth a word of pictures that can be read: they are not what they look like elsewhere, or show next to nothing."""

from collections.abc import Mapping

import numpy as np

from cocolvis.pictures import encoded, jpeg, png
from cocolvis.pictures.tiff_tags import BITS, ORIENTATION, has_more, read_tags

ROTATED, DARK, PAGES = "rotated", "dark", "pages"
"""Kinds of remarks."""

_WORDS = {
    ROTATED: "an EXIF orientation, which is ignored: labels lie on the pixels as stored",
    DARK: "values of 16 bits that end at 4095 or below, as of 12 bits, and are read as almost black: multiply them by 16",
    PAGES: "several pictures in one file, of which the first is read",
}

_TURNED = (5, 6, 7, 8)
"""Orientations by which height and width change places."""

_EXIF_START = b"Exif\0\0"


def orientation(content: bytes) -> int:
    """How a viewer would turn a picture, 1..8, by the EXIF of a JPEG, PNG or WebP, or by a TIFF; 1 is as it is stored."""
    if content.startswith(jpeg.START):
        content = jpeg.exif(content)
    elif content.startswith(png.SIGNATURE):
        content = png.exif(content)
    elif content.startswith(b"RIFF"):
        content = content[place + 8 :] if (place := content.find(b"EXIF", 12)) > 0 else b""
    found = read_tags(content.removeprefix(_EXIF_START), (ORIENTATION,)).get(ORIENTATION, (1,))[0]
    return found if 1 <= found <= 8 else 1


def why_size(content: bytes, size: tuple[int, int], expected: tuple[int, int]) -> str:
    """What to add where a picture's (height, width) is not as ``expected``: that it would be, if it were turned; else ""."""
    if size != expected[::-1] or (found := orientation(content)) not in _TURNED:
        return ""
    return f"; only its EXIF orientation, {found}, turns it to that size, and labels must lie on the pixels as stored"


def of_picture(content: bytes) -> list[str]:
    """The kinds of remarks on a picture that can be read; it is decoded once more where its numbers have 16 bits."""
    found = {ROTATED: orientation(content) > 1, DARK: _is_dark(content), PAGES: has_more(content)}
    return [kind for kind, holds in found.items() if holds]


def lines(counts: Mapping[str, int], first: Mapping[str, str] | None = None) -> list[str]:
    """A line for each kind of remark, of so many pictures; ``first`` names one of each kind."""
    said = []
    for kind, words in _WORDS.items():
        if count := counts.get(kind, 0):
            named = f" ({first[kind]}{', ...' if count > 1 else ''})" if first else ""
            said.append((f"{count} pictures{named} have " if count > 1 else f"1 picture{named} has ") + words)
    return said


def _is_dark(content: bytes) -> bool:
    if content.startswith(png.SIGNATURE):
        deep = png.read_header(content).bits == 16
    else:
        deep = max(read_tags(content, (BITS,)).get(BITS, (1,))) in (12, 16)
    if not deep:
        return False
    pixels = encoded.decode_stored(content)
    return 0 < int(pixels.max()) < (2**12 if pixels.dtype == np.uint16 else 2**4)
