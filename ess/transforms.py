"""Joint augmentation of image and labels, in one affine warp; and the normalisation that ImageNet encoders expect."""

import cv2
import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILL = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""What lies outside the picture: the mean colour, which normalises to about 0."""

_LUMA = np.array([0.299, 0.587, 0.114])


def random_crop(
    image: np.ndarray,
    mask: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: float,
    around: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, pad and mirror an image and its mask alike.

    ``image`` (H, W, 3) uint8, ``mask`` (H, W) uint16, 0 = unlabelled. The picture is resized by a factor drawn uniformly from
    ``scale`` (bilinear; the mask nearest), a window of ``crop`` x ``crop`` is placed uniformly where it overlaps it most, and
    holds the pixel ``around`` (row, column) if one is given; what lies outside is the mean colour and 0, and it is mirrored
    with probability ``flip``. Only what the window shows is resized: windows begin at whole pixels of the picture.
    Returns ((crop, crop, 3) uint8, (crop, crop) uint16).
    """
    factor = rng.uniform(*scale)
    height, width = mask.shape
    y, x = (None, None) if around is None else around
    columns, left = _window(rng, width, factor, crop, x)
    rows, top = _window(rng, height, factor, crop, y)
    size = (left.stop - left.start, top.stop - top.start)
    picture = cv2.resize(image[rows, columns], size, interpolation=cv2.INTER_LINEAR)
    classes = cv2.resize(mask[rows, columns], size, interpolation=cv2.INTER_NEAREST_EXACT)
    if size != (crop, crop):
        edges = (top.start, crop - top.stop, left.start, crop - left.stop, cv2.BORDER_CONSTANT)
        picture = cv2.copyMakeBorder(picture, *edges, value=_FILL)
        classes = cv2.copyMakeBorder(classes, *edges, value=0)
    if rng.random() < flip:
        return cv2.flip(picture, 1), cv2.flip(classes, 1)
    return picture, classes


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
