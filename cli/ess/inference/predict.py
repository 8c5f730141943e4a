"""``ess predict``: class ids of pictures and videos."""

import sys
from pathlib import Path
from typing import Any

import click

from cli.commands import command
from cli.display import progress, say
from cli.options import image_root_option, path_option
from cli.run_options import checkpoint_option, device_option, inference_options, run_argument


@command(interrupted="finished predictions are kept: continue with --skip-existing")
@run_argument
@click.argument("images", nargs=-1, required=True, metavar="INPUT...")
@path_option("--out", required=True, help="Folder for the results.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["png", "overlay", "rle", "shards"]),
    default=("png", "overlay"),
    show_default=True,
    help="png: 16-bit class ids; overlay: with names; rle: predictions.json in COCO's format. May be repeated. "
    "shards: alone, for a data set as INPUT; `cocolvis view` shows them.",
)
@click.option("--split", help="With --format shards: the split of the data set.  [default: val]")
@image_root_option
@click.option("--every", type=click.IntRange(min=1), default=1, show_default=True, help="In videos, only every Nth frame.")
@click.option("--skip-existing", is_flag=True, help="Skip inputs whose results exist, to continue an interrupted call.")
@inference_options
@checkpoint_option
@device_option
def predict(
    run: Path,
    images: tuple[str, ...],
    out: Path,
    formats: tuple[str, ...],
    split: str | None,
    image_root: Path | None,
    every: int,
    skip_existing: bool,
    checkpoint: str,
    device: str,
    **inference: Any,
) -> None:
    """Segment pictures of any size, and videos: files, folders, globs, or - for a list of paths on stdin.

    \b
    Example:
      ess predict run photo.jpg holiday/ --out predictions
      ess predict run ~/cocolvis --split val --format shards --out predictions
    """
    how = {"out": out, "skip_existing": skip_existing, "checkpoint": checkpoint, "device": device, **inference}
    if "shards" not in formats:
        if split is not None or image_root is not None:
            raise click.UsageError("--split and --image-root need --format shards")
        faults, predicted = _predict_files(run, images, formats=formats, every=every, **how)
    elif len(images) != 1 or len(formats) != 1:
        raise click.UsageError("--format shards takes one data set as INPUT and no other format")
    elif every != 1:
        raise click.UsageError("--format shards is used without --every")
    else:
        faults, predicted = _predict_split(run, Path(images[0]), split or "val", image_root, **how)
    if predicted:
        say(f"The predictions are in {out}.")
    for fault in faults:
        say(f"Error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)


def _predict_files(
    run: Path,
    images: tuple[str, ...],
    *,
    out: Path,
    formats: tuple[str, ...],
    every: int,
    skip_existing: bool,
    checkpoint: str,
    device: str,
    **inference: Any,
) -> tuple[list[str], bool]:
    """Predict pictures and videos; return a line for each that cannot be decoded, and whether any other was predicted."""
    from ess.inference.inputs import find_inputs, read_list
    from ess.inference.predictor import Predictor
    from ess.inference.results import predict_files
    from ess.inference.views import Inference

    lines = read_list(sys.stdin.buffer.read()) if "-" in images else []
    inputs = find_inputs([name for name in images if name != "-"] + lines, exclude=out)
    with progress("predict") as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        how: dict[str, Any] = {"every": every, "skip_existing": skip_existing}
        faults = predict_files(predictor, inputs, out, formats, **how, progress=show, announce=show.line)
    return faults, len(faults) < len(inputs)


def _predict_split(
    run: Path,
    data: Path,
    split: str,
    image_root: Path | None,
    *,
    out: Path,
    skip_existing: bool,
    checkpoint: str,
    device: str,
    **inference: Any,
) -> tuple[list[str], bool]:
    """Predict a split of a data set; return a line for each damaged image, and True: the shards are there in any case."""
    from cocolvis.storage.dataset import Dataset
    from ess.inference.predictor import Predictor
    from ess.inference.shards import predict_split
    from ess.inference.views import Inference

    dataset = Dataset.open(data, image_root)
    dataset.split(split)  # raises DataError before the model is loaded
    with progress("predict") as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        faults = predict_split(predictor, dataset, split, out, skip_existing=skip_existing, progress=show, announce=show.line)
    return faults, True
