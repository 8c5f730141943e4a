"""Accuracy near the boundaries between labels, and away from them."""

import cv2
import numpy as np

DISTANCE = 3
"""Pixels from a boundary within which a pixel counts as near it."""


def near_boundary(labels: np.ndarray, distance: int = DISTANCE, ignore_index: int = -1) -> np.ndarray:
    """(H, W) bool, True for labelled pixels at most ``distance`` pixels away from a pixel with another label.

    The distance is the Chebyshev distance, the larger of the distances in rows and in columns: a pixel is near a boundary if
    the square of 2 * ``distance`` + 1 pixels around it shows another label. ``labels`` are (H, W) integers below 2^24, as in
    :func:`ess.data.loader.to_labels`. Ignored pixels form no boundary, because nothing is known about their labels, and
    neither does the edge of the picture.
    """
    if labels.ndim != 2 or not labels.size:
        raise ValueError(f"labels are {labels.shape}: expected (H, W) with at least one pixel")
    if distance < 1:
        raise ValueError(f"distance is {distance}: expected 1 or more")
    ignored = labels == ignore_index
    window = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    values = labels.astype(np.float32)  # exact for integers below 2^24, and OpenCV has no filters for wider integers
    largest = cv2.dilate(np.where(ignored, np.float32(-np.inf), values), window)
    smallest = cv2.erode(np.where(ignored, np.float32(np.inf), values), window)
    return ~ignored & (largest != smallest)


def boundary_counts(labels: np.ndarray, prediction: np.ndarray, distance: int = DISTANCE, ignore_index: int = -1) -> np.ndarray:
    """(2, 2) int64: labelled pixels and right ones among them; the first row near a boundary, the second row elsewhere.

    The counts of several pictures are added; column 1 divided by column 0 is the accuracy. ``prediction`` has the shape of
    ``labels``; the other arguments are those of :func:`near_boundary`.
    """
    if prediction.shape != labels.shape:
        raise ValueError(f"prediction {prediction.shape} and labels {labels.shape} differ in shape")
    near, right = near_boundary(labels, distance, ignore_index), prediction == labels
    elsewhere = ~near & (labels != ignore_index)
    return np.array([[part.sum(), (part & right).sum()] for part in (near, elsewhere)], np.int64)
