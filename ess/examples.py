"""Pictures with masks that show a class: found by stem, read one by one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cocolvis import images
from cocolvis.errors import DataError
from cocolvis.folders import Similar
from cocolvis.text import composed
from ess.inputs import Input, find_inputs


def pair(images: Sequence[str], masks: Sequence[str]) -> list[tuple[Path, Path]]:
    """(picture, mask) of equal stem, of files, folders or globs; a DataError unless every mask has its picture.

    A picture without a mask is no example, so that a large folder of pictures may stand beside a few masks.
    """
    pictures, drawn = ({composed(one.path.stem): one for one in _pictures(names)} for names in (images, masks))
    for stem, mask in drawn.items():
        if stem not in pictures:
            near = Similar(one.path.name for one in pictures.values()).find(stem)
            there = f"; there is {near}" if near else ""
            raise DataError(f"{mask.path}: no picture has its stem; expected {stem}.jpg or the like among --images{there}")
    return [(pictures[stem].path, mask.path) for stem, mask in drawn.items()]


def read_examples(pairs: Sequence[tuple[Path, Path]], value: int | None = None) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(picture's file, image (H, W, 3) uint8 RGB, (H, W) bool where the class is) for each pair.

    The class is where the mask is ``value``, or where it is not 0. A DataError for files that cannot be read, a mask of another
    size than its picture, and one in colours where a value is asked for.
    """
    for picture, mask in pairs:
        image = _read(picture, "picture", images.decode_file)
        size = image.shape[:2]
        try:
            stored = _read(mask, "mask", partial(images.decode_stored, expected=size))
        except images.WrongSize as error:
            raise DataError(f"{mask}: {error}, its picture {picture} is {size[0]} x {size[1]}; expected equal sizes") from None
        yield str(picture), image, _marked(mask, stored, value)


def _pictures(names: Sequence[str]) -> list[Input]:
    found = find_inputs(names)
    for one in found:
        if one.is_video:
            raise DataError(f"{one.path}: is a video; expected pictures")
    for one in found:
        same = [other.path for other in found if composed(other.path.stem) == composed(one.path.stem)]
        if len(same) > 1:
            raise DataError(
                f"{same[1]}: has the stem of {same[0]}; pictures and masks are paired by stem, so each must be there once"
            )
    return found


def _read(path: Path, what: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except images.WrongSize:
        raise
    except ValueError as error:
        raise DataError(f"{path}: the {what} cannot be decoded: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _marked(path: Path, mask: np.ndarray, value: int | None) -> np.ndarray:
    if mask.ndim == 3:
        if value is not None:
            raise DataError(f"{path}: is in colours, which have no value {value}; expected a grayscale PNG")
        mask = mask.any(axis=2)
    return mask != 0 if value is None else mask == value
