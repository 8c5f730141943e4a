"""``cocolvis stats``: the long tail of a data set."""

from pathlib import Path
from typing import Any

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, progress, say
from cli.options import json_option, path_argument, path_option

_RANKED = 10
"""How many classes are printed at either end of the ranking; --json lists all."""

_QUANTILES = {
    "images per class": "image_quantiles",
    "pixels per class": "pixel_quantiles",
    "classes per image": "classes_an_image",
}


@command(interrupted=UNCHANGED)
@path_argument("dir")
@json_option
@path_option("--plot", help="Also draw the histograms to this file (.png, .pdf, .svg).")
def stats(dir: Path, as_json: bool, plot: Path | None) -> None:
    """Show the long tail: images and pixels per class, quantiles, groups, and the most and least common classes.

    \b
    Example:
      cocolvis stats ~/cocolvis --plot tail.png
    """
    from cocolvis.inspection import stats as module
    from cocolvis.storage.dataset import Dataset

    dataset = Dataset.open(dir)
    with progress("stats") as show:
        found = module.statistics(dataset, show)
    if as_json:
        print_json(found)
    else:
        for name, split in found["splits"].items():
            _print_split(name, split, len(dataset.vocabulary))
    if plot is not None:
        module.plot(found, plot)
        say(f"plot: {plot}", err=True)


def _print_split(name: str, split: dict[str, Any], classes: int) -> None:
    """The statistics of one split; ``classes`` is the size of the vocabulary."""
    labelled = split["labelled"] / max(1, split["pixels"])
    present = f"{split['classes_present']:,} of {classes:,} classes"
    say(f"{name}: {split['images']:,} images, {present}, {labelled:.1%} of the pixels labelled")
    say()
    if split["groups"]:
        total = max(1, split["labelled"])
        rows = [(group, *list(n.values())[:3], f"{n['pixels'] / total:8.2%}") for group, n in split["groups"].items()]
        print_table(("group", "classes", "present", "class x image", "pixels"), rows)
        say()
    quantiles = [(label, *(round(value) for value in split[key].values())) for label, key in _QUANTILES.items() if split[key]]
    if quantiles:
        print_table(("quantile", *split["classes_an_image"]), quantiles)
    listed = split["classes"]
    columns = ("group", "images", "pixels") if split["groups"] else ("images", "pixels")
    for title, part in (("most common", listed[:_RANKED]), ("least common", listed[_RANKED:][-_RANKED:])):
        if part:
            say()
            ranked = [(row["name"], str(row["class"]), *(row[column] for column in columns)) for row in part]
            print_table((title, "class", *columns), ranked)
    say()
