"""Counts pixels by true and predicted class, and computes scores from the counts."""

from collections.abc import Sequence

import numpy as np
import torch

from cocolvis.vocabulary import GROUPS

LARGEST_MATRIX = 4096
"""The most classes for which reports and figures count pairs of them: 134 MB."""


class Confusion:
    """Counts of pixels by true and predicted class 0..C-1; pixels with ``ignore_index`` in the truth are ignored.

    ``pixels`` (3, C) int64 are the pixels of each class in the truth, in the prediction, and in both; all scores follow from
    them. ``images`` is the number of images counted. ``matrix`` is (C, C) int64 with the truth by rows, or None unless it was
    requested. Counts made separately are added with ``+=``.
    """

    def __init__(self, classes: int, ignore_index: int = -1, *, matrix: bool = False):
        self.classes = classes
        self.ignore_index = ignore_index
        self.pixels = torch.zeros((3, classes), dtype=torch.int64)
        self.matrix = torch.zeros((classes, classes), dtype=torch.int64) if matrix else None
        self.images = 0

    def update(self, truth: np.ndarray | torch.Tensor, prediction: np.ndarray | torch.Tensor) -> None:
        """Count one image: two label arrays or tensors of the same shape and any integer type."""
        truth, prediction = torch.as_tensor(truth), torch.as_tensor(prediction)
        if truth.shape != prediction.shape:
            raise ValueError(f"prediction {tuple(prediction.shape)} and truth {tuple(truth.shape)} differ in shape")
        truth, prediction = (labels.reshape(-1).to(prediction.device, torch.int32) for labels in (truth, prediction))
        counted = truth != self.ignore_index
        both = counted & (truth == prediction)
        pairs = (("truth", truth, counted), ("prediction", prediction, counted), ("truth", truth, both))
        self.pixels += torch.stack([self._count(*pair) for pair in pairs]).cpu()
        if self.matrix is not None:
            codes = (truth.long() * self.classes + prediction)[counted].cpu()
            self.matrix.view(-1).index_add_(0, codes, torch.ones_like(codes))
        self.images += 1

    def _count(self, name: str, labels: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """(C,) int64: how many of the ``chosen`` labels (N,) are of each class. Raises ValueError if one is none."""
        counts = torch.where(chosen, labels + 1, 0).clamp_(0, self.classes + 1).bincount(minlength=self.classes + 2)
        if counts[0] + chosen.sum() > len(labels) or counts[-1]:
            wrong = labels[chosen & ((labels < 0) | (labels >= self.classes))]
            raise ValueError(f"{name} holds {wrong[0].item()}: expected 0..{self.classes - 1}")
        return counts[1:-1]

    def __iadd__(self, other: "Confusion") -> "Confusion":
        if (other.classes, other.ignore_index) != (self.classes, self.ignore_index):
            raise ValueError(f"cannot add counts over {other.classes} classes to counts over {self.classes}")
        if (other.matrix is None) != (self.matrix is None):
            raise ValueError("cannot add counts with a matrix to counts without one")
        self.pixels += other.pixels
        if self.matrix is not None and other.matrix is not None:
            self.matrix += other.matrix
        self.images += other.images
        return self

    def iou(self, published: bool = False) -> np.ndarray:
        """Intersection over union of each class: (C,) float64, NaN if the class is absent from the truth.

        With ``published``, a class that was predicted but is absent from the truth has 0 instead, as in the published code.
        """
        truth, predicted, right = self.totals()
        present = truth + predicted > 0 if published else truth > 0
        return np.divide(right, truth + predicted - right, out=np.full(self.classes, np.nan), where=present)

    def summary(self, groups: Sequence[str | None] | None = None, *, published: bool = False) -> dict:
        """All scores as a dictionary for JSON: fractions 0..1, or None if there is nothing to average.

        ``groups`` gives the frequency group of each of the C classes, or None. Without any group there are no scores by group.
        ``published`` is that of :meth:`iou`.
        """
        if groups is not None and len(groups) != self.classes:
            raise ValueError(f"groups are given for {len(groups)} classes: expected {self.classes}")
        truth, _, right = self.totals()
        iou = self.iou(published)
        present = truth > 0
        members = np.array([name or "" for name in groups or [None] * self.classes])
        names = dict.fromkeys((*GROUPS, *filter(None, groups or ()))) if groups is None or any(groups) else {}
        return {
            "miou": _mean(iou),
            "pixel_accuracy": float(right.sum() / truth.sum()) if present.any() else None,
            "mean_accuracy": _mean(right[present] / truth[present]),
            "fw_iou": float((truth[present] * iou[present]).sum() / truth.sum()) if present.any() else None,
            "groups": {name: _mean(iou[members == name]) for name in names},
            "images": self.images,
        }

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels of each class in the truth, in the prediction and in both: (C,) int64 each."""
        return tuple(self.pixels.numpy())


def miou_curve(iou: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The mIoU over the first n classes of ``order``, for n = 1..C: (C,) float64, NaN as long as all of these are NaN.

    ``iou`` (C,) is that of :meth:`Confusion.iou`; ``order`` (C,) is a permutation of the classes 0..C-1.
    """
    ranked = iou[order]
    counted = np.cumsum(~np.isnan(ranked))
    return np.divide(np.nancumsum(ranked), counted, out=np.full(len(ranked), np.nan), where=counted > 0)


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values that are not NaN; None if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None
