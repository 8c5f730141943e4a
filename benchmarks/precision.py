"""How well predictions in bf16 agree with those in float32.

    python benchmarks/precision.py RUN DATA [--split val] [--limit N] [--device cpu] [--json]

Predicts the images of a split in both precisions and prints the share of all pixels that get the same class, that of the
labelled ones, the mIoU of both, and the ratio of their times.
"""

import json
import time
from pathlib import Path

import click
import numpy as np

from cocolvis.storage.dataset import Dataset
from ess.evaluation.evaluate import image_indices, predictions
from ess.evaluation.metrics import Confusion
from ess.inference.predictor import Predictor
from ess.inference.views import PRECISIONS, Inference


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
    indices = image_indices(dataset, split, limit)
    masks: dict[str, dict[int, np.ndarray]] = {}
    truths: dict[int, np.ndarray] = {}
    found: dict[str, float | None] = {}
    seconds = {}
    for name in PRECISIONS:
        predictor = Predictor.from_run(run, device, inference=Inference(precision=name))
        confusion, start = Confusion(len(dataset.vocabulary)), time.perf_counter()
        masks[name] = {}
        for image in predictions(predictor, dataset, split=split, indices=indices):
            masks[name][image.image_id], truths[image.image_id] = image.prediction, image.labels
            confusion.update(image.labels, image.prediction)
        seconds[name] = time.perf_counter() - start
        found[f"miou_{name}"] = confusion.summary()["miou"]
    same = [masks["bf16"][image] == masks["float32"][image] for image in truths]
    labelled = [truths[image] >= 0 for image in truths]
    pixels, counted = sum(each.size for each in same), sum(int(each.sum()) for each in labelled)
    found["same_class"] = sum(int(each.sum()) for each in same) / pixels
    found["same_class_labelled"] = sum(int((a & b).sum()) for a, b in zip(same, labelled, strict=True)) / counted
    found["seconds_float32_over_bf16"] = seconds["float32"] / seconds["bf16"]
    if as_json:
        click.echo(json.dumps({"images": len(truths), **found}))
        return
    for name, value in found.items():
        click.echo(f"{name:26} {'none' if value is None else format(value, '.4f')}")


if __name__ == "__main__":
    main()
