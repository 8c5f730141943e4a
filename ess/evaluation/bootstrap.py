"""Bootstrap intervals of the mIoU over pictures, for one model and for the difference of two.

The bootstrap (Efron, 1979) draws as many pictures as were evaluated, with replacement, and computes the mIoU of the drawn ones,
many times. The interval says how much of a score is due to the choice of pictures: it contains the middle 95 % of the draws,
after these are shifted so that their mean is the score. The shift is needed because a draw repeats pictures and therefore shows
fewer different ones, in which a class has fewer false positives: with many classes, draws score higher than the pictures that
they are drawn from. What it moves below 0 or above 1, where no mIoU can be, is cut off. For the difference of two models, both
are scored on the same draws, which cancels what is difficult for both.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ess.evaluation.picture_counts import PictureCounts

RESAMPLES = 1000
"""How many times the pictures are drawn."""

LEVEL = 0.95
"""Share of the draws inside an interval."""

_BLOCK = 128
"""Classes whose counts are dense at a time: (N, 3, 128) float64 are 61 MB for 20,000 pictures."""

_DRAWS, _NUMBERS = 2048, 2**24
"""How many draws are scored at a time, as bytes, and how many of their numbers are float64 at a time, which are 134 MB."""

Groups = Mapping[str, np.ndarray]
"""Name of a group of classes -> its members, (C,) bool."""


class Interval(NamedTuple):
    """A score on the pictures as they are, and the ends of its bootstrap interval; all NaN if no class can be scored."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is larger than the choice of pictures explains."""
        return self.low > 0 or self.high < 0


def draws(pictures: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each picture counts, in parts (R, ``pictures``) uint8 of 1 + ``resamples`` rows, which bound the memory.

    In the first row of all, each picture counts once; every other row is a draw, and sums to ``pictures``.
    """
    rng, shares = np.random.default_rng(seed), np.full(pictures, 1 / pictures)
    for first in range(0, 1 + resamples, _DRAWS):
        part = np.ones((min(_DRAWS, 1 + resamples - first), pictures), np.uint8)
        for row in part[first == 0 :]:
            row[:] = rng.multinomial(pictures, shares)  # that one of them is above 255 has a probability below 1e-500
        yield part


def drawn_miou(counts: PictureCounts, drawn: np.ndarray, groups: Groups) -> dict[str, np.ndarray]:
    """Group -> the mIoU of each row of ``drawn`` (R, N), over the classes in its truth: (R,) float64, NaN if there are none.

    The pixels of a draw are a matrix product of ``drawn`` with the counts, computed for a block of classes at a time.
    """
    sums = {name: np.zeros(len(drawn)) for name in groups}
    present = {name: np.zeros(len(drawn)) for name in groups}
    most = max(1, _NUMBERS // len(counts.ids))
    for first in range(0, counts.classes, _BLOCK):
        last = min(first + _BLOCK, counts.classes)
        block = counts.dense(first, last).reshape(len(counts.ids), -1).astype(np.float64)
        rows = (drawn[start : start + most].astype(np.float64) for start in range(0, len(drawn), most))
        truth, predicted, right = np.split(np.concatenate([weights @ block for weights in rows]), 3, axis=1)
        iou = np.divide(right, truth + predicted - right, out=np.zeros_like(truth), where=truth > 0)
        for name, members in groups.items():
            sums[name] += iou @ members[first:last]
            present[name] += (truth > 0) @ members[first:last].astype(np.float64)
    return {
        name: np.divide(sums[name], present[name], out=np.full(len(drawn), np.nan), where=present[name] > 0) for name in groups
    }


def miou_intervals(
    runs: Sequence[PictureCounts], groups: Groups, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """Group -> its mIoU and bootstrap interval over pictures.

    ``runs`` are evaluations on the same pictures, for example of models trained with different seeds; the score is the mean of
    theirs. Intervals end at 0 and 1. Raises ValueError if there are no runs, or if their pictures or classes differ.
    """
    _check_same_pictures(runs)
    (found,) = _mean_scores([runs], groups, resamples, seed)
    return {name: _of_scores(_interval(scores)) for name, scores in found.items()}


def difference_intervals(
    runs: Sequence[PictureCounts],
    references: Sequence[PictureCounts],
    groups: Groups,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval]:
    """Group -> the mIoU of ``runs`` minus that of ``references``, with its paired bootstrap interval over pictures.

    Both are scored on the same draws; the arguments are otherwise those of :func:`miou_intervals`.
    """
    _check_same_pictures([*runs, *references])
    ours, theirs = _mean_scores([runs, references], groups, resamples, seed)
    return {name: _interval(ours[name] - theirs[name]) for name in groups}


def _mean_scores(
    sides: Sequence[Sequence[PictureCounts]], groups: Groups, resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """For each side, group -> the mean mIoU of its runs: (1 + R,) float64, on all pictures and then on each draw."""
    pictures = len(sides[0][0].ids)
    parts: list[list[dict[str, np.ndarray]]] = [[] for _ in sides]
    for drawn in draws(pictures, resamples, seed):
        for side, found in zip(sides, parts, strict=True):
            scores = [drawn_miou(run, drawn, groups) for run in side]
            found.append({name: np.mean([each[name] for each in scores], axis=0) for name in groups})
    return [{name: np.concatenate([part[name] for part in found]) for name in groups} for found in parts]


def _interval(scores: np.ndarray) -> Interval:
    value, drawn = float(scores[0]), scores[1:][~np.isnan(scores[1:])]
    if np.isnan(value) or not len(drawn):
        return Interval(np.nan, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + value - drawn.mean()
    return Interval(value, float(low), float(high))


def _of_scores(interval: Interval) -> Interval:
    """The part of an interval where scores can be: 0..1."""
    return Interval(interval.value, *np.clip(interval[1:], 0, 1).tolist())


def _check_same_pictures(runs: Sequence[PictureCounts]) -> None:
    if not runs or not len(runs[0].ids):
        raise ValueError("there are no pictures to draw")
    for run in runs:
        if run.classes != runs[0].classes or not np.array_equal(run.ids, runs[0].ids):
            raise ValueError("evaluations on different pictures or classes cannot be compared")
