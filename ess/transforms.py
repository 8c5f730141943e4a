"""Joint augmentation of image and labels, in one affine warp; and the normalisation that ImageNet encoders expect."""

import cv2
import numpy as np
import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FILL = tuple(round(255 * channel) for channel in IMAGENET_MEAN)
"""What lies outside the picture: the mean colour, which normalises to about 0."""


def random_crop(
    image: np.ndarray,
    labels: np.ndarray,
    rng: np.random.Generator,
    *,
    crop: int,
    scale: tuple[float, float],
    flip: float,
    ignore_index: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, crop, pad and mirror an image and its labels alike.

    ``image`` (H, W, 3) uint8, ``labels`` (H, W) int16. The picture is resized by a factor drawn uniformly from ``scale``
    (bilinear; labels nearest), a window of ``crop`` x ``crop`` is placed uniformly where it overlaps it most, what lies
    outside is the mean colour and ``ignore_index``, and it is mirrored with probability ``flip``. Returns
    ((crop, crop, 3) uint8, (crop, crop) int16).
    """
    factor = rng.uniform(*scale)
    height, width = labels.shape
    left, top = (_offset(rng, round(side * factor) - crop) for side in (width, height))
    matrix = np.array([[factor, 0.0, (factor - 1) / 2 - left], [0.0, factor, (factor - 1) / 2 - top]])
    if rng.random() < flip:
        matrix[0] = -matrix[0] + [0.0, 0.0, crop - 1]
    size = (crop, crop)
    warped = cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=_FILL)
    truth = cv2.warpAffine(
        labels, matrix, size, flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=ignore_index
    )
    return warped, truth


def _offset(rng: np.random.Generator, room: int) -> int:
    """Where the window starts in the scaled picture; negative where the picture is smaller and floats within the window."""
    return int(rng.integers(min(room, 0), max(room, 0) + 1))


def normalize(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 RGB to float32 with ImageNet's mean 0 and standard deviation 1, on the device of ``images``."""
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return (images.float() / 255 - mean) / std
