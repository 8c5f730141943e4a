"""The legend of a drawn mask: colour, name and pixels of every class in it, and the class lists that LVIS gives."""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cocolvis.palette import palette
from cocolvis.storage.samples import Sample
from cocolvis.vocabulary import UNLABELLED, Vocabulary

_SMALLEST, _LARGEST = 16, 160
"""Font sizes, in pixels."""

_SIDES_A_LINE = 60
"""The side of a square as large as the picture, in font sizes, if that is within the limits."""

_TALL = 1.5
"""Pictures that are higher than this many times their width get the legend on their right, the others below."""

_TIMES = "\N{MULTIPLICATION SIGN}"

_TEXT, _FAINT, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)


class _Entry(NamedTuple):
    """A line of the legend; the name of an outlined class is underlined."""

    colour: tuple[int, ...]
    name: str
    number: str
    outlined: bool


def with_legend(picture: np.ndarray, sample: Sample, vocabulary: Vocabulary, outlined: int = UNLABELLED) -> np.ndarray:
    """Add the legend of a sample below its drawing, or on the right of a tall one: (h, w, 3) uint8 RGB to (H, W, 3) uint8 RGB.

    Every class in the mask is listed with its colour, name, pixels and share of the image, largest first and unlabelled pixels
    last; ``x3`` with a multiplication sign means 3 instances. The classes that LVIS verified to be absent and those that it did
    not annotate exhaustively follow. The class ``outlined`` is underlined, and named if the mask does not show it. The drawing
    itself is unchanged.
    """
    height, width = picture.shape[:2]
    font = _font(int(min(max(math.sqrt(height * width) / _SIDES_A_LINE, _SMALLEST), _LARGEST)))
    entries = _entries(sample, vocabulary, outlined)
    notes = list(_notes(sample, vocabulary, outlined))
    beside = height > _TALL * width
    legend = _drawn(entries, notes, font, (height, None) if beside else (None, width))
    canvas = np.full(
        (max(height, legend.shape[0]), width + legend.shape[1], 3)
        if beside
        else (height + legend.shape[0], max(width, legend.shape[1]), 3),
        _PAPER[0],
        np.uint8,
    )
    canvas[:height, :width] = picture
    top, left = (0, width) if beside else (height, 0)
    canvas[top : top + legend.shape[0], left : left + legend.shape[1]] = legend
    return canvas


def _entries(sample: Sample, vocabulary: Vocabulary, outlined: int) -> list[_Entry]:
    pixels, counts = np.bincount(sample.mask.ravel(), minlength=1), sample.instances or {}
    ranked = sorted(np.flatnonzero(pixels).tolist(), key=lambda c: (c == UNLABELLED, -pixels[c], c))
    colours = palette(max(len(vocabulary), len(pixels) - 1))
    return [
        _Entry(
            tuple(colours[c].tolist()),
            vocabulary.name(c),
            f"{pixels[c]:,}  {100 * pixels[c] / sample.mask.size:.3g}%" + (f"  {_TIMES}{counts[c]:,}" if counts.get(c) else ""),
            c == outlined != UNLABELLED,
        )
        for c in ranked
    ]


def _notes(sample: Sample, vocabulary: Vocabulary, outlined: int) -> Iterator[str]:
    """The paragraphs below the list of classes."""
    if outlined != UNLABELLED and not (sample.mask == outlined).any():
        yield f"{vocabulary.name(outlined)}: not in this picture"
    for title, classes in (("verified absent", sample.neg), ("not exhaustively annotated", sample.not_exhaustive)):
        if classes.size:
            yield f"{title} (LVIS): {', '.join(vocabulary.name(c) for c in classes.tolist())}"


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # its font has the letters of most languages; OpenCV's has those of English only

    return ImageFont.truetype(str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def _drawn(
    entries: Sequence[_Entry], notes: Sequence[str], font: ImageFont.FreeTypeFont, room: tuple[int | None, int | None]
) -> np.ndarray:
    """The legend alone: (h, w, 3) uint8 RGB, with columns that fit into one of height and width, ``room``."""
    size = int(font.size)
    line, gap = round(1.4 * size), size
    names = max(font.getlength(entry.name) for entry in entries)
    numbers = max(font.getlength(entry.number) for entry in entries)
    column = math.ceil(line + names + gap + numbers + gap)
    height, width = room
    if width is not None:
        columns = min(len(entries), max(1, (width - gap) // column))
        rows = -(-len(entries) // columns)
    else:
        rows = min(len(entries), max(1, ((height or 0) - gap) // line))
        columns = -(-len(entries) // rows)
    width = max(width or 0, gap + columns * column)
    paragraphs = [part for note in notes for part in _wrapped(note, font, width - 2 * gap)]
    total = gap + rows * line + (len(paragraphs) * line + gap // 2 if paragraphs else 0) + gap // 2
    image = Image.new("RGB", (width, total), _PAPER)
    draw = ImageDraw.Draw(image)
    for number, entry in enumerate(entries):
        left, top = gap + number // rows * column, gap // 2 + number % rows * line
        draw.rectangle((left, top + line // 8, left + size, top + line // 8 + size), fill=entry.colour, outline=_FAINT)
        draw.text((left + line, top), entry.name, fill=_TEXT, font=font)
        draw.text((left + column - gap, top), entry.number, fill=_FAINT, font=font, anchor="ra")
        if entry.outlined:
            under = top + round(1.22 * size)
            draw.line((left + line, under, left + line + font.getlength(entry.name), under), _TEXT, max(1, size // 8))
    for number, text in enumerate(paragraphs):
        draw.text((gap, gap + (rows + number) * line), text, fill=_TEXT, font=font)
    return np.asarray(image)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> Iterator[str]:
    """The lines of a paragraph; a word that is wider than ``width`` pixels continues on the next line."""
    current = ""
    for word in text.split(" "):
        longer = f"{current} {word}" if current else word
        if font.getlength(longer) <= width:
            current = longer
            continue
        if current:
            yield current
        current = word
        while font.getlength(current) > width and len(current) > 1:
            fits = max(1, next((n for n in range(len(current), 1, -1) if font.getlength(current[:n]) <= width), 1))
            yield current[:fits]
            current = current[fits:]
    yield current
