"""Predictions for a split of a data set without a model: its masks, changed by a function."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cocolvis.disk.files import write_json
from cocolvis.masks.runlength import Runs
from cocolvis.storage import digest
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.index import VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter

NONE = np.zeros(0, np.uint16)


def write_predictions(
    dataset: Dataset, out: Path, change: Callable[[int, np.ndarray], np.ndarray], split: str = "val", **made_by
) -> Path:
    """Write a folder as ``ess predict --format shards`` does; ``change(image_id, mask)`` is the prediction."""
    path, images = out / "shards" / f"{split}-00000.h5", dataset.split(split)
    with ShardWriter(path, {"split": split, "images": "none", "vocabulary": dataset.vocabulary.digest}) as writer:
        for sample in map(images.__getitem__, range(len(images))):
            runs = Runs.of(change(sample.image_id, sample.mask.copy()))
            shown = {"image_id": sample.image_id, "path": sample.path, "content": b"", "neg": NONE, "not_exhaustive": NONE}
            writer.add(Sample(**shown, runs=runs))
    reader = ShardReader(path)
    leaves = [row.tobytes() for row in reader.digests()]
    index = {
        "format": "cocolvis",
        "version": VERSION,
        "digest": digest.of_dataset({split: leaves}, dataset.vocabulary.digest),
        "splits": {split: {"images": len(leaves), "shards": 1}},
        "shards": [{"file": f"shards/{path.name}", "split": split, "images": len(leaves), "bytes": 0, "checksum": "0" * 64}],
        "options": {"images": "none", "limit": None, "dataset": "predictions"},
        "inputs": {},
        "report": {"counts": {}, "faults": []},
        "predictions": {"of": dataset.index["digest"], "run": "run", "step": 7} | made_by,
        "vocabulary": dataset.vocabulary.to_json(),
    }
    write_json(out / "dataset.json", index)
    return out


def shifted(image_id: int, mask: np.ndarray) -> np.ndarray:
    """A mask moved by a few pixels, with one class taken for the next one."""
    moved = np.roll(mask, 3 + image_id % 3, axis=1)
    classes = np.unique(moved[moved > 0])
    if classes.size > 1:
        moved[moved == classes[0]] = classes[1]
    moved[moved == 0] = classes[-1] if classes.size else 1
    return moved
