"""Which images a data set holds, and which of them show some classes: read from what shards count, shard by shard."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shards import ShardReader
from cocolvis.text import nfc
from cocolvis.vocabulary import Vocabulary

_NUMBER = re.compile("[0-9]{1,18}")


class Listed(NamedTuple):
    """An image of a data set; ``path`` leads to its picture from the folder of the pictures."""

    image_id: int
    split: str
    path: str


def images(
    dataset: Dataset, split: str | None = None, classes: Sequence[int] = (), *, any_of: bool = False
) -> Iterator[Listed]:
    """The images of one split, or of all, in order: those that show all of the ``classes``, or with ``any_of`` one of them.

    Holds one shard's tables at a time and decodes no mask. A DataError where the data set has no such split.
    """
    for opened in [dataset.split(name) for name in ([split] if split is not None else dataset.splits)]:
        for shard in opened.shards():
            ids = shard.image_ids()
            for row in _showing(shard, classes, any_of).tolist():
                yield Listed(int(ids[row]), opened.name, shard.image_path(row))


def class_ids(vocabulary: Vocabulary, texts: Sequence[str]) -> list[int]:
    """The ids of classes that are named, or given by number: each text is one class, or several with commas between them.

    A name that holds a comma, or is a number, is found as it is. A DataError with the nearest names where there is none.
    """
    named = {nfc(c.name): c.id for c in vocabulary}

    def known(text: str) -> int | None:
        number = int(text) if _NUMBER.fullmatch(text) else 0
        return named.get(nfc(text)) or (number if 1 <= number <= len(vocabulary) else None)

    def wanted(text: str) -> int:
        return known(text) or (vocabulary[int(text)].id if _NUMBER.fullmatch(text) else vocabulary.id_of(text))

    found = ([known(text)] if known(text) else [wanted(part.strip()) for part in text.split(",")] for text in texts)
    return list(dict.fromkeys(chain.from_iterable(found)))


def _showing(shard: ShardReader, classes: Sequence[int], any_of: bool) -> np.ndarray:
    """The rows of a shard whose images show the classes, ascending."""
    if not classes:
        return np.arange(len(shard))
    offsets, present, _ = shard.present()
    ends = offsets.astype(np.int64)[1:]
    shown = np.zeros((len(classes), len(shard)), bool)
    for number, wanted in enumerate(classes):
        shown[number, np.searchsorted(ends, np.flatnonzero(present == wanted), "right")] = True
    return np.flatnonzero(shown.any(axis=0) if any_of else shown.all(axis=0))
