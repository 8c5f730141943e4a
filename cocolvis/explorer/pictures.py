"""What the pages show of an image: its picture, its run lengths as the shard stores them, and thumbnails."""

import threading
from contextlib import nullcontext
from typing import NamedTuple

import cv2
import numpy as np

from cocolvis.errors import DataError
from cocolvis.explorer.cache import key_of
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.masks.runlength import Runs
from cocolvis.palette import palette
from cocolvis.pictures import jpeg, png
from cocolvis.pictures.encoded import decode_rgb, image_size
from cocolvis.storage.samples import Sample

SHOWN_PIXELS, SHOWN_SIDE = 2**25, 2**14
"""The most pixels, and the longest side, of a picture that a page draws; browsers refuse to draw much more."""

HEIGHT = 180
"""The height of a thumbnail on the page, in CSS pixels."""

_SHARP = 1.5
"""Pixels of a thumbnail's file per CSS pixel; screens have 1 to 3."""

_WIDEST = 640
"""The most CSS pixels that a thumbnail is wide."""

_QUALITY = 82

_LARGE = 2**22
"""Pixels from which only one picture is decoded at a time, to save memory."""

_decoding_large = threading.Lock()


class NoPicture(Exception):
    """The picture cannot be shown; the message says why."""


class Thumbnail(NamedTuple):
    """A small JPEG. ``shows_picture`` is False if it was drawn from the mask alone, until there is a usable picture."""

    content: bytes
    shows_picture: bool


class Confused(NamedTuple):
    """The pixels of one true class that a run took for another class."""

    run: Run
    row: int
    truth: int
    predicted: int


def read_sample(workspace: Workspace, image: int) -> Sample:
    """An image of the catalog as it is in its shard; raises DataError if it is damaged or cannot be read.

    A picture that is not in the shard may be missing, and is read by :func:`picture`.
    """
    assert workspace.catalog is not None
    place = workspace.catalog.place(image)
    return workspace.splits[place.split].stored(place.row)


def picture(workspace: Workspace, image: int, sample: Sample) -> tuple[bytes, str]:
    """The unchanged file of the picture of a ``sample``, image number ``image``, and its media type.

    Raises NoPicture if it cannot be read or must not be sent to a browser.
    """
    assert workspace.catalog is not None
    try:
        content = workspace.splits[workspace.catalog.place(image).split].with_picture(sample).content
        size = image_size(content) if content else None
    except DataError as error:
        raise NoPicture(str(error)) from None
    except ValueError as error:
        raise NoPicture(f"the picture is damaged: {error}") from None
    if size is None:
        raise NoPicture("the data set does not contain the picture")
    if size != sample.size:
        raise NoPicture(f"the picture is {size[0]} x {size[1]}, its mask {sample.size[0]} x {sample.size[1]}")
    if not is_shown(*size):
        raise NoPicture(f"the picture is too large to be shown here: {size[0]} x {size[1]} pixels")
    return content, "image/png" if content.startswith(png.SIGNATURE) else "image/jpeg"


def is_shown(height: int, width: int) -> bool:
    """Whether a page draws pictures and masks of this size."""
    return height * width <= SHOWN_PIXELS and max(height, width) <= SHOWN_SIDE


def runs_as_stored(runs: Runs) -> bytes:
    """The classes of all runs and then their lengths, little-endian uint16, as they are in the shard."""
    return b"".join(column.astype("<u2", copy=False).tobytes() for column in (runs.classes, runs.lengths))


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) in CSS pixels; narrow and wide pictures are cut to the shape of a tile by the page."""
    return HEIGHT, min(_WIDEST, max(HEIGHT // 2, round(width * HEIGHT / height)))


def thumbnail(workspace: Workspace, image: int, marked: tuple[int, ...] = (), confused: Confused | None = None) -> Thumbnail:
    """A small JPEG of an image, with the pixels of some classes marked, or those that a run confused.

    Without a usable picture it is drawn from the mask. Raises DataError if the mask is needed and damaged.
    """
    small = _unmarked(workspace, image)
    if not marked and confused is None:
        return small
    pixels = _marked(workspace, image, decode_rgb(small.content), marked, confused)
    return small._replace(content=_encoded(pixels))


def _unmarked(workspace: Workspace, image: int) -> Thumbnail:
    """A thumbnail from the cache, or a new one, which is kept if it shows the picture.

    Its key is the place of the image, because its number depends on which shards can be read.
    """
    assert workspace.catalog is not None
    place = workspace.catalog.place(image)
    key = key_of(workspace.pictures_key, place.split, str(place.row), str(HEIGHT * _SHARP))
    kept = workspace.thumbnails.get(key)
    if kept is not None:
        return Thumbnail(kept, True)
    sample = read_sample(workspace, image)
    pixels = _reduced(workspace, image, sample)
    if pixels is None:
        return Thumbnail(_encoded(_mask_alone(sample.runs)), False)
    content = _encoded(pixels)
    workspace.thumbnails.put(key, content)
    return Thumbnail(content, True)


def _marked(
    workspace: Workspace, image: int, pixels: np.ndarray, marked: tuple[int, ...], confused: Confused | None
) -> np.ndarray:
    """A thumbnail, (h, w, 3) uint8 RGB, with classes or confused pixels marked."""
    assert workspace.catalog is not None
    place = workspace.catalog.place(image)
    mask = sampled(workspace.splits[place.split].runs(place.row), *pixels.shape[:2])
    region = np.isin(mask, marked)
    if confused is not None:
        split = confused.run.splits[place.split]
        predicted = sampled(split.runs(confused.row), *pixels.shape[:2])
        region, mask = (mask == confused.truth) & (predicted == confused.predicted), predicted
    return _mark(pixels, region, mask)


def _reduced(workspace: Workspace, image: int, sample: Sample) -> np.ndarray | None:
    """The picture at the size of a thumbnail, (h, w, 3) uint8 RGB; None if it cannot be shown.

    A JPEG is decoded at a half, a quarter or an eighth of its size, which takes a fraction of the time.
    """
    try:
        content, _ = picture(workspace, image, sample)
    except NoPicture:
        return None
    if content.startswith(png.SIGNATURE):
        content = png.without_profile(content)
    height, width = sample.size
    shown = _file_size(height, width)
    factor = next((f for f in (8, 4, 2) if height >= f * shown[0] and width >= f * shown[1]), 1)
    if content.startswith(jpeg.START) and factor > 1:
        flag = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}[factor]
    else:
        flag = cv2.IMREAD_COLOR
    try:
        with _decoding_large if height * width >= _LARGE else nullcontext():
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    return None if pixels is None else cv2.resize(pixels, shown[::-1], interpolation=cv2.INTER_AREA)[..., ::-1]


def _file_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) of the file of a thumbnail."""
    shown = thumbnail_size(height, width)
    return round(shown[0] * _SHARP), round(shown[1] * _SHARP)


def sampled(runs: Runs, height: int, width: int) -> np.ndarray:
    """(height, width) class ids of a mask at evenly spaced pixels; the mask itself is not decoded."""
    rows = (np.arange(height) * 2 + 1) * runs.height // (2 * height)
    columns = (np.arange(width) * 2 + 1) * runs.width // (2 * width)
    ends = np.cumsum(runs.lengths, dtype=np.int64)
    return runs.classes[np.searchsorted(ends, rows[:, None] * runs.width + columns, side="right")]


def _mask_alone(runs: Runs) -> np.ndarray:
    mask = sampled(runs, *_file_size(runs.height, runs.width))
    return palette(int(mask.max(initial=1)))[mask]


def _mark(pixels: np.ndarray, region: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blend a region with the colours of its classes, outline it, and darken everything else."""
    colours = palette(int(mask.max(initial=1)))[mask].astype(np.float32)
    grown = cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    inside, outline = region[..., None], (grown & ~region)[..., None]
    blended = np.where(inside, 0.55 * pixels + 0.45 * colours, 0.55 * pixels)
    return np.where(outline, 255, blended).astype(np.uint8)


def _encoded(pixels: np.ndarray) -> bytes:
    done, content = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise DataError("the thumbnail cannot be encoded")
    return content.tobytes()
