"""Pairs the example pictures of a class with their masks, by file stem, and reads them one at a time."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from cocolvis.disk.files import reason, regular_file
from cocolvis.disk.folders import Similar
from cocolvis.errors import DataError
from cocolvis.pictures import remarks
from cocolvis.pictures.encoded import decode_file
from cocolvis.pictures.label_files import label_pixels, open_labels
from cocolvis.text import first_few, nfc
from ess.inference.inputs import Input, find_inputs

Decoded = TypeVar("Decoded")

log = logging.getLogger("ess")

_NAMED = 8
"""How many values of the masks a message names if none of them fits."""


def pair(images: Sequence[str], masks: Sequence[str]) -> list[tuple[Path, Path]]:
    """(picture, mask) files with the same stem, from files, folders or globs; raises DataError unless every mask has a picture.

    Pictures without a mask are ignored, so a few masks can be used with a large folder of pictures.
    """
    pictures, drawn = ({nfc(one.path.stem): one for one in _pictures(names)} for names in (images, masks))
    for stem, mask in drawn.items():
        if stem not in pictures:
            near = Similar(one.path.name for one in pictures.values()).find(stem)
            there = f"; there is {near}" if near else ""
            raise DataError(
                f"{mask.path}: no picture has the same stem; expected {stem}.jpg, for example, among --images{there}"
            )
    return [(pictures[stem].path, mask.path) for stem, mask in drawn.items()]


def read_examples(pairs: Sequence[tuple[Path, Path]], value: int | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield (picture file, image (H, W, 3) uint8 RGB, (H, W) bool marking the class) of each pair.

    Masks are label files as `cocolvis import` reads them. The class is marked by ``value`` or, without a value, by the only
    value of a mask other than 0; a mask drawn in one colour on black has the value 1 there. If most pixels are marked in this
    way, a warning says so, because the mask may be inverted. Raises DataError if a file cannot be read, if a mask has another
    size than its picture or, without ``value``, several values other than 0, and at the end if the masks mark no pixel or every
    pixel.
    """
    held: dict[int, int] = {}
    for picture, mask in pairs:
        encoded = _read(picture, "picture")
        image = _decoded(picture, "picture", lambda: decode_file(encoded))  # noqa: B023 (called in the same iteration)
        labels = _labels(mask, picture, encoded, image.shape[:2], drawn=value is None)
        counted = label_pixels(labels)
        if value is None and len(others := [label for label in counted if label]) > 1:
            raise DataError(f"{mask}: holds the values {first_few(others, _NAMED)}; choose the one of the class with --value")
        for label, pixels in counted.items():
            held[label] = held.get(label, 0) + pixels
        yield str(picture), image, labels != 0 if value is None else labels == value
    _check_held(held, value)


def _labels(mask: Path, picture: Path, encoded: bytes, size: tuple[int, int], *, drawn: bool) -> np.ndarray:
    """The (H, W) values of a mask; raises DataError unless its size is that of its picture."""
    stored = _read(mask, "mask")
    opened = _decoded(mask, "mask", lambda: open_labels(stored, drawn=drawn))
    if opened.size != size:
        height, width = opened.size
        why = remarks.why_size(encoded, size, opened.size)
        raise DataError(
            f"{mask}: is {height} x {width}, its picture {picture} is {size[0]} x {size[1]}; expected equal sizes{why}"
        )
    return _decoded(mask, "mask", opened.read)


def _check_held(held: dict[int, int], value: int | None) -> None:
    """Raise DataError, naming the values in the masks, if no pixel is marked, or every pixel is; warn if they look inverted."""
    if not held:
        return
    marked = [label for label in held if (label != 0 if value is None else label == value)]
    is_wanted = "is other than 0" if value is None else f"is {value}"
    there = f"they hold {first_few(sorted(held), _NAMED)}"
    if not marked:
        raise DataError(f"no pixel of the masks {is_wanted}: {there}; choose one of these with --value")
    if len(marked) == len(held):
        choose = "; choose one of these with --value" if len(held) > 1 else ""
        raise DataError(f"every pixel of the masks {is_wanted}, which does not show where the class ends: {there}{choose}")
    share = 1 - held.get(0, 0) / sum(held.values())
    if value is None and share > 0.5:
        log.warning(
            "the masks mark %.0f %% of the pixels; if the class is where they are 0, add it with --value 0", 100 * share
        )


def _pictures(names: Sequence[str]) -> list[Input]:
    inputs = find_inputs(names)
    for one in inputs:
        if one.is_video:
            raise DataError(f"{one.path}: is a video; expected pictures")
    seen: dict[str, Path] = {}
    for one in inputs:
        first = seen.setdefault(nfc(one.path.stem), one.path)
        if first is not one.path:
            raise DataError(
                f"{one.path}: has the same stem as {first}; pictures and masks are paired by stem, so each stem must be unique"
            )
    return inputs


def _read(path: Path, what: str) -> bytes:
    try:
        regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the {what} cannot be read: {reason(error)}") from None


def _decoded(path: Path, what: str, decode: Callable[[], Decoded]) -> Decoded:
    try:
        return decode()
    except ValueError as error:
        raise DataError(f"{path}: the {what} cannot be decoded: {error}") from None
