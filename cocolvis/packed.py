"""A compressed column of a shard. Chunks are inflated here: HDF5 reads past the end of one that holds less than it should."""

import zlib

import h5py
import numpy as np

_PIPELINES = ((), (h5py.h5z.FILTER_DEFLATE,), (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE))
"""The filters that a column may have: none of them is a plug-in, or expands what another one expanded."""

_MAX_CHUNK = 2**16
"""Values of the largest chunk."""

_KEPT = 2**16
"""Bytes of inflated chunks that a column keeps for the next image; a training run has hundreds of shards open."""


class Packed:
    """The (n,) values of a chunked data set: a slice of them is read chunk by chunk.

    A ValueError where the filters are not gzip after shuffle, or a chunk is missing, or larger than what it is to hold.
    """

    def __init__(self, data: h5py.Dataset):
        settings = data.id.get_create_plist()
        self._filters = tuple(settings.get_filter(i)[0] for i in range(settings.get_nfilters()))
        self._read = data.id.read_direct_chunk
        self._chunk, self._dtype = data.chunks[0], data.dtype
        self._bytes = self._chunk * self._dtype.itemsize
        self._kept: dict[int, np.ndarray] = {}
        self._check(data)

    def _check(self, data: h5py.Dataset) -> None:
        if self._filters not in _PIPELINES:
            raise ValueError(f"{data.name} has the filters {self._filters}, expected gzip after shuffle alone")
        if self._chunk > _MAX_CHUNK:
            raise ValueError(f"{data.name} has chunks of {self._chunk} values, expected at most {_MAX_CHUNK}")
        sizes: list[int] = []
        data.id.chunk_iter(lambda chunk: sizes.append(chunk.size))
        if len(sizes) != -(-len(data) // self._chunk):
            raise ValueError(f"{data.name} declares {len(data)} values and stores {len(sizes)} chunks of {self._chunk}")
        if max(sizes, default=0) > self._bytes + self._bytes // 100 + 64:
            raise ValueError(f"{data.name} has a chunk of {max(sizes)} bytes for {self._bytes}")

    def __getitem__(self, place: slice) -> np.ndarray:
        """The values of a slice with start and stop inside the column; a ValueError or OSError when a chunk is damaged."""
        first, last = place.start, place.stop
        number, start = divmod(first, self._chunk)
        if first < last <= (number + 1) * self._chunk:
            return self._values(number)[start : last - first + start]
        values = np.empty(last - first, self._dtype)
        for number in range(first // self._chunk, -(-last // self._chunk)):
            at = number * self._chunk
            low, high = max(first, at), min(last, at + self._chunk)
            values[low - first : high - first] = self._values(number)[low - at : high - at]
        return values

    def _values(self, number: int) -> np.ndarray:
        values = self._kept.get(number)
        if values is None:
            values = self._inflated(*self._read((number * self._chunk,)))
            if len(self._kept) * self._bytes >= _KEPT:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[number] = values
        return values

    def _inflated(self, skipped: int, content: bytes) -> np.ndarray:
        """One chunk of values; bit i of ``skipped`` says that filter i was not applied to it."""
        applied = [kind for i, kind in enumerate(self._filters) if not skipped >> i & 1]
        if h5py.h5z.FILTER_DEFLATE in applied:
            try:
                content = zlib.decompressobj().decompress(content, self._bytes + 1)
            except zlib.error as error:
                raise ValueError(f"a chunk cannot be inflated: {error}") from None
        if len(content) != self._bytes:
            found = f"more than {self._bytes}" if len(content) > self._bytes else len(content)
            raise ValueError(f"a chunk holds {found} bytes, expected {self._bytes}")
        if h5py.h5z.FILTER_SHUFFLE in applied:
            content = np.frombuffer(content, np.uint8).reshape(self._dtype.itemsize, self._chunk).T.tobytes()
        return np.frombuffer(content, self._dtype)
