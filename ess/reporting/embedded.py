"""Pictures and figures as parts of the page: small WebP files and CSVs in data URIs."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from cocolvis.errors import DataError
from cocolvis.inspection.render import mask_alone
from cocolvis.storage.dataset import Dataset
from ess.evaluation.picture_scores import PictureScore
from ess.figures.figure import Figure
from ess.reporting.tally import Kept

SIDE = 640
"""The longest side of an embedded picture, in pixels."""

WIDTH, HEIGHT = 1600, 6000
"""The largest width and height of a figure whose file is large, in pixels."""

_QUALITY = 85

_LARGEST = 250_000
"""Bytes up to which the file of a figure is embedded as it is, and its numbers are embedded."""


class Embedded(NamedTuple):
    """An image on the page: its data URI, and its size in pixels."""

    source: str
    width: int
    height: int


class Example(NamedTuple):
    """A picture with its truth and its prediction; unlabelled pixels of both are black."""

    score: PictureScore
    panels: list[tuple[str, Embedded]]


class Drawn(NamedTuple):
    """A figure on the page; ``numbers`` is the data URI of its CSV, or None if that is too large or absent."""

    figure: Figure
    image: Embedded
    numbers: str | None


def examples(kept: Sequence[Kept], dataset: Dataset, split: str) -> list[Example]:
    """Pictures of a split with the names of their largest classes, at most :data:`SIDE` pixels wide and high."""
    found = []
    for one in kept:
        size = _within(one.truth.shape, (SIDE, SIDE))
        truth, prediction = (cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in (one.truth, one.prediction))
        masks = [_fitted(mask_alone(mask, dataset.vocabulary)) for mask in (truth, np.where(truth > 0, prediction, 0))]
        panels = [("image", webp(_fitted(dataset.find(one.score.image_id, split).image()), exact=False))]
        panels += [(name, webp(mask, exact=True)) for name, mask in zip(("truth", "prediction"), masks, strict=True)]
        found.append(Example(one.score, panels))
    return found


def drawn(figure: Figure) -> Drawn:
    """A figure and its numbers; raises DataError if a file cannot be read."""
    content, numbers = _content(figure.png), _content(figure.csv) if figure.csv else b""
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise DataError(f"{figure.png}: cannot be decoded")
    image = Embedded(data_uri("image/png", content), pixels.shape[1], pixels.shape[0])
    if len(content) > _LARGEST:
        image = webp(_fitted(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), HEIGHT, WIDTH), exact=False)
    return Drawn(figure, image, data_uri("text/csv", numbers) if 0 < len(numbers) <= _LARGEST else None)


def webp(pixels: np.ndarray, *, exact: bool) -> Embedded:
    """A picture (H, W, 3) uint8 RGB as WebP, ``exact`` for masks or with the small loss that photographs allow."""
    content = BytesIO()
    how = {"lossless": True, "quality": 20, "method": 1} if exact else {"quality": _QUALITY}  # larger numbers take long
    Image.fromarray(pixels).save(content, "WEBP", **how)
    return Embedded(data_uri("image/webp", content.getvalue()), pixels.shape[1], pixels.shape[0])


def data_uri(media_type: str, content: bytes) -> str:
    """The content of a file as an address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _within(shape: tuple[int, ...], most: tuple[int, int]) -> tuple[int, int]:
    """The (width, height) of a picture of ``shape`` (H, W), scaled down if it exceeds ``most`` (H, W)."""
    factor = min(1.0, most[0] / shape[0], most[1] / shape[1])
    return max(1, round(shape[1] * factor)), max(1, round(shape[0] * factor))


def _fitted(pixels: np.ndarray, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """A picture (H, W, 3), scaled down if it is higher or wider than this."""
    return cv2.resize(pixels, _within(pixels.shape, (height, width)), interpolation=cv2.INTER_AREA)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
