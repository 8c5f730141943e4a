"""A data set of very many images, written as shards without building it: a class fills stripes, and few pictures are repeated.

A class occurs in an image with a probability that falls as in the long tail of COCO+LVIS.
"""

from pathlib import Path

import numpy as np
from coco_like import HEIGHT, WIDTH, picture

from cocolvis.disk.files import write_json
from cocolvis.masks.runlength import Runs
from cocolvis.storage import digest
from cocolvis.storage.index import VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter
from cocolvis.vocabulary import coco_lvis

SHARD = 500
DISTINCT = 100
CLASSES_AN_IMAGE = 9


def write_dataset(folder: Path, images: int) -> None:
    """Write a data set of ``images`` images, whose pictures are ``DISTINCT`` files in the folder ``pictures``."""
    rng, vocabulary = np.random.default_rng(0), coco_lvis()
    (folder / "pictures").mkdir(parents=True)
    for number in range(DISTINCT):
        (folder / "pictures" / f"{number}.jpg").write_bytes(picture(rng))
    share = 1 / (np.arange(len(vocabulary)) + 8) ** 1.1
    order, share = rng.permutation(len(vocabulary)) + 1, share / share.sum()
    entries, leaves = [], []
    for first in range(0, images, SHARD):
        path = folder / "shards" / f"train-{first // SHARD:05d}.h5"
        count = min(SHARD, images - first)
        with ShardWriter(path, {"split": "train", "images": "path", "vocabulary": vocabulary.digest}) as writer:
            for image_id in range(first + 1, first + count + 1):
                writer.add(_sample(rng, image_id, order, share))
        reader = ShardReader(path)
        leaves += [row.tobytes() for row in reader.digests()]
        reader.close()
        entries.append({"file": f"shards/{path.name}", "split": "train", "images": count, "bytes": 0, "checksum": "0" * 64})
    index = {
        "format": "cocolvis",
        "version": VERSION,
        "digest": digest.of_dataset({"train": leaves}, vocabulary.digest),
        "splits": {"train": {"images": images, "shards": len(entries)}},
        "shards": entries,
        "options": {"images": "path", "limit": None, "dataset": "generated", "image_root": str(folder / "pictures")},
        "inputs": {},
        "report": {"counts": {}, "faults": []},
        "vocabulary": vocabulary.to_json(),
    }
    write_json(folder / "dataset.json", index)


def _sample(rng: np.random.Generator, image_id: int, order: np.ndarray, share: np.ndarray) -> Sample:
    """An image whose classes fill stripes of random height."""
    count = max(1, rng.poisson(CLASSES_AN_IMAGE))
    classes = np.unique(order[np.searchsorted(np.cumsum(share), rng.random(count)).clip(0, len(order) - 1)]).astype(np.uint16)
    cuts = np.sort(rng.integers(1, HEIGHT, len(classes) - 1))
    rows = np.diff(np.concatenate([[0], cuts, [HEIGHT]]))
    runs = Runs(np.repeat(classes, rows), np.full(HEIGHT, WIDTH, np.uint16), HEIGHT, WIDTH)
    none = np.zeros(0, np.uint16)
    return Sample(image_id=image_id, path=f"{image_id % DISTINCT}.jpg", runs=runs, content=b"", neg=none, not_exhaustive=none)
