"""All figures of a run in one folder, each as PNG and SVG with its numbers as CSV, and an index that lists them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.evaluation.metrics import Confusion
from ess.figures.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the figures show.

    ``only`` are the names of the figures to write, all of them by default. ``also`` are further runs for the curves of mIoU.
    ``baseline`` is the run whose predictions are drawn next to those of the run. ``sources`` are the annotation files that the
    data set was built from. Scores are those of ``split``, of its first ``limit`` images if that is given. ``counts`` are the
    pixel counts of the run on these images with a matrix, if they were made before; otherwise they are made if needed.
    ``images`` are the ids of the images that are shown; by default they are chosen. ``clusters`` is the number of clusters of
    class embeddings, and ``method`` one of METHODS for showing embeddings in two dimensions; both depend on ``seed``.
    """

    only: Sequence[str] = ()
    also: Sequence[Run] = ()
    baseline: Run | None = None
    sources: Sources | None = None
    checkpoint: str = "newest"
    device: str = "auto"
    split: str = "val"
    limit: int | None = None
    counts: Confusion | None = None
    images: Sequence[int] = ()
    clusters: int = 70
    method: str = "tsne"
    seed: int = 0
    skip_damaged: bool = False


def collect(
    run: Run,
    dataset: Dataset | None,
    out: Path,
    options: Options | None = None,
    *,
    left_out: Announce = ignore,
    step: Callable[[str], None] = ignore,
    progress: Progress = ignore,
) -> list[Figure]:
    """Write the figures of a run to ``out`` and return them in the order of a report; figures.json there lists them too.

    Figures that show pictures, frequencies or scores need the data set. ``left_out`` is called with a sentence for each figure
    that cannot be made, ``step`` with a few words whenever the work changes, and ``progress`` with the images predicted.

    Raises DataError if a package of the extra "figures" is not installed, if the data set has another vocabulary than the run,
    or if a file cannot be written.
    """
    raise NotImplementedError
