"""Pictures with masks that show a class: found by stem, read one by one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from cocolvis.errors import DataError
from cocolvis.folders import Similar
from cocolvis.images import decode_rgb
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
        image = _read(picture, decode_rgb)
        marked = _marked(mask, _read(mask, _decode_mask), value)
        if marked.shape != image.shape[:2]:
            raise DataError(f"{mask}: is {_size(marked)}, its picture {picture} is {_size(image)}; expected equal sizes")
        yield str(picture), image, marked


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


def _read(path: Path, decode) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {getattr(error, 'strerror', None) or error}; expected a JPEG or PNG") from None


def _decode_mask(content: bytes) -> np.ndarray:
    """(H, W) or (H, W, channels) as stored, alpha left out; a ValueError when it cannot be decoded."""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED) if content else None
    if pixels is None:
        raise ValueError("the mask cannot be decoded")
    return pixels[..., :3] if pixels.ndim == 3 else pixels


def _marked(path: Path, mask: np.ndarray, value: int | None) -> np.ndarray:
    if mask.ndim == 3:
        if value is not None:
            raise DataError(f"{path}: is in colours, which have no value {value}; expected a grayscale PNG")
        mask = mask.any(axis=2)
    return mask != 0 if value is None else mask == value


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[0]} x {pixels.shape[1]}"
