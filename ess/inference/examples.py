"""Examples of a class, pictures with masks: paired by file stem, read one at a time."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from cocolvis.disk.files import regular_file
from cocolvis.disk.folders import Similar
from cocolvis.errors import DataError
from cocolvis.pictures import remarks
from cocolvis.pictures.encoded import decode_file
from cocolvis.pictures.label_files import label_pixels, open_labels
from cocolvis.text import nfc
from ess.inference.inputs import Input, find_inputs

Decoded = TypeVar("Decoded")

_NAMED = 8
"""How many values of the masks a message names when none of them fits."""


def pair(images: Sequence[str], masks: Sequence[str]) -> list[tuple[Path, Path]]:
    """(picture, mask) files with the same stem, from files, folders or globs; a DataError unless every mask has a picture.

    Pictures without a mask are ignored, so a few masks can be used with a large folder of pictures.
    """
    pictures, drawn = ({nfc(one.path.stem): one for one in _pictures(names)} for names in (images, masks))
    for stem, mask in drawn.items():
        if stem not in pictures:
            near = Similar(one.path.name for one in pictures.values()).find(stem)
            there = f"; there is {near}" if near else ""
            raise DataError(f"{mask.path}: no picture has its stem; expected {stem}.jpg or the like among --images{there}")
    return [(pictures[stem].path, mask.path) for stem, mask in drawn.items()]


def read_examples(pairs: Sequence[tuple[Path, Path]], value: int | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(picture's file, image (H, W, 3) uint8 RGB, (H, W) bool where the class is) for each pair.

    Masks are label files as `cocolvis import` reads them. The class is where they equal ``value`` or, without a value, where
    they are not 0; a mask drawn in one colour on black counts as 1 where it is drawn. A DataError for a file that cannot be
    read and for a mask of another size than its picture, and at the end if no pixel of any mask is of the class, or all are.
    """
    held: dict[int, int] = {}
    for picture, mask in pairs:
        encoded = _read(picture, "picture")
        image = _decoded(picture, "picture", lambda: decode_file(encoded))  # noqa: B023 (called in the same iteration)
        labels = _labels(mask, picture, encoded, image.shape[:2], drawn=value is None)
        for label, pixels in label_pixels(labels).items():
            held[label] = held.get(label, 0) + pixels
        yield str(picture), image, labels != 0 if value is None else labels == value
    _check_held(held, value)


def _labels(mask: Path, picture: Path, encoded: bytes, size: tuple[int, int], *, drawn: bool) -> np.ndarray:
    """The (H, W) values of a mask; a DataError unless its size is that of its picture."""
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
    """A DataError that names the values of all masks if no pixel of them is marked, or every pixel is."""
    if not held:
        return
    marked = [label for label in held if (label != 0 if value is None else label == value)]
    is_wanted = "is other than 0" if value is None else f"is {value}"
    there = f"they hold {', '.join(map(str, sorted(held)[:_NAMED]))}{', ...' if len(held) > _NAMED else ''}"
    if not marked:
        raise DataError(f"no pixel of the masks {is_wanted}: {there}; choose one of these with --value")
    if len(marked) == len(held):
        choose = "; choose one of these with --value" if len(held) > 1 else ""
        raise DataError(f"every pixel of the masks {is_wanted}, so that nothing shows where the class ends: {there}{choose}")


def _pictures(names: Sequence[str]) -> list[Input]:
    found = find_inputs(names)
    for one in found:
        if one.is_video:
            raise DataError(f"{one.path}: is a video; expected pictures")
    for one in found:
        same = [other.path for other in found if nfc(other.path.stem) == nfc(one.path.stem)]
        if len(same) > 1:
            raise DataError(
                f"{same[1]}: has the same stem as {same[0]}; pictures and masks are paired by stem, so each stem must be unique"
            )
    return found


def _read(path: Path, what: str) -> bytes:
    try:
        regular_file(path)
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the {what} cannot be read: {error.strerror or error}") from None


def _decoded(path: Path, what: str, decode: Callable[[], Decoded]) -> Decoded:
    try:
        return decode()
    except ValueError as error:
        raise DataError(f"{path}: the {what} cannot be decoded: {error}") from None
