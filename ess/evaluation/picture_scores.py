"""Scores of single pictures, from the counts of each, in the order from the worst to the best."""

from typing import NamedTuple

import numpy as np

from ess.evaluation.picture_counts import PictureCounts

WORST = 3
"""The most classes that are named for a picture."""


class PictureScore(NamedTuple):
    """The scores of one picture, over its labelled pixels; ``miou`` and ``accuracy`` are NaN if it has none.

    ``miou`` is the mean IoU over the ``classes`` classes in the truth of the picture. ``worst`` are at most :data:`WORST` of
    them with their IoU, (label 0..C-1, IoU), the worst first; ties go to the class with more pixels, then to the lower label.
    A class without a wrong pixel is not among them.
    """

    image_id: int
    miou: float
    accuracy: float
    labelled: int
    classes: int
    worst: tuple[tuple[int, float], ...]


def picture_scores(counts: PictureCounts) -> list[PictureScore]:
    """The scores of all pictures, the worst by mIoU first; ties go to the lower accuracy, then to the lower image id.

    Pictures without a labelled pixel come last.
    """
    occurs = counts.pixels[:, 0] > 0
    rows, labels = counts.rows[occurs], counts.columns[occurs]
    truth, predicted, right = counts.pixels[occurs].T
    iou = right / (truth + predicted - right)
    labelled, correct, ious, classes = (
        np.bincount(rows, weights=values, minlength=len(counts.ids)) for values in (truth, right, iou, np.ones(len(rows)))
    )
    miou, accuracy = (_ratio(*pair) for pair in ((ious, classes), (correct, labelled)))
    order = np.lexsort((labels, -truth, iou, rows))
    first = np.searchsorted(rows[order], np.arange(len(counts.ids) + 1))

    def worst(row: int) -> tuple[tuple[int, float], ...]:
        entries = order[first[row] : first[row + 1]][:WORST]
        return tuple((int(labels[entry]), float(iou[entry])) for entry in entries if iou[entry] < 1)

    return [
        PictureScore(
            int(counts.ids[row]), float(miou[row]), float(accuracy[row]), int(labelled[row]), int(classes[row]), worst(row)
        )
        for row in np.lexsort((counts.ids, accuracy, miou)).tolist()
    ]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
