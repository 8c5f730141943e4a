"""Augmentation of image and labels together: random crops, resizing, colours; and ImageNet's normalisation."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from ess.device import moved

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FILL = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""The mean colour, which fills crops outside the picture; it normalises to about 0."""

_LUMA = np.array([0.299, 0.587, 0.114])


class Crop(NamedTuple):
    """Which pixels of a picture a crop shows, ``rows`` x ``columns``, and which pixels of the crop they fill once resized."""

    rows: slice
    columns: slice
    target_rows: slice
    target_columns: slice
    mirrored: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the shown part of the picture."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def area(self) -> int:
        """h * w."""
        return self.shape[0] * self.shape[1]


def random_crop(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    size: int,
    scale: tuple[float, float],
    flip: float,
    around: tuple[int, int] | None = None,
) -> Crop:
    """A random crop of ``size`` x ``size`` pixels of a picture of ``shape`` (H, W).

    The picture is scaled by a factor drawn uniformly from ``scale``. The position of the crop is uniform among those with the
    largest overlap with the scaled picture, or, with a pixel ``around`` (row, column), among those that also contain that
    pixel; it is mirrored with probability ``flip``. Crops begin at whole pixels of the picture, so that only the pixels they
    show have to be resized.
    """
    factor = rng.uniform(*scale)
    row, column = (None, None) if around is None else around
    columns, target_columns = _along_one_side(rng, shape[1], factor, size, column)
    rows, target_rows = _along_one_side(rng, shape[0], factor, size, row)
    return Crop(rows, columns, target_rows, target_columns, bool(rng.random() < flip))


def render_image(pixels: torch.Tensor, crop: Crop, size: int) -> torch.Tensor:
    """The pixels (h, w, 3) uint8 that a crop shows, resized bilinearly: (3, size, size) uint8, with the mean colour outside."""
    shape = (crop.target_rows.stop - crop.target_rows.start, crop.target_columns.stop - crop.target_columns.start)
    shown = F.interpolate(pixels.permute(2, 0, 1)[None].float(), size=shape, mode="bilinear", align_corners=False)[0]
    image = torch.tensor(FILL, dtype=torch.uint8, device=pixels.device).view(3, 1, 1).repeat(1, size, size)
    image[:, crop.target_rows, crop.target_columns] = shown.round_().to(torch.uint8)
    return image.flip(2) if crop.mirrored else image


def render_labels(labels: torch.Tensor, crop: Crop, size: int, ignore_index: int = -1) -> torch.Tensor:
    """The integer labels (h, w) that a crop shows, resized to the nearest: (size, size), with ``ignore_index`` outside."""
    rows, columns = (
        _nearest(length, part.stop - part.start, labels.device)
        for length, part in zip(labels.shape, (crop.target_rows, crop.target_columns), strict=True)
    )
    image = labels.new_full((size, size), ignore_index)
    image[crop.target_rows, crop.target_columns] = labels[rows[:, None], columns]
    return image.flip(1) if crop.mirrored else image


def _nearest(length: int, size: int, device: torch.device) -> torch.Tensor:
    """(size,) int64: which of ``length`` pixels is under the centre of each of ``size`` pixels."""
    return (2 * torch.arange(size, device=device) + 1) * length // (2 * size)


def _along_one_side(
    rng: np.random.Generator, side: int, factor: float, size: int, contained: int | None
) -> tuple[slice, slice]:
    """(pixels of the picture that are shown, pixels of the crop that they fill) along one side of the picture."""
    scaled = max(1, round(side * factor))
    if scaled <= size:  # the whole side, somewhere in the crop
        start = int(rng.integers(0, size - scaled + 1))
        return slice(0, side), slice(start, start + scaled)
    length = min(side, max(1, round(size / factor)))
    low, high = (0, side - length) if contained is None else (max(0, contained - length + 1), min(side - length, contained))
    start = int(rng.integers(low, high + 1))
    return slice(start, start + length), slice(0, size)


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Change brightness, contrast and saturation of ``image``, (H, W, 3) uint8 RGB; the result has the same form.

    The factors are drawn uniformly from 1 - ``strength``..1 + ``strength``, but not below 0. Contrast moves pixels away from
    the picture's mean grey, saturation away from their own grey. All three are applied as one linear map and rounded once.
    """
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3)
    grey = brightness * float(_LUMA @ cv2.mean(image)[:3])
    colours = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = np.hstack([brightness * contrast * colours, np.full((3, 1), (1 - contrast) * grey)])
    return cv2.transform(image, matrix)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 RGB -> float32 with mean 0 and standard deviation 1 over ImageNet, on the same device."""
    mean = moved(torch.tensor(IMAGENET_MEAN), images.device).view(1, 3, 1, 1)
    std = moved(torch.tensor(IMAGENET_STD), images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
