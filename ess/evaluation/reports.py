"""Reports of an evaluation: the mIoU of the n most frequent classes, its curve over n, and CSVs of all classes and pictures."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cocolvis.disk.files import save_figure, write_aside
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import Vocabulary
from ess.evaluation.metrics import Confusion, miou_curve
from ess.evaluation.picture_scores import PictureScore

COLUMNS = ("class", "name", "group", "training_images", "truth_pixels", "predicted_pixels", "iou", "accuracy")
"""The columns of the CSV of classes."""

PICTURE_COLUMNS = ("image_id", "miou", "pixel_accuracy", "labelled_pixels", "classes", "worst_classes")
"""The columns of the CSV of pictures."""


def training_images(dataset: Dataset) -> np.ndarray:
    """How many images of the split "train" show each class, from the tables of its shards: (C,) int64."""
    _, classes, _ = dataset.split("train").present()
    return np.bincount(classes.astype(np.int64) - 1, minlength=len(dataset.vocabulary))


def check_top(top: Sequence[int], dataset: Dataset) -> None:
    """Raise DataError unless 1 <= n <= C for each n."""
    for n in top:
        if not 1 <= n <= len(dataset.vocabulary):
            raise DataError(f"--top-n is {n}: expected 1..{len(dataset.vocabulary)}, the number of classes")


def frequency_curve(iou: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The mIoU over the n classes with the most training ``images`` (C,), for n = 1..C: (C,) float64.

    All classes compete in the predictions. Classes without an IoU are left out of the mean, which is NaN if all are. Ties go to
    the lower class id.
    """
    return miou_curve(iou, np.argsort(-images, kind="stable"))


def top_scores(curve: np.ndarray, top: Sequence[int]) -> list[dict]:
    """``[{"n", "miou"}]`` of :func:`frequency_curve` at each n of ``top``."""
    return [{"n": n, "miou": None if np.isnan(curve[n - 1]) else float(curve[n - 1])} for n in top]


def write_classes(path: Path, confusion: Confusion, dataset: Dataset, images: np.ndarray, *, published: bool = False) -> None:
    """A CSV with a row of :data:`COLUMNS` for each class; undefined values, such as the IoU of an absent class, are empty."""
    truth, predicted, right = confusion.totals()
    accuracy = np.divide(right, truth, out=np.full(len(truth), np.nan), where=truth > 0)
    rows = zip(dataset.vocabulary, images, truth, predicted, confusion.iou(published), accuracy, strict=True)
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for c, *counts, iou, right_share in rows:
            writer.writerow([c.id, c.name, c.group or "", *map(int, counts), _share(iou), _share(right_share)])


def write_pictures(path: Path, scores: Sequence[PictureScore], vocabulary: Vocabulary) -> None:
    """A CSV with a row of :data:`PICTURE_COLUMNS` for each picture, in the order of ``scores``; undefined values are empty.

    The worst classes are names, separated by "; ".
    """
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(PICTURE_COLUMNS)
        for one in scores:
            names = "; ".join(vocabulary.name(label + 1) for label, _ in one.worst)
            writer.writerow([one.image_id, _share(one.miou), _share(one.accuracy), one.labelled, one.classes, names])


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6f}"


def plot_curve(path: Path, curve: np.ndarray, images: np.ndarray) -> None:
    """Draw :func:`frequency_curve` over n to a picture file, up to the last class with training ``images`` (C,)."""
    from matplotlib.figure import Figure

    trained = max(1, int((images > 0).sum()))
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, trained + 1), curve[:trained], color="#1f6f8b", linewidth=1.8)
    axes.set(xlabel="n most frequent classes, by training images", ylabel="mIoU", xlim=(1, max(2, trained)), ylim=(0, None))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
