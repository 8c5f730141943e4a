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
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: float,
    around: tuple[int, int] | None = None,
    ignore_index: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, pad and mirror an image and its labels alike.

    ``image`` (H, W, 3) uint8, ``labels`` (H, W) int16. The picture is resized by a factor drawn uniformly from ``scale``
    (bilinear; labels nearest), a window of ``crop`` x ``crop`` is placed uniformly where it overlaps it most, and holds the
    pixel ``around`` (row, column) if one is given; what lies outside is the mean colour and ``ignore_index``, and it is
    mirrored with probability ``flip``. Returns ((crop, crop, 3) uint8, (crop, crop) int16).
    """
    factor = rng.uniform(*scale)
    height, width = labels.shape
    y, x = (None, None) if around is None else (round(factor * (place + 0.5) - 0.5) for place in around)
    left = _offset(rng, round(width * factor) - crop, x, crop)
    top = _offset(rng, round(height * factor) - crop, y, crop)
    matrix = np.array([[factor, 0.0, (factor - 1) / 2 - left], [0.0, factor, (factor - 1) / 2 - top]])
    if rng.random() < flip:
        matrix[0] = -matrix[0] + [0.0, 0.0, crop - 1]
    size = (crop, crop)
    warped = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_FILL)
    truth = cv2.warpAffine(
        labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=ignore_index
    )
    return warped, truth


def _offset(rng: np.random.Generator, room: int, held: int | None, crop: int) -> int:
    """Where the window starts in the scaled picture; negative where the picture is smaller and floats within the window."""
    low, high = min(room, 0), max(room, 0)
    if held is not None:
        low, high = max(low, min(held - crop + 1, high)), min(high, max(held, low))
    return int(rng.integers(low, high + 1))


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
