"""Writes the report of a run: collects what the page shows, renders it, and writes it as one file."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.disk.files import write_aside
from cocolvis.errors import DamagedImage
from cocolvis.palette import palette
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.config import Config
from ess.data.damage import describe_skipped
from ess.evaluation.bootstrap import Interval, miou_intervals
from ess.evaluation.compare import class_groups
from ess.evaluation.evaluate import scores_of
from ess.evaluation.reports import training_images
from ess.figures.figure import Figure
from ess.inference.predictor import Predictor
from ess.losses.cross_entropy import chosen
from ess.reporting.charts import line_chart
from ess.reporting.curves import LOSS, MIOU, training_curves
from ess.reporting.embedded import drawn, examples
from ess.reporting.page import render
from ess.reporting.tally import Tally


def write_report(
    path: Path,
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    tallied: Tally,
    *,
    figures: Sequence[Figure] = (),
    left_out: Sequence[str] = (),
    damaged: Sequence[DamagedImage] = (),
) -> int:
    """Write the report of a run as one HTML file, and return its size in bytes.

    ``tallied`` are the counts of the predictions of ``predictor``, a checkpoint of the run, for a split; ``damaged`` are the
    images that are not among them. ``left_out`` says in a sentence each why a figure is missing. Raises DataError if all images
    were damaged, or if the file cannot be written.
    """
    content = (
        _head(run, predictor, dataset, split, tallied)
        | _scores(dataset, tallied, damaged)
        | _training(run)
        | {"notices": _notices(run, predictor, dataset, damaged), "classes": _classes(dataset, tallied)}
        | {"worst": examples(tallied.worst, dataset, split), "best": examples(tallied.best, dataset, split)}
        | {"figures": [drawn(figure) for figure in figures], "left_out": [*left_out], "vocabulary": dataset.vocabulary}
        | _settings(run)
    )
    page = render(content)
    with write_aside(path) as aside:
        aside.write_bytes(page)
    return len(page)


def _head(run: Run, predictor: Predictor, dataset: Dataset, split: str, tallied: Tally) -> dict[str, Any]:
    """The title, and where everything comes from, by name and by digest."""
    checkpoint, config, inference = predictor.checkpoint, run.config, predictor.inference
    assert checkpoint is not None  # a predictor of a run has one
    views = [f"windows of {inference.window} pixels"] * (inference.window is not None) + ["mirrored"] * inference.flip
    if inference.scales != (1.0,):
        views.append(f"scales {', '.join(f'{scale:g}' for scale in inference.scales)}")
    sources = {
        "run": run.folder,
        "checkpoint": f"step {checkpoint.step:,}",
        "weights, SHA-256": checkpoint.weights_digest(),
        "data set": dataset.folder,
        "data set, digest": dataset.index["digest"],
        "vocabulary, digest": dataset.vocabulary.digest,
        "images": f"{tallied.confusion.images:,} of split {split}",
        "views of an image": ", ".join(views) or "one, at its own size",
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by cocolvis-ess {version('cocolvis-ess')}",
    }
    title = run.folder.resolve().name
    loss = chosen(config.loss, len(run.vocabulary))
    about = [f"{config.arch} with {config.encoder}", f"loss {loss}", f"{len(dataset.vocabulary):,} classes"]
    about += [f"step {checkpoint.step:,}", f"{tallied.confusion.images:,} images of {split}"]
    return {"title": title, "about": about, "sources": sources}


def _notices(run: Run, predictor: Predictor, dataset: Dataset, damaged: Sequence[DamagedImage]) -> list[str]:
    """What a reader must know to read the scores correctly."""
    found = []
    if run.dataset is not None and run.dataset != dataset.index["digest"]:
        found.append(f"The run was trained on another data set, of digest {run.dataset}.")
    if predictor.bias is not None:
        found.append("The predictions are calibrated for the long tail by `ess calibrate`.")
    if predictor.added:
        names = ", ".join(added.name for added in predictor.added)
        found.append(f"Classes that were added after the training are not evaluated: {names}.")
    if damaged:
        found.append(f"The scores are those of the other images: {describe_skipped(len(damaged))}.")
    return found


def _scores(dataset: Dataset, tallied: Tally, damaged: Sequence[DamagedImage]) -> dict[str, Any]:
    """The scores of all classes, and the mIoU of each group with its interval and the number of its classes in the truth."""
    scores = scores_of(tallied.confusion, dataset, damaged=damaged)
    groups = class_groups(dataset.vocabulary)
    intervals = miou_intervals([tallied.pictures], groups)
    present = tallied.confusion.totals()[0] > 0
    rows = [(name, int((members & present).sum()), int(members.sum()), intervals[name]) for name, members in groups.items()]
    highest = max([interval.high for _, _, _, interval in rows if not math.isnan(interval.value)], default=1.0)
    return {"scores": scores, "groups": rows, "scale": _scale(highest), "is_defined": _is_defined}


def _is_defined(interval: Interval) -> bool:
    return not math.isnan(interval.value)


def _scale(highest: float) -> float:
    """The end of the axis of the bars: a multiple of 0.1."""
    return min(1.0, max(0.1, math.ceil(10 * highest) / 10))


def _training(run: Run) -> dict[str, Any]:
    curves = training_curves(run)
    limit = run.config.eval_limit
    shown = "val" if limit is None else f"the first {limit:,} images of val"
    charts = [line_chart("Loss", curves[LOSS]), line_chart(f"mIoU in %, {shown}", curves[MIOU], percent=True)]
    return {"charts": [chart for chart in charts if chart]}


def _classes(dataset: Dataset, tallied: Tally) -> list[dict[str, Any]]:
    """A row of the table for each class."""
    truth, predicted, right = tallied.confusion.totals()
    accuracy = np.divide(right, truth, out=np.full(len(truth), np.nan), where=truth > 0)
    images = training_images(dataset).tolist() if "train" in dataset.splits else [None] * len(truth)
    numbers = zip(
        images,
        truth.tolist(),
        predicted.tolist(),
        tallied.confusion.iou().tolist(),
        accuracy.tolist(),
        strict=True,
    )
    colours = palette(len(dataset.vocabulary))
    names = ("images", "truth", "predicted", "iou", "accuracy")
    return [
        {"info": info, "colour": f"#{colours[info.id].tobytes().hex()}"} | dict(zip(names, values, strict=True))
        for info, values in zip(dataset.vocabulary, numbers, strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    """The settings that differ from the defaults, as (name, value, default), and the others, as (name, value)."""
    settings, defaults = run.config.to_json(), Config().to_json()
    changed = [(name, value, defaults[name]) for name, value in settings.items() if value != defaults[name]]
    return {"changed": changed, "unchanged": [(n, value) for n, value in settings.items() if value == defaults[n]]}
