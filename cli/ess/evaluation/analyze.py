"""``ess analyze``: the figures of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands import command
from cli.display import print_json, progress, say
from cli.options import PATH, image_root_option, json_option, path_option, source_options
from cli.run_options import checkpoint_option, device_option, run_argument

if TYPE_CHECKING:
    from ess.figures.analysis import Options
    from ess.figures.figure import Figure

_KEPT = "figures that were written are kept; the same command writes all of them again"


@command(interrupted=_KEPT)
@run_argument
@click.argument("data", type=PATH, required=False)
@path_option("--out", required=True, help="Folder of the figures: PNG, SVG and CSV of each, and figures.json.")
@click.option("--only", multiple=True, metavar="NAME", help="Write only this figure. May be repeated.")
@path_option("--also", multiple=True, help="Another run, for the curves of mIoU. May be repeated.")
@path_option("--baseline", help="The run whose predictions are drawn next to those of RUN.")
@click.option("--split", default="val", show_default=True, help="Split of the pictures and scores.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images, for the scores.")
@click.option("--image", "images", type=int, multiple=True, metavar="ID", help="Image to show. May be repeated.")
@click.option("--clusters", type=click.IntRange(min=1), default=70, show_default=True, help="Clusters of class embeddings.")
@click.option("--method", type=click.Choice(["tsne", "pca"]), default="tsne", show_default=True, help="Map to two dimensions.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of clusters and maps.")
@click.option("--skip-damaged", is_flag=True, help="Leave out damaged images from the scores.")
@source_options(required=False)
@checkpoint_option
@device_option
@image_root_option
@json_option
def analyze(
    run: Path,
    data: Path | None,
    out: Path,
    image_root: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Draw the figures of a run: class and pixel embeddings, predictions, confusions, and mIoU over the long tail.

    Figures that show pictures, frequencies or scores need DATA. Each one is written as PNG and SVG, with its numbers as CSV.

    \b
    Example:
      ess analyze run ~/cocolvis --out figures --baseline dense-run
    """
    from cocolvis.storage.dataset import Dataset
    from ess.checkpoint import Run
    from ess.figures.collection import collect

    left_out: list[str] = []
    with progress("analyze") as show:
        figures = collect(
            Run.open(run),
            None if data is None else Dataset.open(data, image_root),
            out,
            _options(show, **how),
            left_out=left_out.append,
            step=lambda what: show.phase(what, 0, 0),
            progress=show,
        )
    if as_json:
        print_json({"figures": [figure.to_json() for figure in figures], "left_out": left_out})
        return
    _print_figures(figures, left_out)


def _options(show: Any, coco: tuple[Path, ...], lvis: tuple[Path, ...], also: tuple[Path, ...], **how: Any) -> "Options":
    from cocolvis.sources.inputs import Sources
    from cocolvis.vocabulary import coco_lvis
    from ess.checkpoint import Run
    from ess.figures.analysis import Options

    baseline = how.pop("baseline")
    sources = Sources(coco, lvis, coco_lvis(), show.line, show.phase) if coco else None
    opened = None if baseline is None else Run.open(baseline)
    return Options(sources=sources, also=[Run.open(folder) for folder in also], baseline=opened, **how)


def _print_figures(figures: "list[Figure]", left_out: list[str]) -> None:
    for figure in figures:
        say(f"{figure.png}: {figure.title}")
    for sentence in left_out:
        say(sentence, err=True)
