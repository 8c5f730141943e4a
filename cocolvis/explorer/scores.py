"""Predictions next to the labels: which class was taken for which, counted once from the run lengths of both.

A pixel without a label is left out, as in every score of ``ess eval``.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cocolvis.errors import DataError
from cocolvis.explorer.cache import Tables, write_tables
from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.counting import count_classes
from cocolvis.masks.runlength import Runs
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset


class Pairs(NamedTuple):
    """Pixels by true and predicted class: (n,) each; a pair occurs once per image."""

    truth: np.ndarray
    predicted: np.ndarray
    pixels: np.ndarray


def compare(truth: Runs, predicted: Runs) -> Pairs:
    """The pixels of one image by true and predicted class; pixels without a true class (0) are left out.

    Both are cut wherever one of them changes its class; no mask is decoded. Raises ValueError if the sizes differ.
    """
    if truth[2:] != predicted[2:]:
        raise ValueError(f"the prediction is {predicted.height} x {predicted.width}, its mask {truth.height} x {truth.width}")
    ends = [np.cumsum(runs.lengths, dtype=np.int64) for runs in (truth, predicted)]
    cuts = np.unique(np.concatenate(ends))
    lengths = np.diff(cuts, prepend=0)
    codes = np.zeros(len(cuts), np.int64)
    for runs, end in zip((truth, predicted), ends, strict=True):
        codes = codes << 16 | runs.classes[np.searchsorted(end, cuts)]
    counted = (codes >> 16 > 0) & (lengths > 0)
    codes, lengths = codes[counted], lengths[counted]
    found, place = np.unique(codes, return_inverse=True)
    pixels = np.bincount(place, lengths, len(found)).astype(np.int64)
    return Pairs((found >> 16).astype(np.uint16), (found & 0xFFFF).astype(np.uint16), pixels)


def iou(pairs: Pairs) -> dict[int, float]:
    """True class -> intersection over union, for each class that the labels of the image have."""
    right = pairs.truth == pairs.predicted
    found = {}
    for class_id in np.unique(pairs.truth).tolist():
        true, claimed = pairs.truth == class_id, pairs.predicted == class_id
        found[class_id] = int(pairs.pixels[true & right].sum()) / int(pairs.pixels[true | claimed].sum())
    return found


class RunScores:
    """What a run predicted for the images of a catalog, summed and by image.

    ``facts`` has "images" (the number of images compared), "miou", "accuracy" (None without any), "iou" (by class id, None for
    classes without labelled pixels), and "unreadable" (a line for each prediction that cannot be compared).
    """

    def __init__(self, tables: Tables):
        self._tables = tables
        self.facts = tables.facts

    @property
    def images(self) -> np.ndarray:
        """(n,) uint32 numbers of the images that were predicted, ascending."""
        return self._tables["images"]

    def rows(self) -> np.ndarray:
        """(n,) uint32 numbers of the predictions in their split, in the order of ``images``."""
        return self._tables["rows"]

    def row(self, image: int) -> int | None:
        """The number of an image's prediction in its split, None if there is none."""
        place = int(np.searchsorted(self.images, image))
        return int(self.rows()[place]) if place < len(self.images) and self.images[place] == image else None

    def image_scores(self, size: int) -> np.ndarray:
        """(size,) float32 mIoU of each image; NaN for those without prediction or labels."""
        scores = np.full(size, np.nan, np.float32)
        scores[self.images] = self._tables["miou"]
        return scores

    def class_scores(self, class_id: int, size: int) -> np.ndarray:
        """(size,) float64 IoU of a class in each image; NaN where it is neither labelled nor predicted."""
        right, either = np.zeros(size), np.zeros(size)
        truth, predicted = self._codes >> 16, self._codes & 0xFFFF
        for code in np.flatnonzero((truth == class_id) | (predicted == class_id)).tolist():
            images, pixels = self._entry(code)
            either[images] += pixels
            if truth[code] == predicted[code]:
                right[images] += pixels
        return np.divide(right, either, out=np.full(size, np.nan), where=either > 0)

    def confused(self, truth: int, predicted: int) -> tuple[np.ndarray, np.ndarray]:
        """The images in which pixels of class ``truth`` were predicted as ``predicted``, and their number: (n,) each."""
        place = int(np.searchsorted(self._codes, truth << 16 | predicted))
        if place == len(self._codes) or self._codes[place] != truth << 16 | predicted:
            return np.zeros(0, np.uint32), np.zeros(0, np.uint32)
        return self._entry(place)

    @cached_property
    def confusion(self) -> Pairs:
        """All pixels of the run by true and predicted class."""
        codes = self._codes
        sums = np.add.reduceat(self._tables["pixels"].astype(np.int64), self._tables["starts"][:-1]) if codes.size else codes
        return Pairs(codes >> 16, codes & 0xFFFF, sums)

    @cached_property
    def _codes(self) -> np.ndarray:
        """Every pair that occurs, as truth * 65536 + predicted: int64, ascending."""
        return self._tables["codes"].astype(np.int64)

    def _entry(self, place: int) -> tuple[np.ndarray, np.ndarray]:
        first, last = self._tables["starts"][place : place + 2].tolist()
        return self._tables["entries"][first:last], self._tables["pixels"][first:last]


def count_pixels(
    dataset: Dataset, predictions: Dataset, catalog: Catalog, path: Path | None, progress: Progress = ignore
) -> RunScores:
    """Compare the ``predictions`` with the labels of a data set, and keep the result in the file ``path``, if there is one.

    Predictions that cannot be read are left out and listed; the result is then not kept. ``progress`` counts images.
    """
    own = count_classes(predictions, None)
    unreadable, counted = list(own.unreadable), []
    total = len(own)
    labels, claims = ({name: one.split(name) for name in one.splits} for one in (dataset, predictions))
    for done, (image, number) in enumerate(_matched(catalog, own)):
        progress(done, total)
        labelled, predicted = catalog.place(image), own.place(number)
        try:
            truth = labels[labelled.split].runs(labelled.row)
            pairs = compare(truth, claims[predicted.split].runs(predicted.row))
            counted.append(_Image(image, predicted.row, pairs))
        except (DataError, ValueError) as error:
            unreadable.append(str(error))
    facts, arrays = _tables(counted, len(predictions.vocabulary))
    facts["unreadable"] = unreadable
    if path is None or unreadable:
        return RunScores(Tables(facts, arrays.__getitem__))
    return RunScores(write_tables(path, facts, arrays))


class _Image(NamedTuple):
    image: int
    row: int
    pairs: Pairs


def _matched(catalog: Catalog, predicted: Catalog) -> list[tuple[int, int]]:
    """(image number, number of its prediction) for the images with the same id in the same split, in order of the former."""
    found: list[tuple[int, int]] = []
    for split in catalog.splits.keys() & predicted.splits.keys():
        ours, theirs = (np.concatenate([np.zeros(0, np.int64), *one.members(split)]) for one in (catalog, predicted))
        _, left, right = np.intersect1d(catalog.ids()[ours], predicted.ids()[theirs], return_indices=True)
        found += zip(ours[left].tolist(), theirs[right].tolist(), strict=True)
    return sorted(found)


def _tables(counted: Sequence[_Image], classes: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The facts and arrays of :class:`RunScores`: all entries sorted by pair, and the scores of each image."""
    none = np.zeros(0, np.int64)
    codes = np.concatenate([none, *(one.pairs.truth.astype(np.int64) << 16 | one.pairs.predicted for one in counted)])
    pixels = np.concatenate([none, *(one.pairs.pixels for one in counted)])
    entries = np.concatenate([none, *(np.full(len(one.pairs.pixels), one.image) for one in counted)])
    order = np.argsort(codes, kind="stable")
    unique, starts = np.unique(codes[order], return_index=True)
    scores = [np.mean([*iou(one.pairs).values()]) if len(one.pairs.pixels) else np.nan for one in counted]
    arrays = {
        "images": np.array([one.image for one in counted], np.uint32),
        "rows": np.array([one.row for one in counted], np.uint32),
        "miou": np.array(scores, np.float32),
        "codes": unique.astype(np.uint32),
        "starts": np.append(starts, len(codes)),
        "entries": entries[order].astype(np.uint32),
        "pixels": pixels[order].astype(np.uint32),
    }
    return {"images": len(counted)} | _summary(codes, pixels, classes), arrays


def _summary(codes: np.ndarray, pixels: np.ndarray, classes: int) -> dict[str, Any]:
    """IoU by class id, their mean, and the share of pixels that are right; None where nothing is labelled."""
    truth, claimed = codes >> 16, codes & 0xFFFF
    right = truth == claimed
    sums = [np.zeros(classes + 1, np.int64) for _ in range(3)]
    for total, ids, chosen in zip(sums, (truth, claimed, truth), (slice(None), slice(None), right), strict=True):
        np.add.at(total, ids[chosen], pixels[chosen])
    true, predicted, both = sums
    scores = np.divide(both, true + predicted - both, out=np.full(classes + 1, np.nan), where=true > 0)
    labelled = int(true.sum())
    return {
        "miou": float(np.nanmean(scores)) if labelled else None,
        "accuracy": int(both.sum()) / labelled if labelled else None,
        "iou": [None if np.isnan(score) else score for score in scores.tolist()],
    }
