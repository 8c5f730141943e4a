"""``cocolvis stats``: the long tail of a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.cocolvis.inspection import stats_tables as tables
from cli.commands import UNCHANGED, command
from cli.display import print_json, progress, say
from cli.options import figure_option, json_option, output_option, path_argument, path_option, source_options

if TYPE_CHECKING:
    from cocolvis.inspection.stats import Counts
    from cocolvis.storage.dataset import Dataset


def _what_is_kept(given: Mapping[str, Any]) -> str:
    writes = any(given[name] for name in ("csv", "plot", "figures"))
    return "files that were written are kept; the same command writes all of them again" if writes else UNCHANGED


@command(interrupted=_what_is_kept)
@path_argument("dir")
@json_option
@click.option("--top", type=click.IntRange(min=0), default=10, show_default=True, help="How many classes each ranking lists.")
@click.option("--class", "chosen", multiple=True, metavar="NAME,...", help="Show these classes and their companions instead.")
@output_option("--csv", help="Also write the counts of every class to this file.")
@figure_option("--plot", help="Also draw the long tail to this file (.png, .pdf, .svg).")
@path_option("--figures", help="Also write figures to this folder: a word cloud, images per class, shared classes.")
@source_options(required=False)
def stats(
    dir: Path,
    as_json: bool,
    top: int,
    chosen: tuple[str, ...],
    csv: Path | None,
    plot: Path | None,
    figures: Path | None,
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
) -> None:
    """Show the long tail: images and pixels per class, quantiles, imbalance, and the most and least common classes.

    --class shows single classes: their images, their areas, and the classes that occur together with them. A class is given by
    its name or its number; --class may be repeated. Only --figures reads the files of --coco and --lvis.

    \b
    Example:
      cocolvis stats ~/cocolvis --plot tail.png
      cocolvis stats ~/cocolvis --class cat,couch
    """
    from cocolvis.inspection import stats as module
    from cocolvis.inspection.companions import describe_class
    from cocolvis.inspection.listing import class_ids
    from cocolvis.storage.dataset import Dataset

    if coco and figures is None:
        raise click.UsageError("--coco and --lvis are only used with --figures")
    dataset = Dataset.open(dir)
    classes = class_ids(dataset.vocabulary, chosen)
    with progress("stats") as show:
        counts = module.read_counts(dataset, show)
    found = module.summarise(dataset.vocabulary, counts)
    described = [describe_class(dataset.vocabulary, counts, c) for c in classes]
    if as_json:
        print_json(found | ({"selected": described} if described else {}))
    else:
        _print(found, described, top)
    if csv is not None:
        module.write_classes(csv, found, dataset.vocabulary)
        say(f"csv: {csv}", err=True)
    if plot is not None:
        from cocolvis.figures.long_tail import plot as draw

        draw(found, plot)
        say(f"plot: {plot}", err=True)
    if figures is not None:
        _write_figures(figures, dataset, counts, found, coco, lvis)


def _print(found: dict[str, Any], described: list[dict[str, Any]], top: int) -> None:
    """Print the tables of the chosen classes, or those of all splits if no class was chosen."""
    for one in described:
        tables.print_class(one, top)
    if not described:
        for name, split in found["splits"].items():
            tables.print_split(name, split, top)
        tables.print_instances(found)


def _write_figures(
    folder: Path,
    dataset: "Dataset",
    counts: "dict[str, Counts]",
    found: dict[str, Any],
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
) -> None:
    """Write the figures and say which were left out."""
    from cocolvis.figures.collection import write_figures
    from cocolvis.sources.inputs import Sources
    from cocolvis.vocabulary import coco_lvis

    with progress("figures", "classes") as show:
        sources = Sources(coco, lvis, coco_lvis(), show.line, show.phase) if coco else None
        left_out = write_figures(folder, dataset, counts, found, sources, show)
    say(f"figures: {folder}", err=True)
    for sentence in left_out:
        say(sentence, err=True)
