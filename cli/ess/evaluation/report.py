"""``ess report``: everything about a run on one page."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cli.commands import command
from cli.display import progress, say
from cli.ess.evaluation.predicting import predicted, split_options
from cli.options import image_root_option, output_option, path_argument, source_options
from cli.run_options import run_argument
from cocolvis.errors import DataError
from cocolvis.text import human_size

if TYPE_CHECKING:
    from cocolvis.sources.inputs import Sources
    from cocolvis.storage.dataset import Dataset
    from ess.checkpoint import Run
    from ess.figures.analysis import Options
    from ess.figures.figure import Figure

_PACKAGES = {"jinja2": "jinja2", "sklearn": "scikit-learn"}
"""Modules that the report imports -> the packages of the extra "figures" that contain them."""


@command(interrupted="the report was not written; run the same command to start over")
@run_argument
@path_argument("data")
@output_option("--out", required=True, help="HTML file to write.")
@click.option("--pictures", default=6, show_default=True, type=click.IntRange(0, 100), help="Worst and best images to show.")
@click.option("--no-figures", is_flag=True, help="Leave out the figures of `ess analyze`.")
@source_options(required=False)
@split_options
@image_root_option
def report(
    run: Path,
    data: Path,
    out: Path,
    pictures: int,
    no_figures: bool,
    coco: tuple[Path, ...],
    lvis: tuple[Path, ...],
    image_root: Path | None,
    split: str,
    **how: Any,
) -> None:
    """Write a report of a run as one HTML page: scores, training, classes, worst and best images, figures, settings.

    The page contains everything that it shows, and opens without a network. Needs `pip install 'cocolvis-ess[figures]'`.

    \b
    Example:
      ess report run ~/cocolvis --out report.html
    """
    if no_figures and coco:
        raise click.UsageError("--no-figures is used without --coco and --lvis")
    _check_packages(no_figures)
    from cocolvis.storage.dataset import Dataset
    from ess.checkpoint import Run
    from ess.figures.analysis import Options
    from ess.reporting.report import write_report
    from ess.reporting.tally import tally

    dataset = Dataset.open(data, image_root)
    opened = Run.open(run)
    with predicted(run, dataset, "report", split=split, **how) as found:
        tallied = tally(found.images, len(dataset.vocabulary), pictures)
    shared = {name: how[name] for name in ("limit", "skip_damaged", "checkpoint", "device")}
    with TemporaryDirectory() as folder:
        options = Options(
            split=split, predictor=found.predictor, counts=tallied.confusion, sources=_sources(coco, lvis), **shared
        )
        figures, left_out = ([], []) if no_figures else _figures(opened, dataset, Path(folder), options)
        shown: dict[str, Any] = {"figures": figures, "left_out": left_out, "damaged": found.damaged}
        size = write_report(out, opened, found.predictor, dataset, split, tallied, **shown)
    say(f"{out}: {human_size(size)}, opens in any browser")


def _check_packages(no_figures: bool) -> None:
    """Raise DataError before anything is predicted if a package is missing."""
    for module, package in _PACKAGES.items():
        if find_spec(module) is None and (module == "jinja2" or not no_figures):
            raise DataError(f"{package} is not installed: pip install 'cocolvis-ess[figures]'")


def _sources(coco: tuple[Path, ...], lvis: tuple[Path, ...]) -> "Sources | None":
    from cocolvis.sources.inputs import Sources
    from cocolvis.vocabulary import coco_lvis

    return Sources(coco, lvis, coco_lvis()) if coco else None


def _figures(run: "Run", dataset: "Dataset", folder: Path, options: "Options") -> "tuple[list[Figure], list[str]]":
    """The figures of ``ess analyze``, and a sentence for each that cannot be made."""
    from ess.figures.collection import collect

    left_out: list[str] = []
    with progress("figures") as show:
        figures = collect(
            run, dataset, folder, options, left_out=left_out.append, step=lambda what: show.phase(what, 0, 0), progress=show
        )
    return figures, left_out
