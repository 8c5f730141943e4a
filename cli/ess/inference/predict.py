"""``ess predict``: class ids of pictures and videos."""

import sys
from pathlib import Path
from typing import Any

import click

from cli.commands import command
from cli.display import progress, say
from cli.options import path_option
from cli.run_options import checkpoint_option, device_option, inference_options, run_argument


@command(interrupted="finished predictions are kept: continue with --skip-existing")
@run_argument
@click.argument("images", nargs=-1, required=True, metavar="INPUT...")
@path_option("--out", required=True, help="Folder for the results.")
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=click.Choice(["png", "overlay", "rle"]),
    default=("png", "overlay"),
    show_default=True,
    help="png: 16-bit class ids; overlay: with names; rle: predictions.json in COCO's format. May be repeated.",
)
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
    """
    from ess.inference.inputs import find_inputs, read_list
    from ess.inference.predictor import Predictor
    from ess.inference.results import predict_files
    from ess.inference.views import Inference

    lines = read_list(sys.stdin.buffer.read()) if "-" in images else []
    inputs = find_inputs([name for name in images if name != "-"] + lines, exclude=out)
    with progress("predict") as show:
        predictor = Predictor.from_run(run, device, checkpoint, Inference(**inference))
        faults = predict_files(predictor, inputs, out, formats, every=every, skip_existing=skip_existing, progress=show)
    if len(faults) < len(inputs):
        say(f"The predictions are in {out}.")
    for fault in faults:
        say(f"Error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)
