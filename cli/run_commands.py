"""The commands of ``ess`` that use a trained run: evaluate, predict."""

from pathlib import Path

import click

from cli.options import json_option, path_argument, path_option, print_json, print_table, progress

_run = path_argument("run")
_data = path_argument("data")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_checkpoint = click.option(
    "--checkpoint", default="newest", show_default=True, type=click.Choice(["newest", "best"]), help="Best by mIoU on val."
)
_image_root = path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")


@click.command(name="eval")
@_run
@_data
@click.option("--split", default="val", show_default=True, help="Split to evaluate on.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images.")
@click.option("--published", is_flag=True, help="Average the IoU as the published code does: absent but predicted counts 0.")
@_checkpoint
@_device
@_image_root
@json_option
def evaluate(run, data, split, limit, published, checkpoint, device, image_root, as_json) -> None:
    """Score a run: mIoU, accuracies and mIoU by frequency group, over classes that occur in the truth.

    \b
    Example:
      ess eval run ~/cocolvis --split val
    """
    from cocolvis.dataset import Dataset
    from ess.evaluate import evaluate as score
    from ess.predict import Predictor

    dataset = Dataset.open(data, image_root)
    with progress("eval") as show:
        predictor = Predictor.from_run(run, device, checkpoint)
        scores = score(predictor, dataset, split=split, limit=limit, published=published, progress=show)
    if as_json:
        print_json(scores)
        return
    groups = {f"mIoU, {name}": value for name, value in scores["groups"].items()}
    named = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy", "fw IoU": "fw_iou"}
    rows = {name: scores[key] for name, key in named.items()} | groups
    print_table(("score", "value"), [(name, "none" if value is None else f"{value:.4f}") for name, value in rows.items()])
    click.echo(f"\n{scores['images']} images of split {split}")


@click.command()
@_run
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@path_option("--out", required=True, help="Folder for the PNGs.")
@_checkpoint
@_device
def predict(run, images, out, checkpoint, device) -> None:
    """Segment pictures of any size: NAME.png holds 16-bit class ids, NAME_overlay.png shows them with their names.

    \b
    Example:
      ess predict run photo.jpg --out predictions
    """
    from ess.predict import Predictor, predict_files

    with progress("predict") as show:
        predict_files(Predictor.from_run(run, device, checkpoint), images, out, progress=show)
    click.echo(f"The predictions lie in {out}.")


COMMANDS = (evaluate, predict)
