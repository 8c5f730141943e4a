"""Predictions for a split of a data set without a model: its masks, changed by a function."""

from collections.abc import Callable, Iterable
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
from cocolvis.vocabulary import ClassInfo, Vocabulary

NONE = np.zeros(0, np.uint16)


def write_predictions(
    dataset: Dataset,
    out: Path,
    change: Callable[[int, np.ndarray], np.ndarray],
    split: str = "val",
    added: tuple[str, ...] = (),
    **made_by,
) -> Path:
    """Write a folder as ``ess predict --format shards`` does; ``change(image_id, mask)`` is the prediction.

    ``added`` are the names of classes that were added to the run.
    """
    images, known = dataset.split(split), dataset.vocabulary
    vocabulary = Vocabulary([*known, *new_classes(added, len(known))], known.ignored)
    samples = map(images.__getitem__, range(len(images)))
    predicted = ((sample.image_id, sample.path, change(sample.image_id, sample.mask.copy())) for sample in samples)
    made = {"of": dataset.index["digest"], "run": "run", "step": 7} | made_by
    return write_data(out, split, predicted, vocabulary, predictions=made)


def new_classes(names: Iterable[str], after: int = 0) -> list[ClassInfo]:
    """Classes with these names, numbered ``after`` + 1, ..."""
    return [ClassInfo(number, name, "thing", None, None, {}) for number, name in enumerate(names, after + 1)]


def write_data(
    out: Path, split: str, images: Iterable[tuple[int, str, np.ndarray]], vocabulary: Vocabulary, **more: object
) -> Path:
    """Write a data set with one split in one shard, of (id, path, mask); ``more`` is added to its dataset.json."""
    path = out / "shards" / f"{split}-00000.h5"
    with ShardWriter(path, {"split": split, "images": "none", "vocabulary": vocabulary.digest}) as writer:
        for image_id, name, mask in images:
            shown = {"image_id": image_id, "path": name, "content": b"", "neg": NONE, "not_exhaustive": NONE}
            writer.add(Sample(**shown, runs=Runs.of(mask)))
    reader = ShardReader(path)
    leaves = [row.tobytes() for row in reader.digests()]
    size, file = path.stat().st_size, f"shards/{path.name}"
    index = {
        "format": "cocolvis",
        "version": VERSION,
        "digest": digest.of_dataset({split: leaves}, vocabulary.digest),
        "splits": {split: {"images": len(leaves), "shards": 1}},
        "shards": [{"file": file, "split": split, "images": len(leaves), "bytes": size, "checksum": "0" * 64}],
        "options": {"images": "none", "limit": None, "dataset": "made"},
        "inputs": {},
        "report": {"counts": {}, "faults": []},
        "vocabulary": vocabulary.to_json(),
    }
    write_json(out / "dataset.json", index | more)
    return out


def shifted(image_id: int, mask: np.ndarray) -> np.ndarray:
    """A mask moved by a few pixels, with one class taken for the next one."""
    moved = np.roll(mask, 3 + image_id % 3, axis=1)
    classes = np.unique(moved[moved > 0])
    if classes.size > 1:
        moved[moved == classes[0]] = classes[1]
    moved[moved == 0] = classes[-1] if classes.size else 1
    return moved
