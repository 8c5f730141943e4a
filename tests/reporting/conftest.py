"""A report over the generated sample, with figures that stand in for those of `ess analyze`."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from cocolvis.storage.dataset import Dataset


class Reported(NamedTuple):
    """A report, and what it was made of."""

    path: Path
    tallied: object
    dataset: Dataset


@pytest.fixture(scope="session")
def made_figures(tmp_path_factory) -> list:
    """Two figures, one of them with numbers that are too large for the page, and names that are markup."""
    from matplotlib.figure import Figure as Drawing

    from ess.figures.figure import write_figure

    folder, made = tmp_path_factory.mktemp("figures"), []
    for name, title, rows in (("curve", "A <b>curve</b>", 5), ("cloud", "A cloud", 40_000)):
        drawing = Drawing(figsize=(12, 4))
        drawing.subplots().plot(np.arange(5), label=title)
        caption = f"{title} shows nothing & <script>alert(1)</script> says so."
        table = ([number, number / 7] for number in range(rows))
        made.append(write_figure(folder, name, title, caption, drawing, ("x", "y"), table))
    return made


@pytest.fixture(scope="session")
def reported(dataset, run, made_figures, tmp_path_factory) -> Reported:
    """A report of a small run on all 1284 classes."""
    from ess.evaluation.evaluate import image_indices, predictions
    from ess.inference.predictor import Predictor
    from ess.reporting.report import write_report
    from ess.reporting.tally import tally

    predictor, path = Predictor.from_run(run.folder, "cpu"), tmp_path_factory.mktemp("report") / "report.html"
    images = predictions(predictor, dataset, indices=image_indices(dataset, "val"))
    tallied = tally(images, len(dataset.vocabulary), 2)
    left_out = ["a figure was left out, because it is a test"]
    write_report(path, run, predictor, dataset, "val", tallied, figures=made_figures, left_out=left_out)
    return Reported(path, tallied, dataset)
