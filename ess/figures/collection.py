"""All figures of a run in one folder, each as PNG and SVG with its numbers as CSV, and an index that lists them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cocolvis.errors import DataError
from cocolvis.figures import shared_classes
from cocolvis.figures.collection import no_shared_classes
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.evaluation.evaluate import image_indices
from ess.figures import (
    class_lengths,
    clusters,
    confused_pairs,
    dendrogram,
    miou_curves,
    pixel_embeddings,
    prediction_grid,
    rgb_embeddings,
)
from ess.figures.analysis import Analysis, LeftOut, Options
from ess.figures.figure import Figure, write_index


def shared(analysis: Analysis, folder: Path) -> Figure:
    """Write shared_classes of ``cocolvis stats --figures``; it needs the annotation files that the data set was built from."""
    sources = analysis.options.sources
    reason = no_shared_classes(analysis.data, sources)
    if reason is not None or sources is None:
        raise LeftOut(reason or "it needs the annotation files")
    stem = folder / "shared_classes"
    shared_classes.write(analysis.data, analysis.counts, sources, stem)
    caption = (
        "For each of the classes that both sources have, the image with the most pixels of it among those where only COCO-Stuff"
        " annotates it, and among those where only LVIS does. The rest of each image is darkened."
    )
    title = "The classes that LVIS and COCO-Stuff share, as stuff and as things"
    return Figure(stem.name, title, caption, *(stem.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")))


MAKERS: dict[str, Callable[[Analysis, Path], Figure]] = {
    module.NAME: module.make
    for module in (
        prediction_grid,
        rgb_embeddings,
        pixel_embeddings,
        miou_curves,
        confused_pairs,
        class_lengths,
        dendrogram,
        clusters,
    )
} | {"shared_classes": shared}
"""The figures by name, in the order of a report."""


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

    Figures that show pictures, frequencies or scores need the data set. ``left_out`` is called at the end with a sentence for
    each reason why figures were not made. ``step`` is called with a few words when the work changes, and ``progress`` with the
    numbers of images predicted and to predict.

    Raises DataError if the run or the data set cannot be read, if they have different classes, or if a file cannot be written.
    """
    options = options or Options()
    if unknown := [name for name in options.only if name not in MAKERS]:
        raise DataError(f"there is no figure {unknown[0]!r}; expected {', '.join(MAKERS)}")
    analysis = Analysis(run, dataset, options, step, progress)
    if dataset is not None:
        image_indices(dataset, options.split)
    figures, reasons = list[Figure](), dict[str, list[str]]()
    for name in options.only or MAKERS:
        step(f"drawing {name}")
        try:
            figures.append(MAKERS[name](analysis, out))
        except LeftOut as reason:
            reasons.setdefault(str(reason), []).append(name)
    sentences = [_sentence(names, reason) for reason, names in reasons.items()]
    write_index(out, figures, sentences, _about(analysis, dataset))
    for sentence in sentences:
        left_out(sentence)
    return figures


def _sentence(names: list[str], reason: str) -> str:
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    return f"{listed} {'was' if len(names) == 1 else 'were'} left out, because {reason}"


def _about(analysis: Analysis, dataset: Dataset | None) -> dict[str, Any]:
    """The run, its checkpoint and the data set, for the index."""
    checkpoint = analysis.predictor.checkpoint
    step = None if checkpoint is None else checkpoint.step
    return {"run": str(analysis.run.folder), "step": step, "data": None if dataset is None else str(dataset.folder)}
