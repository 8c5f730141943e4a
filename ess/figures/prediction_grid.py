"""Images in rows: picture, truth, the prediction of the baseline and that of the run."""

from pathlib import Path
from typing import Any

import numpy as np

from ess.data.loader import to_labels
from ess.evaluation.metrics import Confusion
from ess.figures.analysis import Analysis, Shown
from ess.figures.figure import Figure, write_figure
from ess.figures.style import fitted, named_mask, new_figure, show_picture

NAME, TITLE = "predictions", "Pictures, truth and predictions"
COLUMNS = ("image", "path", "run", "miou", "pixel_accuracy")
"""The columns of the CSV: the scores of each run on each image alone, empty if no pixel of the image has a class."""

_PIXELS = "pixel_accuracy"


def make(analysis: Analysis, folder: Path) -> Figure:
    """Write the figure; without a baseline it has no column for one."""
    shown, baseline = analysis.shown, analysis.options.baseline
    predicted = {"ours": [image.prediction for image in shown]}
    if baseline is not None:
        predictor = analysis.predictor_of(baseline)
        predicted = {"baseline": [predictor(image.picture) for image in shown], **predicted}
    scores = {name: [_scores(analysis, *pair) for pair in zip(shown, masks, strict=True)] for name, masks in predicted.items()}
    folders = {"ours": analysis.run.folder, "baseline": baseline.folder if baseline else None}
    rows = [
        [image.sample.image_id, image.sample.path, folders[name], scores[name][number]["miou"], scores[name][number][_PIXELS]]
        for number, image in enumerate(shown)
        for name in predicted
    ]
    caption = (
        "Each row is an image. Black pixels of the truth are unlabelled. Above each prediction is the mIoU of this image alone."
        " The largest classes are named."
    )
    if baseline is not None:
        caption += f' The baseline is the run "{baseline.folder.name}"; ours is "{analysis.run.folder.name}".'
    drawn = _draw(analysis, predicted, scores)
    return write_figure(folder, NAME, TITLE, caption, drawn, COLUMNS, rows)


def _scores(analysis: Analysis, image: Shown, prediction: np.ndarray) -> dict[str, Any]:
    confusion = Confusion(len(analysis.vocabulary))
    confusion.update(to_labels(image.sample.mask), to_labels(prediction))
    return confusion.summary()


def _draw(analysis: Analysis, predicted: dict[str, list[np.ndarray]], scores: dict[str, list[dict[str, Any]]]) -> Any:
    shown, columns = analysis.shown, 2 + len(predicted)
    heights = [image.picture.shape[0] / image.picture.shape[1] for image in shown]
    heights = [min(height, 1.5) for height in heights]
    figure = new_figure(3.2 * columns, sum(3.1 * height + 0.35 for height in heights))
    grid = figure.subplots(len(shown), columns, squeeze=False, height_ratios=heights)
    for number, (panels, image) in enumerate(zip(grid, shown, strict=True)):
        show_picture(panels[0], fitted(image.picture), f"image {image.sample.image_id}")
        show_picture(panels[1], named_mask(image.sample.mask, analysis.vocabulary), "truth")
        for axes, (name, masks) in zip(panels[2:], predicted.items(), strict=True):
            miou = scores[name][number]["miou"]
            title = name if miou is None else f"{name}: mIoU {miou:.2f}"
            show_picture(axes, named_mask(masks[number], analysis.vocabulary), title)
    return figure
