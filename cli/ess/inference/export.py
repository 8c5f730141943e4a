"""``ess export``: a run as one file to deploy."""

from pathlib import Path

import click

from cli.commands import command
from cli.display import say
from cli.options import output_option
from cli.run_options import checkpoint_option, run_argument
from cocolvis.errors import DataError


@command(interrupted="no file was written; a file that was there before is unchanged")
@run_argument
@click.option(
    "--format", "kind", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True, help="What to write."
)
@output_option("--out", required=True, help="The file: .onnx, or .pt2 for torch.")
@checkpoint_option
def export(run: Path, kind: str, out: Path, checkpoint: str) -> None:
    """Write a run as one file that turns a picture into class ids, and compare it with the run on a picture.

    It takes (H, W, 3) uint8 RGB of any size and returns (H, W) int32 class ids; normalisation and padding are included.

    \b
    Example:
      ess export run --format onnx --out model.onnx
    """
    from ess.inference import export as exporting
    from ess.inference.predictor import Predictor

    missing = exporting.missing_packages(kind)
    if set(missing) - {"onnxruntime"}:
        raise DataError(f"--format onnx needs {' and '.join(missing)}: pip install 'cocolvis-ess[export]'")
    predictor = Predictor.from_run(run, "cpu", checkpoint)
    equal = exporting.export(predictor, out, kind, check=not missing)
    if equal is None:
        say(f"{out} is written, but was not compared with the run: pip install onnxruntime")
        return
    say(f"{out}: {equal:.3%} of the pixels of a test picture get the class that the run gives them.")
