"""Joint augmentation of image and labels: where crops lie, how they are resized; and ImageNet's normalisation."""

from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILL = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""What lies outside the picture: the mean colour, which normalises to about 0."""

_LUMA = np.array([0.299, 0.587, 0.114])


class Placement(NamedTuple):
    """Where a crop comes from, pixels ``rows`` x ``columns`` of a picture, and what they fill of it when resized."""

    rows: slice
    columns: slice
    down: slice
    across: slice
    mirrored: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(h, w) of the pixels of the picture."""
        return self.rows.stop - self.rows.start, self.columns.stop - self.columns.start

    @property
    def area(self) -> int:
        """h * w."""
        return self.shape[0] * self.shape[1]


def random_placement(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: float,
    around: tuple[int, int] | None = None,
) -> Placement:
    """A random crop of a picture of ``shape`` (H, W).

    The picture is resized by a factor drawn uniformly from ``scale``, a window of ``crop`` x ``crop`` is placed uniformly where
    it overlaps it most, and holds the pixel ``around`` (row, column) if one is given, and is mirrored with probability
    ``flip``. Windows begin at whole pixels of the picture, so that only what they show has to be resized.
    """
    factor = rng.uniform(*scale)
    y, x = (None, None) if around is None else around
    columns, across = _window(rng, shape[1], factor, crop, x)
    rows, down = _window(rng, shape[0], factor, crop, y)
    return Placement(rows, columns, down, across, bool(rng.random() < flip))


def render_image(pixels: torch.Tensor, place: Placement, crop: int) -> torch.Tensor:
    """The pixels (h, w, 3) uint8 that a placement shows, resized bilinearly: (3, crop, crop) uint8, the mean colour outside."""
    size = (place.down.stop - place.down.start, place.across.stop - place.across.start)
    shown = F.interpolate(pixels.permute(2, 0, 1)[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    image = torch.tensor(_FILL, dtype=torch.uint8, device=pixels.device).view(3, 1, 1).repeat(1, crop, crop)
    image[:, place.down, place.across] = shown.round_().to(torch.uint8)
    return image.flip(2) if place.mirrored else image


def render_labels(labels: torch.Tensor, place: Placement, crop: int, ignore_index: int = -1) -> torch.Tensor:
    """(h, w) integer labels, as :func:`render_image` renders pixels, to (crop, crop): the nearest, outside ``ignore_index``."""
    rows, columns = (
        _nearest(length, part.stop - part.start, labels.device)
        for length, part in zip(labels.shape, (place.down, place.across), strict=True)
    )
    image = labels.new_full((crop, crop), ignore_index)
    image[place.down, place.across] = labels[rows[:, None], columns]
    return image.flip(1) if place.mirrored else image


def _nearest(length: int, size: int, device: torch.device) -> torch.Tensor:
    """(size,) int64, of ``length`` pixels those under the centres of ``size``."""
    return (2 * torch.arange(size, device=device) + 1) * length // (2 * size)


def _window(rng: np.random.Generator, side: int, factor: float, crop: int, held: int | None) -> tuple[slice, slice]:
    """Along one side: which pixels of the picture are shown, and where in the window."""
    shown = max(1, round(side * factor))
    if shown <= crop:  # all of it, somewhere
        first = int(rng.integers(0, crop - shown + 1))
        return slice(0, side), slice(first, first + shown)
    length = min(side, max(1, round(crop / factor)))
    low, high = (0, side - length) if held is None else (max(0, held - length + 1), min(side - length, held))
    first = int(rng.integers(low, high + 1))
    return slice(first, first + length), slice(0, crop)


def color_jitter(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """Brightness, contrast and saturation by factors drawn uniformly from 1 - strength..1 + strength, >= 0.

    ``image`` (H, W, 3) uint8 RGB, and so is what comes back: contrast moves pixels from the picture's mean grey, saturation
    from their own. The three are one linear map of colours, rounded once.
    """
    brightness, contrast, saturation = rng.uniform(max(0.0, 1 - strength), 1 + strength, 3)
    grey = brightness * float(_LUMA @ cv2.mean(image)[:3])
    colours = saturation * np.eye(3) + (1 - saturation) * _LUMA
    matrix = np.hstack([brightness * contrast * colours, np.full((3, 1), (1 - contrast) * grey)])
    return cv2.transform(image, matrix)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 RGB to float32 with ImageNet's mean 0 and standard deviation 1, on the device of ``images``."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
