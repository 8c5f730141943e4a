"""Lists the images of a data set, and those that show certain classes, without decoding a mask."""

import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.text import nfc
from cocolvis.vocabulary import Vocabulary

_NUMBER = re.compile("[0-9]{1,18}")


class Listed(NamedTuple):
    """An image of a data set; ``path`` locates its picture below the picture folder."""

    image_id: int
    split: str
    path: str


def images(
    dataset: Dataset, split: str | None = None, classes: Sequence[int] = (), *, any_of: bool = False
) -> Iterator[Listed]:
    """Yield the images of one split, or of all splits, in order.

    Given ``classes``, yield the images that show all of them, or at least one of them with ``any_of``. Only one shard's tables
    are in memory at a time. Raises DataError if the data set has no such split.
    """
    for opened in [dataset.split(name) for name in ([split] if split is not None else dataset.splits)]:
        for shard in opened.shards():
            ids = shard.image_ids()
            for row in _showing(shard, classes, any_of).tolist():
                yield Listed(int(ids[row]), opened.name, shard.image_path(row))


def class_ids(vocabulary: Vocabulary, texts: Sequence[str]) -> list[int]:
    """The ids of classes that are given by name or number; each text is one class or a comma-separated list of classes.

    A text that is the name of a class as a whole means that class, even if it is a number or contains a comma. Raises DataError
    with similar names if a class does not exist.
    """
    named = {nfc(c.name): c.id for c in vocabulary}

    def known(text: str) -> int | None:
        number = int(text) if _NUMBER.fullmatch(text) else 0
        return named.get(nfc(text)) or (number if 1 <= number <= len(vocabulary) else None)

    def wanted(text: str) -> int:
        return known(text) or (vocabulary[int(text)].id if _NUMBER.fullmatch(text) else vocabulary.id_of(text))

    def listed(text: str) -> list[int]:
        whole = known(text)
        return [whole] if whole else [wanted(part.strip()) for part in text.split(",")]

    return list(dict.fromkeys(chain.from_iterable(map(listed, texts))))


def _showing(shard: ShardReader, classes: Sequence[int], any_of: bool) -> np.ndarray:
    """The rows of the images in a shard that show the classes, ascending."""
    if not classes:
        return np.arange(len(shard))
    offsets, present, _ = shard.present()
    ends = offsets.astype(np.int64)[1:]
    shown = np.zeros((len(classes), len(shard)), bool)
    for number, wanted in enumerate(classes):
        shown[number, np.searchsorted(ends, np.flatnonzero(present == wanted), "right")] = True
    return np.flatnonzero(shown.any(axis=0) if any_of else shown.all(axis=0))
