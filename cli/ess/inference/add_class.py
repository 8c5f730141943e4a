"""``ess add-class``: new classes for a trained run, from a few examples."""

from pathlib import Path

import click

from cli.commands import command
from cli.display import print_json, print_table, progress
from cli.options import json_option
from cli.run_options import checkpoint_option, device_option, run_argument


@command("add-class", interrupted="the run is unchanged; run the same command to start over")
@run_argument
@click.option("--name", help="Name of the class.")
@click.option("--images", multiple=True, help="Pictures: a file, a folder or a glob. May be repeated.")
@click.option(
    "--masks", multiple=True, help="Their masks, paired by stem: label PNGs in which the class is not 0. May be repeated."
)
@click.option("--value", type=click.IntRange(min=0), help="Value of the class in the masks, such as a class id.")
@click.option("--remove", help="Remove an added class, by its name.")
@click.option("--list", "listing", is_flag=True, help="List the added classes.")
@checkpoint_option
@device_option
@json_option
def add_class(
    run: Path,
    name: str | None,
    images: tuple[str, ...],
    masks: tuple[str, ...],
    value: int | None,
    remove: str | None,
    listing: bool,
    checkpoint: str,
    device: str,
    as_json: bool,
) -> None:
    """Add a class to a run from a few pictures with masks, without training.

    Its embedding is the mean over the pixels of the examples, stored in RUN/added.json; predictions then know the class.

    \b
    Example:
      ess add-class run --name unicorn --images examples/ --masks masks/
    """
    if sum((bool(name), bool(remove), listing)) != 1 or {bool(images), bool(masks)} != {bool(name)}:
        raise click.UsageError("expected one of: --name with --images and --masks; --remove NAME; --list")
    if value is not None and not name:
        raise click.UsageError("--value is used with --name, --images and --masks")
    from ess.checkpoint import Run
    from ess.inference.added import remove_class

    if name:
        _add(run, name, images, masks, value, checkpoint, device)
    if remove:
        remove_class(Run.open(run), remove)
    _print_added(run, as_json)


def _add(
    run: Path,
    name: str,
    images: tuple[str, ...],
    masks: tuple[str, ...],
    value: int | None,
    checkpoint: str,
    device: str,
) -> None:
    """Make a class from the examples and store it in the run."""
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


def _print_added(run: Path, as_json: bool) -> None:
    """Print the added classes with their ids, which follow those of the vocabulary."""
    from ess.checkpoint import Run
    from ess.inference.added import read_added

    opened = Run.open(run)
    rows = list(enumerate(read_added(opened), len(opened.vocabulary) + 1))
    if as_json:
        print_json({"added": [{"class": i, "name": c.name, "examples": c.examples, "pixels": c.pixels} for i, c in rows]})
        return
    print_table(("class", "name", "examples", "pixels"), [(str(i), c.name, len(c.examples), c.pixels) for i, c in rows])
