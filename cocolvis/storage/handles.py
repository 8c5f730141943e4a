"""The shards that a process keeps open: those used last, however many splits they belong to."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from cocolvis.storage.shards import ShardReader

try:
    import resource
except ImportError:  # Windows
    resource = None

_KNOWN = 1024
"""Shards whose tables are kept: several times those of COCO+LVIS, and a bound on memory."""

_MOST = 256

_FEWEST = 4


class OpenShards:
    """Readers by owner and number. Those not used for longest lose their file, and then their tables.

    No thread loses a file that it reads: it closes with the last reference. There are no locks, which a forked process could
    inherit locked; each operation on the tables is one that Python does as a whole.
    """

    def __init__(self):
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._with_file: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._owners = count()

    def __len__(self) -> int:
        """The number of open files."""
        return len(self._with_file)

    def owner(self, split: object, shards: int) -> int:
        """A new owner of up to so many shards, which are let go when ``split`` is no longer used."""
        number = next(self._owners)
        weakref.finalize(split, self._let_go, number, shards).atexit = False
        return number

    def get(self, owner: int, number: int, opened: Callable[[int], ShardReader]) -> ShardReader:
        """The owner's shard of this number, opened by ``opened(number)`` where it is not known."""
        key = owner, number
        reader = self._readers.get(key)
        if reader is None or key not in self._with_file:
            self._make_room()
            reader = reader or opened(number)
            self._readers[key] = self._with_file[key] = reader
        with suppress(KeyError):  # another thread may have let it go
            self._readers.move_to_end(key)
            self._with_file.move_to_end(key)
        return reader

    def _make_room(self) -> None:
        """For one more."""
        with suppress(KeyError):
            while len(self._readers) >= _KNOWN:
                self._with_file.pop(self._readers.popitem(last=False)[0], None)
            while len(self._with_file) >= most_open():
                self._with_file.popitem(last=False)[1].close()

    def _let_go(self, owner: int, shards: int) -> None:
        for number in range(shards):
            self._readers.pop((owner, number), None)
            self._with_file.pop((owner, number), None)


def most_open() -> int:
    """How many shards may be open: a quarter of the files that this process may have, which has other uses for them too."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 4 * _MOST
    return _MOST if resource and limit == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, limit // 4))


OPEN = OpenShards()
