"""How well predictions in bf16 agree with those in float32.

    python benchmarks/precision.py RUN DATA [--split val] [--limit N] [--device cpu] [--json]

Predicts the images of a split in both precisions and prints the share of all pixels that get the same class, that of the
labelled ones, the mIoU of both, their difference (bf16 minus float32) with its 95 % bootstrap interval over pictures, and the
ratio of their times. The precisions take turns, some images each, so that both see the machine in the same state.
"""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from cli.display import progress
from cocolvis.progress import Progress
from cocolvis.storage.dataset import Dataset
from ess.evaluation.bootstrap import difference_intervals
from ess.evaluation.evaluate import Predicted, count_pictures, image_indices, predictions
from ess.evaluation.picture_counts import PictureCounts
from ess.inference.predictor import Predictor
from ess.inference.views import PRECISIONS, Inference

_TURN = 32
"""Images that are predicted in one precision before the other one has its turn; their masks are in memory."""


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True)
@click.option("--limit", type=click.IntRange(1), help="Only the first N images.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(run: Path, data: Path, split: str, limit: int | None, device: str, as_json: bool) -> None:
    """Compare the predictions of a run in bf16 with those in float32."""
    dataset = Dataset.open(data)
    predictors = {name: Predictor.from_run(run, device, inference=Inference(precision=name)) for name in PRECISIONS}
    with progress("precision") as show:
        found = compared(predictors, dataset, split, image_indices(dataset, split, limit), show)
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, value in found.items():
        words = value if isinstance(value, list) else [value]
        click.echo(f"{name:26} {' '.join('none' if each is None else f'{each:.6g}' for each in words)}")


def compared(
    predictors: Mapping[str, Predictor], dataset: Dataset, split: str, indices: Sequence[int], show: Progress
) -> dict[str, Any]:
    """The figures that are printed, for predictors in "float32" and in "bf16"."""
    classes = len(dataset.vocabulary)
    parts: dict[str, list[PictureCounts]] = {name: [] for name in predictors}
    seconds, same = dict.fromkeys(predictors, 0.0), np.zeros((2, 2), np.int64)
    for predictor in predictors.values():
        list(predictions(predictor, dataset, split=split, indices=indices[:1]))  # not measured: it compiles loops
    for first in range(0, len(indices), _TURN):
        turn, masks = indices[first : first + _TURN], {}
        for name, predictor in predictors.items():
            start = time.perf_counter()
            masks[name] = {image.image_id: image for image in predictions(predictor, dataset, split=split, indices=turn)}
            seconds[name] += time.perf_counter() - start
            parts[name].append(count_pictures(masks[name].values(), classes))
        same += sum(_same_class(image, masks["bf16"][key]) for key, image in masks["float32"].items())
        show(first + len(turn), len(indices))
    counts = {name: PictureCounts.joined(each) for name, each in parts.items()}
    difference = difference_intervals([counts["bf16"]], [counts["float32"]], {"all": np.ones(classes, bool)})["all"]
    return {
        "images": len(indices),
        "same_class": same[0, 1] / same[0, 0],
        "same_class_labelled": same[1, 1] / same[1, 0] if same[1, 0] else None,
        **{f"miou_{name}": counts[name].total().summary()["miou"] for name in predictors},
        "miou_difference": None if np.isnan(difference.value) else [*difference],
        "seconds_float32_over_bf16": seconds["float32"] / seconds["bf16"],
    }


def _same_class(one: Predicted, other: Predicted) -> np.ndarray:
    """(2, 2) int64: pixels, and those that both predict alike; the first row for all pixels, the second for labelled ones."""
    alike, labelled = one.prediction == other.prediction, one.labels >= 0
    return np.array([[alike.size, alike.sum()], [labelled.sum(), (alike & labelled).sum()]], np.int64)


if __name__ == "__main__":
    main()
