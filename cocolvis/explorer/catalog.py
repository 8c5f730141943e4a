"""The inverted index of a data set: from classes to the images that show them.

Images are numbered 0..N-1 over all shards that can be read, in the order of dataset.json. NumPy is not imported here: the first
page needs only the sums of each class, and importing NumPy would take a third of the time until it appears.
"""

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from cocolvis.explorer.cache import Tables

if TYPE_CHECKING:
    import numpy as np


class Place(NamedTuple):
    """The place of an image in the data set: its split and its number in it."""

    split: str
    row: int


class Shard(NamedTuple):
    """A readable shard: its split, the number in it of its first image, that image's number here, and how many it holds."""

    split: str
    row: int
    first: int
    images: int


class Catalog:
    """Which images show which classes. ``unreadable`` has a line for each shard that could not be read."""

    def __init__(self, tables: Tables):
        self._tables = tables
        facts = tables.facts
        self.shards = [Shard(*shard) for shard in facts["shards"]]
        self.splits: dict[str, int] = facts["splits"]
        self.colours: list[str] = facts["colours"]
        self.unreadable: list[str] = facts["unreadable"]
        self._firsts = [shard.first for shard in self.shards]

    def __len__(self) -> int:
        """The number of images N."""
        return sum(self.splits.values())

    def images(self, split: str | None = None) -> list[int]:
        """The number of images that show each class, by class id; in all splits if ``split`` is None."""
        return self._sums("images", split)

    def pixels(self, split: str | None = None) -> list[int]:
        """The pixels of each class, by class id; in all splits if ``split`` is None."""
        return self._sums("pixels", split)

    def instances(self, split: str | None = None) -> list[int] | None:
        """The instances of each class, by class id; in all splits if ``split`` is None. None if they are not recorded."""
        return None if self._tables.facts["instances"] is None else self._sums("instances", split)

    def _sums(self, what: str, split: str | None) -> list[int]:
        tables: dict[str, list[int]] = self._tables.facts[what]
        return tables[split] if split is not None else [sum(column) for column in zip(*tables.values(), strict=True)]

    def ids(self) -> "np.ndarray":
        """(N,) int64 image ids."""
        return self._tables["ids"]

    def sizes(self) -> "np.ndarray":
        """(N, 2) uint32 heights and widths."""
        return self._tables["sizes"]

    def showing(self, class_id: int) -> "tuple[np.ndarray, np.ndarray]":
        """The images that show a class, (n,) uint32 ascending, and its pixels in each of them, (n,) uint32."""
        first, last = self._tables["starts"][class_id : class_id + 2].tolist()
        return self._tables["rows"][first:last], self._tables["pixels"][first:last]

    def place(self, image: int) -> Place:
        """The place of image number ``image``, 0 <= image < N."""
        shard = self.shards[bisect_right(self._firsts, image) - 1]
        return Place(shard.split, shard.row + image - shard.first)

    def members(self, split: str) -> list[range]:
        """The numbers of the images of a split, one range for each of its shards."""
        return [range(shard.first, shard.first + shard.images) for shard in self.shards if shard.split == split]
