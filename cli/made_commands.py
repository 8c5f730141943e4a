"""The commands of ``ess`` that make something new of a trained run: a file to deploy, a class from a few examples."""

from pathlib import Path

import click

from cli.display import print_json, print_table, progress, say
from cli.options import command, json_option, path_option
from cli.run_options import checkpoint_option, device_option, run_argument
from cocolvis.errors import DataError


@command(interrupted="no file was written; one that was there before is as it was")
@run_argument
@click.option(
    "--format", "kind", type=click.Choice(["onnx", "torch"]), default="onnx", show_default=True, help="What to write."
)
@path_option("--out", required=True, help="The file: .onnx, or .pt2 for torch.")
@checkpoint_option
def export(run, kind, out, checkpoint) -> None:
    """Write a run as one file from picture to class ids, and compare it with the run on a picture.

    It takes (H, W, 3) uint8 RGB of any size and gives (H, W) int32 class ids; normalisation and padding are inside.

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


@command("add-class", interrupted="the run is as it was; the same command begins again")
@run_argument
@click.option("--name", help="The class's name.")
@click.option("--images", multiple=True, help="Pictures: a file, a folder or a glob. May be repeated.")
@click.option(
    "--masks", multiple=True, help="Their masks, paired by stem: label PNGs, the class where they are not 0. May be repeated."
)
@click.option("--value", type=click.IntRange(min=0), help="The class is where masks have this value, such as a class id.")
@click.option("--remove", help="Forget an added class, by its name.")
@click.option("--list", "listing", is_flag=True, help="List the added classes.")
@checkpoint_option
@device_option
@json_option
def add_class(run, name, images, masks, value, remove, listing, checkpoint, device, as_json) -> None:
    """Add a class to a run from a few pictures with masks, without training.

    Its embedding is the mean of the examples' pixels, kept in RUN/added.json; predictions then know the class.

    \b
    Example:
      ess add-class run --name unicorn --images examples/ --masks masks/
    """
    if sum((bool(name), bool(remove), listing)) != 1 or bool(name) != bool(images and masks):
        raise click.UsageError("expected one of: --name with --images and --masks; --remove NAME; --list")
    from ess.checkpoint import Run
    from ess.inference.added import read_added, remove_class

    if name:
        _add(run, name, images, masks, value, checkpoint, device)
    if remove:
        remove_class(Run.open(run), remove)
    opened = Run.open(run)
    rows = [(number, new) for number, new in enumerate(read_added(opened), len(opened.vocabulary) + 1)]
    if as_json:
        print_json({"added": [{"class": i, "name": c.name, "examples": c.examples, "pixels": c.pixels} for i, c in rows]})
        return
    print_table(("class", "name", "examples", "pixels"), [(str(i), c.name, len(c.examples), c.pixels) for i, c in rows])


def _add(run: Path, name: str, images, masks, value, checkpoint, device) -> None:
    from ess.checkpoint import Run
    from ess.inference.added import store_class
    from ess.inference.examples import pair, read_examples
    from ess.inference.new_class import make_class
    from ess.inference.predictor import Predictor

    pairs = pair(images, masks)
    with progress("add-class") as show:
        predictor = Predictor.from_run(run, device, checkpoint)
        examples = read_examples(pairs, value)
        made = make_class(name, predictor, examples, progress=lambda done: show(done, len(pairs)))
    store_class(Run.open(run), made)


COMMANDS = (export, add_class)
