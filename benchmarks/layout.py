"""Layouts of masks and pictures in HDF5, compared by size and by the time of writing and random reading.

    python benchmarks/layout.py [--coco DIR --lvis DIR] [--json]

Times are in units of decoding one JPEG in the same run, so that they can be compared across machines and loads.
"""

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import click
import cv2
import h5py
import numpy as np

from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.masks import runlength
from cocolvis.pictures.encoded import decode_rgb
from cocolvis.sample.writer import write_sample
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

ROUNDS = 3
"""Each time is the best of this number of rounds."""

Reader = Callable[[int], np.ndarray]


class Layout(NamedTuple):
    """``write(file, items)`` stores all items; ``open(file)`` returns a function from a row to its item."""

    name: str
    write: Callable[[h5py.File, Sequence[np.ndarray]], Any]
    open: Callable[[h5py.File], Reader]


def packed(file: h5py.File, parts: Sequence[np.ndarray], name: str = "data", **options: Any) -> None:
    """Store arrays one after another in one data set, and their offsets in another; chunks are at most as large as the data."""
    file[f"{name}_offsets"] = np.cumsum([0, *map(len, parts)], dtype=np.uint64)
    data = np.concatenate(parts)
    if "chunks" in options:
        options["chunks"] = (min(*options["chunks"], len(data)),)
    file.create_dataset(name, data=data, **options)


def unpacked(file: h5py.File, name: str = "data") -> Reader:
    """Row -> the array that :func:`packed` stored."""
    bounds, data = list(pairwise(file[f"{name}_offsets"][()].tolist())), file[name]
    return lambda row: data[bounds[row][0] : bounds[row][1]]


def runs(name: str, **options: Any) -> Layout:
    """Masks as row-major run lengths, like those of the shards."""

    def write(file, masks):
        classes, lengths = zip(*map(runlength.encode, masks), strict=True)
        packed(file, classes, "class", **options)
        packed(file, lengths, "length", **options)
        file["size"] = [mask.shape for mask in masks]

    def open_(file):
        classes, lengths, size = unpacked(file, "class"), unpacked(file, "length"), file["size"][()]
        return lambda row: runlength.decode(classes(row), lengths(row), *size[row].tolist())

    return Layout(name, write, open_)


def runs_zlib() -> Layout:
    """Run lengths, compressed one image at a time."""

    def write(file, masks):
        parts = [b"".join(part.tobytes() for part in runlength.encode(mask)) for mask in masks]
        packed(file, [np.frombuffer(zlib.compress(part, 1), np.uint8) for part in parts])
        file["size"] = [mask.shape for mask in masks]

    def open_(file):
        read, size = unpacked(file), file["size"][()]

        def item(row):
            content = zlib.decompress(read(row).tobytes())
            classes, lengths = np.frombuffer(content, np.uint16).reshape(2, -1)
            return runlength.decode(classes, lengths, *size[row].tolist())

        return item

    return Layout("runs, zlib-1 per image", write, open_)


def one_each(name: str, **options: Any) -> Layout:
    """One HDF5 data set per image."""

    def write(file, items):
        for row, item in enumerate(items):
            file.create_dataset(str(row), data=item, **({"chunks": item.shape} | options if options else {}))

    return Layout(name, write, lambda file: lambda row: file[str(row)][()])


def png() -> Layout:
    """Masks as 16-bit PNG files, packed."""

    def open_(file):
        read = unpacked(file)
        return lambda row: cv2.imdecode(read(row), cv2.IMREAD_UNCHANGED)

    return Layout("PNG-16, packed", lambda file, masks: packed(file, [cv2.imencode(".png", m)[1] for m in masks]), open_)


def variable_length() -> Layout:
    """HDF5's own variable-length rows."""

    def write(file, items):
        data = file.create_dataset("data", (len(items),), h5py.vlen_dtype(np.uint8))
        for row, item in enumerate(items):
            data[row] = item

    def open_(file):
        data = file["data"]
        return lambda row: data[row]

    return Layout("variable-length bytes", write, open_)


CHUNKS = (2048, 4096, 8192, 65536)

MASKS = [
    runs("runs, contiguous"),
    *(runs(f"runs, gzip-1, chunks {n}", chunks=(n,), compression="gzip", compression_opts=1, shuffle=True) for n in CHUNKS),
    runs_zlib(),
    one_each("dense, gzip-4", compression="gzip", compression_opts=4, shuffle=True),
    png(),
]

PICTURES = [Layout("packed bytes, offsets", packed, unpacked), variable_length(), one_each("one data set per image")]


def measure(layout: Layout, items: Sequence[np.ndarray], unit: float, folder: Path) -> dict[str, Any]:
    """Size, and times per image of writing and random reading in units of ``unit`` seconds. Checks what it reads."""
    order = np.random.default_rng(0).permutation(len(items)).tolist()
    path = folder / "layout.h5"
    writing, reading = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        with h5py.File(path, "w", libver="v110") as file:
            layout.write(file, items)
        writing.append(time.perf_counter() - start)
        with h5py.File(path, "r") as file:
            read = layout.open(file)
            if not all(np.array_equal(read(row), items[row]) for row in order[:20]):
                raise RuntimeError(f"{layout.name}: reads something other than what was written")
            start = time.perf_counter()
            for row in order:
                read(row)
            reading.append(time.perf_counter() - start)
    times = {name: min(seconds) / len(items) / unit for name, seconds in (("write", writing), ("read", reading))}
    return {"layout": layout.name, "kib_an_image": path.stat().st_size / len(items) / 1024, **times}


def decode_seconds(pictures: Sequence[np.ndarray]) -> float:
    """Seconds to decode one JPEG, the unit of all times."""
    rounds, contents = [], [picture.tobytes() for picture in pictures]
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for content in contents:
            decode_rgb(content)
        rounds.append(time.perf_counter() - start)
    return min(rounds) / len(pictures)


@click.command()
@click.option("--coco", type=click.Path(path_type=Path), help="COCO folder, together with --lvis. Default: a generated sample.")
@click.option("--lvis", type=click.Path(path_type=Path), help="LVIS folder, together with --coco.")
@click.option("--images", default=1000, show_default=True, help="Images to store. If there are fewer, they are repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def main(coco, lvis, images, as_json) -> None:
    """Measure every layout on the masks and pictures of a COCO + LVIS tree."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if coco is None or lvis is None:
            coco, lvis = folder / "coco", folder / "lvis"
            write_sample(folder, images=120, classes=120, size=256, seed=0)
        build(Sources(coco, lvis, coco_lvis()), folder / "data", CocoLvisOptions())
        dataset = Dataset.open(folder / "data")
        splits = [dataset.split(name) for name in dataset.splits]
        samples = [split[row] for split in splits for row in range(len(split))]
        samples = (samples * (-(-images // len(samples))))[:images]
        masks, pictures = [s.mask for s in samples], [np.frombuffer(s.content, np.uint8) for s in samples]
        unit = decode_seconds(pictures[:200])
        tables = {
            "masks": [measure(layout, masks, unit, folder) for layout in MASKS],
            "pictures": [measure(layout, pictures, unit, folder) for layout in PICTURES],
        }
    if as_json:
        click.echo(json.dumps({"images": images, "decode_ms": unit * 1e3, **tables}, indent=1))
        return
    click.echo(f"{images} images; write and read in units of decoding one JPEG ({unit * 1e3:.2f} ms here)")
    for what, rows in tables.items():
        click.echo(f"\n{what:<28}{'KiB per image':>14}{'write':>9}{'read':>9}")
        for row in rows:
            click.echo(f"{row['layout']:<28}{row['kib_an_image']:>14.2f}{row['write']:>9.3f}{row['read']:>9.3f}")


if __name__ == "__main__":
    main()
