"""Statistics of a data set, computed from the class counts in its shards without decoding a mask."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import write_aside
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.vocabulary import ClassInfo, Vocabulary

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

THIRDS = ("head", "middle", "tail")
"""The thirds of the classes that occur, from the most to the least frequent."""

COLUMNS = ("split", "class", "name", "kind", "group", "instances", "images", "image_share", "pixels", "pixel_share")
"""The columns of :func:`write_classes`."""


@dataclass(frozen=True, eq=False)
class Counts:
    """The classes that the images of one split show: n entries, one for each class and image, in the order of the images.

    ``rows`` (n,) int64 is the number of the image in the split, ``classes`` (n,) uint16 the class and ``pixels`` (n,) uint32
    its pixels. ``instances`` (n,) uint32 is the number of its annotated instances, None if they are not recorded. ``areas``
    (N,) int64 is the number of pixels of each image.
    """

    rows: np.ndarray
    classes: np.ndarray
    pixels: np.ndarray
    areas: np.ndarray
    instances: np.ndarray | None = None

    @classmethod
    def read(cls, split: Split, read: Callable[[int], None] = ignore) -> "Counts":
        """The counts of a split; ``read`` is called after each shard with the number of images read so far."""
        return cls(*split.present(read), split.sizes().astype(np.int64).prod(axis=1), split.instances())

    def images_of(self, classes: int) -> np.ndarray:
        """(C + 1,) int64: the images that show each class, for C ``classes``."""
        return np.bincount(self.classes, minlength=classes + 1)

    def pixels_of(self, classes: int) -> np.ndarray:
        """(C + 1,) int64: the pixels of each class, for C ``classes``."""
        return self._total(self.pixels, classes)

    def instances_of(self, classes: int) -> np.ndarray | None:
        """(C + 1,) int64: the instances of each class, for C ``classes``; None if they are not recorded."""
        return None if self.instances is None else self._total(self.instances, classes)

    def _total(self, values: np.ndarray, classes: int) -> np.ndarray:
        total = np.zeros(classes + 1, np.int64)
        np.add.at(total, self.classes, values)
        return total


def read_counts(dataset: Dataset, progress: Progress = ignore) -> dict[str, Counts]:
    """Split -> its counts; ``progress`` counts images."""
    done, total, counts = 0, sum(dataset.splits.values()), {}
    for name, images in dataset.splits.items():
        before = done
        counts[name] = Counts.read(dataset.split(name), lambda read: progress(before + read, total))  # noqa: B023 (called now)
        done += images
    return counts


def statistics(dataset: Dataset, progress: Progress = ignore) -> dict[str, Any]:
    """Return ``{"splits": {name: {"images", "classes_present", "classes", ...}}}`` with plain numbers and texts.

    ``classes`` lists the classes that occur, with "class", "name", "group", "instances" (null if the data set does not record
    them), "images", "pixels", and their shares of the images and of the labelled pixels. They are sorted by images in
    descending order; ties go to the class with more pixels, then to the lower id. ``absent`` lists the other classes, and
    ``not_in_train`` those that occur here but not in the split train (null for train itself, or without such a split).

    ``image_quantiles`` and ``pixel_quantiles`` (over the classes that occur), those that end in ``_all`` (over all classes) and
    ``classes_an_image`` map a quantile such as "0.5" to its value; ``classes_an_image_histogram`` holds at place k the number
    of images with k classes. ``gini`` is the Gini coefficient over all classes, 0 if all are equal, and ``imbalance`` the ratio
    of the largest to the smallest class that occurs, each by "images" and by "pixels" and null if no class occurs.

    ``groups`` holds, for each frequency group of the vocabulary, its classes, how many of them occur, their pixels, their
    instances, and their images (summed over classes); ``thirds`` the same for head, middle and tail: the thirds of the classes
    that occur, in the order of ``classes``. ``pixels`` counts all pixels, ``labelled`` those that have a class. ``progress``
    counts images.
    """
    return summarise(dataset.vocabulary, read_counts(dataset, progress))


def summarise(vocabulary: Vocabulary, counts: Mapping[str, Counts]) -> dict[str, Any]:
    """The result of :func:`statistics` for counts that have been read."""
    splits = {name: _split_statistics(vocabulary, split) for name, split in counts.items()}
    trained = {row["class"] for row in splits["train"]["classes"]} if "train" in splits else set()
    for name, split in splits.items():
        unseen = [_named(vocabulary[row["class"]]) for row in split["classes"] if row["class"] not in trained]
        split["not_in_train"] = unseen if "train" in splits and name != "train" else None
    return {"splits": splits}


def write_classes(path: Path, stats: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Write a CSV with a row of :data:`COLUMNS` for each split and class, absent ones included, most frequent first.

    ``instances`` is empty if the data set does not record them. Raises DataError if the file cannot be written.
    """
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for name, split in stats["splits"].items():
            zeros = {"instances": None if split["instances"] is None else 0}
            zeros |= dict.fromkeys(("images", "image_share", "pixels", "pixel_share"), 0)
            for row in (*split["classes"], *(absent | zeros for absent in split["absent"])):
                writer.writerow(row | {"split": name, "kind": vocabulary[row["class"]].kind})


def _split_statistics(vocabulary: Vocabulary, counts: Counts) -> dict[str, Any]:
    size = len(vocabulary)
    images, pixels, instances = counts.images_of(size), counts.pixels_of(size), counts.instances_of(size)
    ranked = np.lexsort((-pixels[1:], -images[1:])) + 1  # stable: ties go to the lower id
    present = ranked[images[ranked] > 0]
    total, labelled = len(counts.areas), int(pixels.sum())

    def listed(c: int) -> dict[str, Any]:
        return {
            **_named(vocabulary[c]),
            "instances": None if instances is None else int(instances[c]),
            "images": int(images[c]),
            "image_share": int(images[c]) / max(1, total),
            "pixels": int(pixels[c]),
            "pixel_share": int(pixels[c]) / max(1, labelled),
        }

    classes_an_image = np.bincount(counts.rows, minlength=total)
    groups = {g: np.array([c.id for c in vocabulary if c.group == g], dtype=np.int64) for g in vocabulary.groups}
    thirds = dict(zip(THIRDS, np.array_split(present, len(THIRDS)), strict=True))
    return {
        "images": total,
        "classes_present": len(present),
        "pixels": int(counts.areas.sum()),
        "labelled": labelled,
        "instances": None if instances is None else int(instances.sum()),
        "image_quantiles": quantiles(images[present]),
        "pixel_quantiles": quantiles(pixels[present]),
        "image_quantiles_all": quantiles(images[1:]),
        "pixel_quantiles_all": quantiles(pixels[1:]),
        "classes_an_image": quantiles(classes_an_image),
        "classes_an_image_histogram": np.bincount(classes_an_image).tolist() if total else [],
        "gini": {"images": _gini(images[1:]), "pixels": _gini(pixels[1:])},
        "imbalance": {"images": _imbalance(images[present]), "pixels": _imbalance(pixels[present])},
        "groups": {name: _members(members, images, pixels, instances) for name, members in groups.items()},
        "thirds": {name: _members(members, images, pixels, instances) for name, members in thirds.items()},
        "classes": [listed(c) for c in present.tolist()],
        "absent": [_named(c) for c in vocabulary if not images[c.id]],
    }


def _named(info: ClassInfo) -> dict[str, Any]:
    return {"class": info.id, "name": info.name, "group": info.group}


def quantiles(values: np.ndarray) -> dict[str, float]:
    """Quantile, such as "0.5" -> its value; empty without values."""
    if not values.size:
        return {}
    return {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}


def _members(
    members: np.ndarray, images: np.ndarray, pixels: np.ndarray, instances: np.ndarray | None
) -> dict[str, int | None]:
    """What some classes have together."""
    return {
        "classes": members.size,
        "classes_present": int((images[members] > 0).sum()),
        "images": int(images[members].sum()),
        "pixels": int(pixels[members].sum()),
        "instances": None if instances is None else int(instances[members].sum()),
    }


def _gini(values: np.ndarray) -> float | None:
    """The Gini coefficient of (n,) int64 values: half their mean absolute difference, relative to their mean."""
    total, n = int(values.sum()), values.size
    if not total:
        return None
    return float(np.sort(values).astype(np.float64) @ (2 * np.arange(1, n + 1) - n - 1)) / (n * total)


def _imbalance(values: np.ndarray) -> float | None:
    return float(values.max() / values.min()) if values.size and values.min() else None  # a damaged shard may hold zeros
