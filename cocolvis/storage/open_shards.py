"""The shards that this process keeps open: the most recently used ones of all its splits together."""

import resource
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from cocolvis.storage.shard_reader import ShardReader

_MOST_READERS = 1024
"""The most readers that stay in memory with their tables, open or closed; several times the number of shards of COCO+LVIS."""

_MOST_FILES, _FEWEST_FILES = 256, 4
"""Bounds on the files that are open at the same time."""


class OpenShards:
    """Shard readers by owner and shard number; the least recently used lose their open file first, and their tables later.

    Closing a shard is safe while another thread reads it: the file stays open until the last reference disappears. There are no
    locks, because a forked process could inherit a locked one; every single operation on the tables is atomic in Python.
    """

    def __init__(self) -> None:
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._with_file: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._owners = count()

    def __len__(self) -> int:
        """The number of open files."""
        return len(self._with_file)

    def owner(self, split: object, shards: int) -> int:
        """Register an owner of ``shards`` shards and return its number; its shards are released when ``split`` is deleted."""
        number = next(self._owners)
        weakref.finalize(split, self._release, number, shards).atexit = False
        return number

    def get(self, owner: int, number: int, open_shard: Callable[[int], ShardReader]) -> ShardReader:
        """Return shard ``number`` of an owner; if it is not known, ``open_shard(number)`` opens it."""
        key = owner, number
        reader = self._readers.get(key)
        if reader is None or key not in self._with_file:
            self._make_room()
            reader = reader or open_shard(number)
            self._readers[key] = self._with_file[key] = reader
        with suppress(KeyError):  # another thread may have released it
            self._readers.move_to_end(key)
            self._with_file.move_to_end(key)
        return reader

    def _make_room(self) -> None:
        """Make room for one more shard."""
        with suppress(KeyError):
            while len(self._readers) >= _MOST_READERS:
                self._with_file.pop(self._readers.popitem(last=False)[0], None)
            while len(self._with_file) >= most_open():
                self._with_file.popitem(last=False)[1].close()

    def _release(self, owner: int, shards: int) -> None:
        for number in range(shards):
            self._readers.pop((owner, number), None)
            self._with_file.pop((owner, number), None)


def most_open() -> int:
    """How many shards may be open: a quarter of the files that this process may open, within bounds."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_FILES if limit == resource.RLIM_INFINITY else max(_FEWEST_FILES, min(_MOST_FILES, limit // 4))


OPEN_SHARDS = OpenShards()
