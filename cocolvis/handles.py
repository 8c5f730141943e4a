"""The shards that a process keeps open: those used last, however many splits they belong to."""

import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from itertools import count

from cocolvis.shards import ShardReader

try:
    import resource
except ImportError:  # Windows
    resource = None

_MOST = 256
"""Shards that stay open at most: enough to shuffle COCO+LVIS without reopening, and a bound on memory."""

_FEWEST = 4


class OpenShards:
    """Readers by owner and number. The least recently used ones give way to new ones.

    Nothing is ever closed here: who gives way is let go, and its file closes with the last reference, so that a thread which
    reads it in this moment does so undisturbed. There are no locks, which a forked process could inherit locked: each operation
    on the table is one that Python does as a whole.
    """

    def __init__(self):
        self._readers: OrderedDict[tuple[int, int], ShardReader] = OrderedDict()
        self._owners = count()

    def __len__(self) -> int:
        return len(self._readers)

    def owner(self, split: object, shards: int) -> int:
        """A new owner of up to so many shards, which are let go when ``split`` is no longer used."""
        number = next(self._owners)
        weakref.finalize(split, self._let_go, number, shards).atexit = False
        return number

    def get(self, owner: int, number: int, opened: Callable[[int], ShardReader]) -> ShardReader:
        """The owner's shard of this number, opened by ``opened(number)`` where it is not open."""
        key = owner, number
        reader = self._readers.get(key)
        if reader is None:
            while len(self._readers) >= most_open():
                with suppress(KeyError):
                    self._readers.popitem(last=False)
            reader = self._readers[key] = opened(number)
            return reader
        with suppress(KeyError):  # another thread may have let it go
            self._readers.move_to_end(key)
        return reader

    def _let_go(self, owner: int, shards: int) -> None:
        for number in range(shards):
            self._readers.pop((owner, number), None)


def most_open() -> int:
    """How many shards may be open: a quarter of the files that this process may have, which has other uses for them too."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else 4 * _MOST
    return _MOST if resource and limit == resource.RLIM_INFINITY else max(_FEWEST, min(_MOST, limit // 4))


OPEN = OpenShards()
