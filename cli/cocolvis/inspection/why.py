"""``cocolvis why``: how a pixel got its class."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, progress, say
from cli.options import first_split_option, json_option, path_argument, source_options
from cocolvis.errors import DataError
from cocolvis.text import counted

if TYPE_CHECKING:
    from cocolvis.inspection.why import Explanation


@command(interrupted=UNCHANGED)
@path_argument("dir")
@click.argument("image_id", type=int)
@click.argument("x", type=int)
@click.argument("y", type=int)
@first_split_option
@source_options()
@json_option
def why(
    dir: Path,
    image_id: int,
    x: int,
    y: int,
    split: str | None,
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Print which annotation gave a pixel its class, and which ones it hides; exit 1 if the mask disagrees.

    X is the column of the pixel and Y its row, counted from 0 at the top left.

    \b
    Example:
      cocolvis why ~/cocolvis 139 320 240 --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.inspection.why import why as explain
    from cocolvis.sources.inputs import Sources
    from cocolvis.storage.dataset import Dataset
    from cocolvis.vocabulary import coco_lvis

    dataset = Dataset.open(dir)
    if split is not None:
        dataset.split(split)  # raises DataError if there is none of this name
    place = dataset.locate(image_id, split)
    with progress("why") as show:
        explanation = explain(dataset, Sources(coco, lvis, coco_lvis(), show.line, show.phase), place, x, y)
    if as_json:
        print_json(explanation.to_json())
    else:
        _print_explanation(explanation)
    if explanation.fault:
        raise DataError(explanation.fault)


def _print_explanation(explanation: "Explanation") -> None:
    """Print the annotations that cover a pixel, and those that were left out of its image."""
    size = f"{explanation.width} x {explanation.height} pixels"
    say(f"{explanation.split} image {explanation.image_id}: {explanation.path}, {size}")
    name = f"{explanation.stored} {explanation.stored_name}" if explanation.stored else "unlabelled"
    instances = f", {counted(explanation.instances, 'instance')} in this image" if explanation.instances else ""
    nothing = "" if explanation.layers else ": no annotation covers it"
    say(f"x {explanation.x}, y {explanation.y}: {name}{instances}{nothing}")
    if explanation.layers:
        say()
        rows = [
            (
                "shows" if layer.shows else "hidden",
                layer.source,
                "-" if layer.annotation_id is None else str(layer.annotation_id),
                f"{layer.category_id} {layer.category}",
                f"{layer.class_id} {layer.class_name}",
                layer.area,
            )
            for layer in explanation.layers
        ]
        print_table(("", "source", "annotation", "category", "class", "pixels"), rows)
    for fault in explanation.left_out:
        annotation = "a record" if fault.annotation_id is None else f"annotation {fault.annotation_id}"
        say()
        say(f"left out: {annotation} ({fault.source}), {fault.kind}: {fault.reason}")
