"""Damages shards in ways that no writer would."""

import os
import socket
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

SECRET = b"content outside the data set"
"""The content of the file ``secret`` and of ``data`` in ``other.h5``, which are beside the data set's folder."""

Outside = Path
"""The folder with the data set's folder, ``secret``, ``other.h5``, and ``pipe``, which blocks any process that opens it."""


def replaced(file: h5py.File, name: str, values: Any, **settings: Any) -> None:
    """Replace a data set or group with something else."""
    if name in file:
        del file[name]
    if isinstance(values, h5py.SoftLink | h5py.ExternalLink | h5py.Datatype | h5py.Group | np.dtype):
        file[name] = values
    else:
        file.create_dataset(name, data=values, **settings)


def declared(file: h5py.File, name: str, shape: tuple, dtype: str, *, chunk: int = 0, filters: int = 0, stream: bytes = b""):
    """A data set that stores the same bytes ``stream`` for each chunk, or nothing, with gzip ``filters`` times."""
    del file[name]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    for _ in range(filters):
        settings.set_deflate(1)
    if chunk:
        settings.set_chunk((chunk,))
    space = h5py.h5s.create_simple(shape)
    data = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, settings)
    for at in range(0, shape[0] if stream else 0, chunk or 1):
        data.write_direct_chunk((at,), stream)


def sparse(file: h5py.File, name: str, count: int, dtype: str) -> None:
    """A data set whose values are allocated but never written, so that they use no disk space."""
    del file[name]
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple((count,))
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, settings)


def zeros(count: int, block: int = 2**22) -> bytes:
    """A zlib stream of ``count`` zeros, a multiple of ``block``, made without holding them in memory."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + body * (count // block - 1) + b"\x03\x00" + (count % 65521 << 16 | 1).to_bytes(4, "big")


def virtual(file: h5py.File, outside: Outside) -> None:
    layout = h5py.VirtualLayout((len(SECRET),), "uint8")
    layout[:] = h5py.VirtualSource(str(outside / "other.h5"), "data", (len(SECRET),))
    del file["image/bytes"]
    file.create_virtual_dataset("image/bytes", layout)


def external(file: h5py.File, outside: Outside, name: str = "image/bytes", dtype: str = "uint8") -> None:
    shape = file[name].shape
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    del file[name]
    file.create_dataset(name, shape, dtype, external=[(str(outside / "secret"), 0, size)])


def mask_chunk(stream: bytes, count: int = 4096, **settings: Any) -> Callable[[h5py.File, Outside], None]:
    """Store the classes of the masks in chunks with the same ``stream``; the offsets give them all to the first image."""

    def change(file: h5py.File, outside: Outside) -> None:
        replaced(file, "mask/offsets", np.array([0] + [count] * len(file["id"]), np.uint64))
        replaced(file, "mask/length", np.ones(min(count, 2**20), np.uint16))
        replaced(file, "size", np.full((len(file["id"]), 2), 512, np.uint32))
        declared(file, "mask/class", (count,), "uint16", stream=stream, **({"chunk": 4096, "filters": 1} | settings))

    return change


def unknown_filter(file: h5py.File, outside: Outside) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((16,))
    settings.set_filter(32015, h5py.h5z.FLAG_OPTIONAL)
    values = file["mask/class"][()]
    del file["mask/class"]
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(file.id, b"mask/class", h5py.h5t.py_create(values.dtype), space, settings).write(space, space, values)


def offsets(change: Callable[[np.ndarray], Any], group: str = "mask") -> Callable[[h5py.File, Outside], None]:
    def apply(file: h5py.File, outside: Outside) -> None:
        values = file[f"{group}/offsets"][()]
        found = change(values)
        replaced(file, f"{group}/offsets", values if found is None else found)

    return apply


def assigned(name: str, place: Any, value: Any) -> Callable[[h5py.File, Outside], None]:
    return lambda file, outside: file[name].__setitem__(place, value)


def compact(file: h5py.File, name: str) -> None:
    """Move a column into its own header."""
    values = file[name][()]
    del file[name]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_layout(h5py.h5d.COMPACT)
    kind = h5py.h5t.py_create(values.dtype, logical=True)
    data = h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(values.shape), layout)
    data.write(h5py.h5s.ALL, h5py.h5s.ALL, values)


def put(name: str, value: Any, **settings: Any) -> Callable[[h5py.File, Outside], None]:
    return lambda file, outside: replaced(file, name, value, **settings)


def created(name: str, shape: tuple, dtype: Any, **settings: Any) -> Callable[[h5py.File, Outside], None]:
    """A data set that was never written to."""
    return lambda file, outside: (file.__delitem__(name), file.create_dataset(name, shape, dtype, **settings))


def retyped(name: str, dtype: Any) -> Callable[[h5py.File, Outside], None]:
    """As many values of another type."""
    return lambda file, outside: replaced(file, name, np.zeros(file[name].shape, dtype))


def attribute(name: str, value: Any) -> Callable[[h5py.File, Outside], None]:
    return lambda file, outside: file.attrs.__setitem__(name, value)


def not_text(name: str) -> Callable[[h5py.File, Outside], None]:
    """An attribute of variable-length text that is not UTF-8."""
    return lambda file, outside: file.attrs.create(name, b"\xff\xfe\x1b[2J\n", dtype=h5py.string_dtype())


def more_runs_than_pixels(file: h5py.File, outside: Outside) -> None:
    count = len(file["id"])
    replaced(file, "mask/offsets", np.array([0] * count + [65], np.uint64))
    replaced(file, "mask/class", np.zeros(65, np.uint16))
    replaced(file, "mask/length", np.array([64] + [0] * 64, np.uint16))


def many_present(file: h5py.File, outside: Outside) -> None:
    """Give the first image 2000 entries in /present, all of class 1."""
    replaced(file, "present/offsets", np.array([0] + [2000] * len(file["id"]), np.uint64))
    for name, dtype in (("class", np.uint16), ("pixels", np.uint32), ("instances", np.uint32)):
        replaced(file, f"present/{name}", np.ones(2000, dtype))


def excluded(file: h5py.File, outside: Outside) -> None:
    """Make the first image list class 0 as absent."""
    replaced(file, "neg/offsets", np.array([0] + [1] * len(file["id"]), np.uint64))
    replaced(file, "neg/class", np.zeros(1, np.uint16))


def overflowing_runs(file: h5py.File, outside: Outside) -> None:
    """Give the first image runs whose sum exceeds 32 bits and, modulo 2^32, is at least its number of pixels."""
    count = 70_000
    replaced(file, "size", np.full((len(file["id"]), 2), 512, np.uint32))
    replaced(file, "mask/offsets", np.array([0] + [count] * len(file["id"]), np.uint64))
    replaced(file, "mask/class", np.zeros(count, np.uint16))
    replaced(file, "mask/length", np.full(count, 2**16 - 1, np.uint16))


def old_format(path: Path, outside: Outside) -> None:
    """Rewrite the shard in HDF5's default format, which has no checksums."""
    content = outside / "copy.h5"
    with h5py.File(path) as file, h5py.File(content, "w", libver="earliest") as copy:
        copy.attrs.update(file.attrs)
        for name in file:
            file.copy(name, copy)
    content.replace(path)


def linked(name: str) -> Callable[[Path, Outside], None]:
    """Replace a file with a symbolic link."""

    def change(path: Path, outside: Outside) -> None:
        path.unlink()
        path.symlink_to(outside / name)

    return change


def instead(make: Callable[[Path], object]) -> Callable[[Path, Outside], None]:
    """Replace a file with something that is not a regular file."""
    return lambda path, outside: (path.unlink(), make(path))


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the names of sockets must be short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)
