"""Masks as plain files, one 16-bit PNG an image."""

from collections.abc import Callable
from pathlib import Path

from cocolvis.dataset import Dataset
from cocolvis.images import write_png


def export_png(dataset: Dataset, out: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> int:
    """Write each mask to ``out/{split}/{image_id:012d}.png`` (16-bit grayscale, the value is the class); the number written.

    A DataError where a file cannot be written; each file is whole or absent.
    """
    done, total = 0, sum(dataset.splits.values())
    for name in dataset.splits:
        split = dataset.split(name)
        for row, image_id in enumerate(split.image_ids().tolist()):
            write_png(out / name / f"{image_id:012d}.png", split.mask(row))
            done += 1
            progress(done, total)
    return done
