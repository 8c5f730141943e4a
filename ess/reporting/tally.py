"""Counts what a report shows of the predictions for a split, in one pass over its images."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ess.data.loader import to_class_ids
from ess.evaluation.evaluate import Predicted, count_pictures
from ess.evaluation.metrics import LARGEST_MATRIX, Confusion
from ess.evaluation.picture_counts import PictureCounts
from ess.evaluation.picture_scores import PictureScore, picture_scores


class Kept(NamedTuple):
    """A picture to show: its scores, and the class ids (H, W) uint16 of its truth and of its prediction."""

    score: PictureScore
    truth: np.ndarray
    prediction: np.ndarray


class Tally(NamedTuple):
    """Counts of all images together, with a matrix unless there are very many classes, and of each image.

    ``worst`` are the pictures with the lowest mIoU, the worst first; ``best`` those with the highest, the best first.
    """

    confusion: Confusion
    pictures: PictureCounts
    worst: list[Kept]
    best: list[Kept]


def tally(images: Iterable[Predicted], classes: int, shown: int) -> Tally:
    """Count images with ``classes`` C classes, and keep at most ``shown`` of the worst and as many of the best.

    No picture is among both, and none without labelled pixels among either.
    """
    total = Confusion(classes, matrix=classes <= LARGEST_MATRIX)
    parts, kept = [PictureCounts.of(classes, {})], []
    for image in images:
        total.update(image.labels, image.prediction)
        parts.append(count_pictures([image], classes))
        (score,) = picture_scores(parts[-1])
        if not math.isnan(score.miou):
            kept.append(Kept(score, to_class_ids(image.labels), to_class_ids(image.prediction)))
            kept.sort(key=_order)
        if len(kept) > 2 * shown:
            del kept[shown]  # neither among the worst nor among the best so far
    half = math.ceil(len(kept) / 2)
    return Tally(total, PictureCounts.joined(parts), kept[:half], kept[half:][::-1])


def _order(kept: Kept) -> tuple[float, float, int]:
    return kept.score.miou, kept.score.accuracy, kept.score.image_id
