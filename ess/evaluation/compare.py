"""Compares two runs on the same pictures: differences of the mIoU and of single classes, with paired bootstrap intervals."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from cocolvis.vocabulary import Vocabulary
from ess.evaluation.bootstrap import RESAMPLES, Groups, Interval, difference_intervals, drawn_miou
from ess.evaluation.picture_counts import PictureCounts

FEWEST = 10
"""A class in fewer pictures has no interval: most draws would contain the same few pictures, and the interval be too short."""


class GroupChange(NamedTuple):
    """The mIoU of a group of classes for the baseline and for the run, and the run's minus the baseline's."""

    name: str
    classes: int
    baseline: float
    run: float
    difference: Interval


class ClassChange(NamedTuple):
    """The IoU of a class, label 0..C-1, for the baseline and for the run, and the run's minus the baseline's.

    ``pictures`` is the number of pictures whose truth shows the class. With fewer than :data:`FEWEST`, the ends of the
    interval are NaN.
    """

    label: int
    pictures: int
    baseline: float
    run: float
    difference: Interval


class Comparison(NamedTuple):
    """The differences of two runs on ``pictures`` pictures; ``classes`` are those that changed most."""

    pictures: int
    groups: list[GroupChange]
    classes: list[ClassChange]

    def to_json(self, vocabulary: Vocabulary) -> dict[str, Any]:
        """For JSON, with the names of the classes; numbers that are not defined are None."""
        infos = [vocabulary[change.label + 1] for change in self.classes]
        return {
            "images": self.pictures,
            "groups": {change.name: {"classes": change.classes} | _numbers(change) for change in self.groups},
            "classes": [
                {"class": info.id, "name": info.name, "group": info.group, "images": change.pictures} | _numbers(change)
                for info, change in zip(infos, self.classes, strict=True)
            ],
        }


def class_groups(vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """Name of a group -> its classes, (C,) bool: "all", "things" and "stuff" if there are both, and the frequency groups.

    A class that is both a thing and stuff counts as a thing. Groups without a class are left out.
    """
    stuff = np.array([c.kind == "stuff" for c in vocabulary])
    groups = {name: np.array([c.group == name for c in vocabulary]) for name in vocabulary.groups}
    kinds = {"things": ~stuff, "stuff": stuff} if stuff.any() and not stuff.all() else {}
    found = {"all": np.ones(len(vocabulary), bool)} | kinds | groups
    return {name: members for name, members in found.items() if members.any()}


def compare(
    baseline: PictureCounts,
    run: PictureCounts,
    vocabulary: Vocabulary,
    *,
    most: int = 10,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations on the same pictures by the groups of :func:`class_groups`, and by single classes.

    At most ``most`` classes are listed: those whose IoU changed most, in either direction; ties go to the class with more
    pixels, then to the lower label. Only classes in the truth are compared. ``resamples`` and ``seed`` are those of
    :func:`ess.evaluation.bootstrap.difference_intervals`. Raises ValueError if the pictures or the classes differ.
    """
    groups = class_groups(vocabulary)
    totals = [counts.total() for counts in (baseline, run)]
    iou = np.stack([total.iou() for total in totals])
    truth = totals[0].totals()[0]
    change = np.nan_to_num(np.abs(iou[1] - iou[0]))
    order = np.lexsort((np.arange(len(change)), -truth, -change))
    labels = [int(label) for label in order[:most] if change[label]]
    pictures = np.bincount(baseline.columns[baseline.pixels[:, 0] > 0], minlength=baseline.classes)
    alone: Groups = {f"class {label}": np.arange(baseline.classes) == label for label in labels}
    found = difference_intervals([run], [baseline], {**groups, **alone}, resamples=resamples, seed=seed)
    everything = np.ones((1, len(baseline.ids)), np.int64)
    before, after = (drawn_miou(counts, everything, groups) for counts in (baseline, run))

    def of_group(name: str, members: np.ndarray) -> GroupChange:
        return GroupChange(name, int(members.sum()), float(before[name][0]), float(after[name][0]), found[name])

    def of_class(label: int) -> ClassChange:
        shown = int(pictures[label])
        difference = _sensible(found[f"class {label}"], shown)
        return ClassChange(label, shown, float(iou[0, label]), float(iou[1, label]), difference)

    return Comparison(len(baseline.ids), [of_group(*group) for group in groups.items()], [*map(of_class, labels)])


def _sensible(interval: Interval, pictures: int) -> Interval:
    return interval if pictures >= FEWEST else interval._replace(low=math.nan, high=math.nan)


def _numbers(change: GroupChange | ClassChange) -> dict[str, float | None]:
    names: Sequence[str] = ("baseline", "run", "difference", "low", "high")
    values = (change.baseline, change.run, *change.difference)
    return {name: None if math.isnan(value) else value for name, value in zip(names, values, strict=True)}
