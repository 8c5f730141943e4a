"""All figures of a data set in one folder, each as PNG and SVG with its numbers as CSV."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cocolvis.figures import long_tail, shared_classes, word_cloud
from cocolvis.figures.files import save_both, write_table
from cocolvis.inspection.stats import Counts
from cocolvis.progress import Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset

COLUMNS = ("split", "rank", "class", "name", "group", "images")
"""The columns of images_per_class.csv."""


def write_figures(
    folder: Path,
    dataset: Dataset,
    counts: Mapping[str, Counts],
    stats: Mapping[str, Any],
    sources: Sources | None,
    progress: Progress = ignore,
) -> list[str]:
    """Write images_per_class, word_cloud and shared_classes; return one sentence for each figure that was left out.

    ``counts`` and ``stats`` are those of ``read_counts`` and ``summarise``. The word cloud shows the first split in which a
    class occurs. ``sources`` are the annotation files that the data set was built from; without them, shared_classes is left
    out. ``progress`` counts the classes of that figure.

    Raises DataError if a file cannot be written, or if the data set was built from other annotation files.
    """
    splits = {name: split["classes"] for name, split in stats["splits"].items() if split["classes"]}
    if not splits:
        return ["all figures were left out, because no class occurs in any split"]
    left_out = []
    write_table(folder / "images_per_class.csv", COLUMNS, _images_per_class(splits))
    save_both(long_tail.draw(stats, ("images",)), folder / "images_per_class")
    name, classes = next(iter(splits.items()))
    try:
        if any(row["pixels"] for row in classes):
            word_cloud.write(classes, folder / "word_cloud")
        else:
            found = f"the shards of split {name} record no pixel of any class; `cocolvis verify` checks them"
            left_out.append(f"word_cloud was left out, because {found}")
    except ImportError:
        left_out.append("word_cloud was left out, because wordcloud is not installed: pip install 'cocolvis-ess[figures]'")
    reason = no_shared_classes(dataset, sources)
    if reason is None and sources is not None:
        shared_classes.write(dataset, counts, sources, folder / "shared_classes", progress)
    else:
        left_out.append(f"shared_classes was left out, because {reason}")
    return left_out


def _images_per_class(splits: Mapping[str, list[dict[str, Any]]]) -> Iterator[list[Any]]:
    for name, classes in splits.items():
        for rank, row in enumerate(classes, 1):
            yield [name, rank, row["class"], row["name"], row["group"], row["images"]]


def no_shared_classes(dataset: Dataset, sources: Sources | None) -> str | None:
    """Why the images of shared classes cannot be found; None if they can."""
    if not dataset.is_coco_lvis:
        return "only COCO+LVIS has classes of two sources"
    if sources is None:
        return "it needs --coco and --lvis, the annotation files that the data set was built from"
    if dataset.index["options"]["images"] == "none" and dataset.image_root is None:
        return "the data set was built with --images none"
    return None
