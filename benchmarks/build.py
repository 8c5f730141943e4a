"""The speed of the builder, compared with plain merging, plain JSON and plain decoding. Each ratio is from one run.

    python benchmarks/build.py [--images 2000] [--rounds 3] [--only merging --only reading ...] [--json]

The input is generated with the statistics of COCO-Stuff and LVIS (coco_like.py). "Plain merging" works like the published
generator: pycocotools makes a mask of each annotation, and NumPy combines whole images.
"""

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import click
import coco_like
import cv2
import numpy as np
from pycocotools import mask as coco_mask

from cocolvis.building.build import build
from cocolvis.building.coco_lvis import AnnotatedImage, CocoLvisOptions, CocoLvisPlan, warm_up
from cocolvis.masks.merge import merge_at_once
from cocolvis.memory import keep_freed_memory
from cocolvis.pictures.encoded import decode_rgb
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

FEW = 20
"""Images of the tree whose build is nearly all start-up time, which is subtracted."""

REAL_IMAGES, REAL_JSON = 119_979, 1.7e9
"""The COCO+LVIS data set: images of both splits, and bytes of annotations."""


class Bench:
    """The generated input and the settings of a run."""

    def __init__(self, folder: Path, images: int, rounds: int):
        self.folder, self.images, self.rounds = folder, images, rounds

    @cache  # noqa: B019 (there is one instance per run)
    def tree(self, images: int) -> Path:
        """A COCO + LVIS tree with this number of images."""
        root = self.folder / f"tree-{images}"
        coco_like.write_tree(root, images)
        return root

    def sources(self, images: int) -> Sources:
        root = self.tree(images)
        return Sources(root / "coco", root / "lvis", coco_lvis())

    @cache  # noqa: B019
    def tasks(self, count: int) -> list[AnnotatedImage]:
        """Image tasks as workers get them."""
        plan = CocoLvisPlan.make(self.sources(self.images), CocoLvisOptions(splits=("train",), images="none", limit=count))
        return [image for task in plan.tasks(plan.shard_counts()) for image in task.images]

    def build(self, count: int, **settings: Any) -> tuple[float, Path]:
        """Build a tree; returns (seconds, the folder of the data set)."""
        how = {name: settings.pop(name) for name in ("workers", "progress") if name in settings}
        out = self.folder / "data"
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        build(self.sources(count), out, CocoLvisOptions(splits=("train",), **settings), **how)
        return time.perf_counter() - start, out


def merged(task: AnnotatedImage) -> np.ndarray:
    """The (H, W) uint16 mask of an image, from the bytes of its segmentations, by the function that the builder calls."""
    segments = [*task.things, *task.stuff]
    class_ids = [segment.category_id for segment in segments]
    found = merge_at_once([segment.segmentation for segment in segments], class_ids, task.height, task.width)
    if found is None:
        raise RuntimeError(f"image {task.image_id} has an unusual annotation")
    return found[0].mask()


def plainly_merged(task: AnnotatedImage) -> np.ndarray:
    """The same mask from a pycocotools mask of each annotation and arithmetic on whole images."""
    mask = np.zeros((task.height, task.width), np.int64)
    for source in (task.stuff, task.things):
        layer = np.zeros_like(mask)
        for segment in source:
            coded = json.loads(bytes(segment.segmentation))
            if isinstance(coded, list):
                coded = coco_mask.merge(coco_mask.frPyObjects(coded, task.height, task.width))
            layer = np.where((layer == 0) & (coco_mask.decode(coded) > 0), segment.category_id, layer)
        mask = np.where(layer > 0, layer, mask)
    return mask.astype(np.uint16)


def seconds_each(function: Callable[[Any], Any], items: Sequence[Any]) -> float:
    """Seconds per item."""
    start = time.perf_counter()
    for item in items:
        function(item)
    return (time.perf_counter() - start) / len(items)


def merging(bench: Bench) -> dict[str, float]:
    """Merging on one core and the whole build, compared with plain merging."""
    warm_up()
    tasks = bench.tasks(min(400, bench.images))
    differing = sum(not np.array_equal(merged(task), plainly_merged(task)) for task in tasks)
    if differing:
        raise RuntimeError(f"{differing} of {len(tasks)} masks differ from plain merging")
    merges, builds = [], []
    for _ in range(bench.rounds):
        for first in range(0, len(tasks), len(tasks) // 10):  # alternating, because the clocks of machines vary
            part = tasks[first : first + len(tasks) // 10]
            merges.append((seconds_each(plainly_merged, part[:10]), seconds_each(merged, part)))
        before = seconds_each(plainly_merged, tasks[:50])
        whole = (bench.build(bench.images, images="none")[0] - bench.build(FEW, images="none")[0]) / (bench.images - FEW)
        builds.append(((before + seconds_each(plainly_merged, tasks[:50])) / 2, whole))
    return {
        "masks_compared": len(tasks),
        "plain_ms": median(plain for plain, _ in merges) * 1e3,
        "merge_ms": median(ours for _, ours in merges) * 1e3,
        "merge_times_as_fast": median(plain / ours for plain, ours in merges),
        "build_ms": median(whole for _, whole in builds) * 1e3,
        "build_times_as_fast_as_plain_merging": median(plain / whole for plain, whole in builds),
    }


def workers(bench: Bench) -> dict[str, float]:
    """Images per second with one and two processes and embedded pictures, after start-up."""
    rows = []
    for _ in range(bench.rounds):
        alone, _ = _rate(bench, 1)
        together, feeding = _rate(bench, 2)
        rows.append((alone, together, feeding))
    alone, together, feeding = (median(column) for column in zip(*rows, strict=True))
    return {
        "one_images_per_s": alone,
        "two_images_per_s": together,
        "two_times_as_fast_as_one": median(b / a for a, b, _ in rows),
        "feeding_ms": feeding * 1e3,
    }


def _rate(bench: Bench, count: int) -> tuple[float, float]:
    """(images per second after the first tenth, seconds of this process per image) with ``count`` workers."""
    seen: list[tuple[int, float, float]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, time.perf_counter(), time.process_time()))

    bench.build(bench.images, images="embed", workers=count, shard_size=50, progress=progress)
    first = next(entry for entry in seen if entry[0] >= bench.images // 10)
    last = next(entry for entry in seen if entry[0] >= bench.images)
    images = last[0] - first[0]
    return images / (last[1] - first[1]), (last[2] - first[2]) / images


def memory(bench: Bench) -> dict[str, float]:
    """The peak resident size of a worker, for the whole data set and for a quarter of it (Linux)."""
    small, large = (_worker_mib(bench, images) for images in (bench.images // 4, bench.images))
    return {"quarter_worker_mib": small, "whole_worker_mib": large, "growth": large / small}


def _worker_mib(bench: Bench, images: int) -> float:
    found = [0]

    def progress(done: int, total: int) -> None:
        for worker in multiprocessing.active_children():
            status = Path(f"/proc/{worker.pid}/status").read_text()
            found.extend(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

    bench.build(images, workers=2, shard_size=50, progress=progress)
    return max(found) / 1024


def loading(bench: Bench) -> dict[str, float]:
    """Loading and indexing a 1 GB LVIS file, compared with json.load, each in its own process."""
    path = bench.folder / "lvis_v1_train.json"
    images = coco_like.write_lvis(path, 1, least_bytes=10**9)
    report = "print(json.dumps([time.perf_counter() - t, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2]))"
    head = "import json, resource, sys, time;"
    ours = head + "from cocolvis.sources.annotations import AnnotationFile; from cocolvis.disk.archives import Place;"
    ours += "t = time.perf_counter(); f = AnnotationFile(Place(sys.argv[1]).map(), 'lvis', 'lvis');" + report
    plain = head + "t = time.perf_counter(); f = json.load(open(sys.argv[1]));" + report
    rows = [(*_child(ours, str(path)), *_child(plain, str(path))) for _ in range(bench.rounds)]
    seconds, size, plain_seconds, plain_size = (median(column) for column in zip(*rows, strict=True))
    found = {"gb": path.stat().st_size / 1e9, "images": images, "seconds": seconds, "gib": size}
    path.unlink()
    return found | {
        "json_seconds": plain_seconds,
        "json_gib": plain_size,
        "times_as_fast": median(p / s for s, _, p, _ in rows),
    }


def _child(code: str, *arguments: str) -> Any:
    """The JSON that a separate Python process prints."""
    found = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def reading(bench: Bench) -> dict[str, float]:
    """Random samples, with picture and mask decoded, compared with JPEGs alone and with a folder of JPEGs and 16-bit PNGs.

    The process keeps freed memory, as data loaders do; otherwise each of the three would take half as long again.
    """
    _, out = bench.build(bench.images, images="embed")
    split = Dataset.open(out).split("train")
    order = np.random.default_rng(0).permutation(len(split))[:1000].tolist()
    pictures = {i: split[i].content for i in order}
    masks = bench.folder / "masks"
    masks.mkdir()
    jpegs = {i: bench.tree(bench.images) / "coco" / split[i].path for i in order}
    for i in order:
        cv2.imwrite(str(masks / f"{i}.png"), split[i].mask)

    def decode(i: int) -> None:
        decode_rgb(pictures[i])

    def from_shards(i: int) -> tuple[np.ndarray, np.ndarray]:
        sample = split[i]
        return sample.image(), sample.mask

    def from_files(i: int) -> None:
        cv2.imread(str(jpegs[i]), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        cv2.imread(str(masks / f"{i}.png"), cv2.IMREAD_UNCHANGED)

    keep_freed_memory()
    rows = []
    for start in range(0, len(order), 100):
        part = order[start : start + 100]
        rows.append([seconds_each(read, part) for read in (decode, from_shards, from_files)])
    alone, shards, files = (median(column) for column in zip(*rows, strict=True))
    return {
        "decode_ms": alone * 1e3,
        "shards_ms": shards * 1e3,
        "files_ms": files * 1e3,
        "share_of_decoding_speed": median(d / s for d, s, _ in rows),
        "times_as_fast_as_files": median(f / s for _, s, f in rows),
    }


def projection(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Estimated minutes of the real build on 2, 8 and 32 cores: reading annotations, plus the longer of work and feeding."""
    if not {"workers", "loading"} <= found.keys():
        return {}
    start = REAL_JSON / 1e9 * found["loading"]["seconds"] / found["loading"]["gb"]
    work = 2 * REAL_IMAGES / found["workers"]["two_images_per_s"]
    feeding = REAL_IMAGES * found["workers"]["feeding_ms"] / 1e3
    return {f"{cores}_cores_minutes": (start + max(work / cores, feeding)) / 60 for cores in (2, 8, 32)}


PARTS = {part.__name__: part for part in (merging, workers, reading, memory, loading)}


@click.command()
@click.option("--images", default=2000, show_default=True, help="Images of the generated tree.")
@click.option("--rounds", default=3, show_default=True, help="Rounds; each figure is their median.")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Measure only this part; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(images, rounds, only, as_json) -> None:
    """Measure merging, the build, its workers and their memory, loading and reading."""
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), images, rounds)
        found = {name: part(bench) for name, part in PARTS.items() if not only or name in only}
    found["projection"] = projection(found)
    if as_json:
        click.echo(json.dumps({"cores": os.cpu_count(), "images": images, "rounds": rounds, **found}, indent=1))
        return
    for name, values in found.items():
        for what, value in values.items():
            click.echo(f"{name:<12}{what.replace('_', ' '):<42}{value:>12,.2f}")


if __name__ == "__main__":
    main()
