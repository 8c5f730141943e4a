"""``ess eval``: the scores of a run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands import command
from cli.display import print_json, print_table, say
from cli.ess.evaluation.predicting import predicted, split_options
from cli.options import figure_option, image_root_option, json_option, output_option, path_argument
from cli.run_options import Numbers, run_argument

if TYPE_CHECKING:
    import numpy as np

    from cocolvis.storage.dataset import Dataset
    from ess.evaluation.metrics import Confusion


@command("eval", interrupted="the evaluation was not finished; run the same command to start over")
@run_argument
@path_argument("data")
@click.option("--top-n", type=Numbers(int), default=(), help="mIoU of the N classes with the most training images: N[,N...].")
@output_option("--per-class", help="CSV to write: pixels, IoU and accuracy of each class.")
@output_option("--per-image", help="CSV to write: mIoU, pixel accuracy and worst classes of each image, the worst image first.")
@figure_option("--plot", help="Picture to draw: mIoU against the n most frequent classes.")
@click.option(
    "--published", is_flag=True, help="Average like the published code: classes predicted but absent have an IoU of 0."
)
@click.option("--oracle-classes", is_flag=True, help="Predict only classes that are in the truth of the image.")
@split_options
@image_root_option
@json_option
def evaluate(
    run: Path,
    data: Path,
    image_root: Path | None,
    split: str,
    top_n: tuple[int, ...],
    per_class: Path | None,
    per_image: Path | None,
    plot: Path | None,
    published: bool,
    oracle_classes: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Score a run: mIoU, accuracies and mIoU by frequency group, over the classes that occur in the ground truth.

    \b
    Example:
      ess eval run ~/cocolvis --top-n 50,200,1284 --per-class classes.csv
    """
    files = [os.path.realpath(path) for path in (per_class, per_image, plot) if path]
    if len({*files}) < len(files):
        raise click.UsageError("--per-class, --per-image and --plot need different files")
    from cocolvis.storage.dataset import Dataset
    from ess.evaluation import reports
    from ess.evaluation.evaluate import count_pictures, count_pixels, scores_of
    from ess.evaluation.picture_scores import picture_scores

    dataset = Dataset.open(data, image_root)
    images = reports.training_images(dataset) if top_n or per_class or plot else None
    reports.check_top(top_n, dataset)
    with predicted(run, dataset, "eval", split=split, oracle_classes=oracle_classes, **how) as found:
        pictures = count_pictures(found.images, len(dataset.vocabulary)) if per_image else None
        confusion = count_pixels(found.images, len(dataset.vocabulary)) if pictures is None else pictures.total()
    scores = scores_of(confusion, dataset, published=published, damaged=found.damaged)
    scores |= {"oracle_classes": True} if oracle_classes else {}
    curve = None if images is None else reports.frequency_curve(confusion.iou(published), images)
    scores |= {"top_n": reports.top_scores(curve, top_n)} if curve is not None and top_n else {}
    try:  # neither a full disk nor a closed stdout costs what the other one can take
        print_json(scores) if as_json else _print_scores(scores, split)
    finally:
        if per_image and pictures is not None:
            reports.write_pictures(per_image, picture_scores(pictures), dataset.vocabulary)
        if images is not None and curve is not None:
            _write_reports(confusion, dataset, images, curve, per_class, plot, published)


def _write_reports(
    confusion: "Confusion",
    dataset: "Dataset",
    images: "np.ndarray",
    curve: "np.ndarray",
    per_class: Path | None,
    plot: Path | None,
    published: bool,
) -> None:
    """Write the CSV and the curve, if requested; ``images`` (C,) are the training images of each class."""
    from ess.evaluation import reports

    if per_class:
        reports.write_classes(per_class, confusion, dataset, images, published=published)
    if plot:
        reports.plot_curve(plot, curve, images)


def _print_scores(scores: dict[str, Any], split: str) -> None:
    from ess.data.damage import describe_skipped

    named = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy", "fw IoU": "fw_iou"}
    rows = {name: scores[key] for name, key in named.items()}
    rows |= {f"mIoU, {name}": value for name, value in scores["groups"].items()}
    rows |= {f"mIoU, {top['n']} most frequent": top["miou"] for top in scores.get("top_n", ())}
    print_table(("score", "value"), [(name, "none" if value is None else f"{value:.4f}") for name, value in rows.items()])
    left_out = f", {describe_skipped(scores['skipped'])}" if scores["skipped"] else ""
    say()
    restricted = ", predicted among the classes in the truth of each image" if "oracle_classes" in scores else ""
    say(f"{scores['images']} images of split {split}{left_out}{restricted}")
