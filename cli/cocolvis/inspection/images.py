"""``cocolvis images``: the images of a data set."""

from pathlib import Path

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, say_fields
from cli.options import json_option, path_argument


@command(interrupted=UNCHANGED)
@path_argument("dir")
@click.option("--split", help="Only the images of this split.")
@click.option("--class", "classes", multiple=True, metavar="NAME,...", help="Only images that show all these classes.")
@click.option("--any", "any_of", is_flag=True, help="With --class: images that show at least one of them.")
@json_option
def images(dir: Path, split: str | None, classes: tuple[str, ...], any_of: bool, as_json: bool) -> None:
    """List the images of a data set, or those that show given classes: id, split and path, separated by tabs.

    A class is given by its name or its number; --class may be repeated.

    \b
    Example:
      cocolvis images ~/cocolvis --split val --class cat,couch
    """
    from cocolvis.inspection.listing import class_ids
    from cocolvis.inspection.listing import images as find
    from cocolvis.storage.dataset import Dataset

    if any_of and not classes:
        raise click.UsageError("--any needs --class")
    dataset = Dataset.open(dir)
    found = find(dataset, split, class_ids(dataset.vocabulary, classes), any_of=any_of)
    if as_json:
        print_json({"images": [{"image": image.image_id, "split": image.split, "path": image.path} for image in found]})
        return
    for image in found:
        say_fields(*image)
