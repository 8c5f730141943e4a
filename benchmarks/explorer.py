"""The explorer over 120,000 generated images: seconds until something is seen, bytes, seconds of answers, and memory.

    python benchmarks/explorer.py [--images N] [--json]

A class occurs in an image with a probability that falls as in the long tail of COCO+LVIS. Needs Chromium and playwright.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
from coco_like import HEIGHT, WIDTH, picture
from playwright.sync_api import Browser, sync_playwright

from cocolvis.disk.files import write_json
from cocolvis.masks.runlength import Runs
from cocolvis.storage import digest
from cocolvis.storage.index import VERSION
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter
from cocolvis.vocabulary import coco_lvis

STARTS = 5
SHARD = 500
DISTINCT = 100
CLASSES_AN_IMAGE = 9
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ROOT = Path(__file__).parents[1]


def write_dataset(folder: Path, images: int) -> None:
    """A data set of ``images`` images, whose pictures are ``DISTINCT`` files in the folder ``pictures``."""
    rng, vocabulary = np.random.default_rng(0), coco_lvis()
    (folder / "pictures").mkdir(parents=True)
    for number in range(DISTINCT):
        (folder / "pictures" / f"{number}.jpg").write_bytes(picture(rng))
    share = 1 / (np.arange(len(vocabulary)) + 8) ** 1.1
    order, share = rng.permutation(len(vocabulary)) + 1, share / share.sum()
    entries, leaves = [], []
    for first in range(0, images, SHARD):
        path = folder / "shards" / f"train-{first // SHARD:05d}.h5"
        count = min(SHARD, images - first)
        with ShardWriter(path, {"split": "train", "images": "path", "vocabulary": vocabulary.digest}) as writer:
            for image_id in range(first + 1, first + count + 1):
                writer.add(_sample(rng, image_id, order, share))
        reader = ShardReader(path)
        leaves += [row.tobytes() for row in reader.digests()]
        reader.close()
        entries.append({"file": f"shards/{path.name}", "split": "train", "images": count, "bytes": 0, "checksum": "0" * 64})
    index = {
        "format": "cocolvis",
        "version": VERSION,
        "digest": digest.of_dataset({"train": leaves}, vocabulary.digest),
        "splits": {"train": {"images": images, "shards": len(entries)}},
        "shards": entries,
        "options": {"images": "path", "limit": None, "dataset": "generated", "image_root": str(folder / "pictures")},
        "inputs": {},
        "report": {"counts": {}, "faults": []},
        "vocabulary": vocabulary.to_json(),
    }
    write_json(folder / "dataset.json", index)


def _sample(rng: np.random.Generator, image_id: int, order: np.ndarray, share: np.ndarray) -> Sample:
    """An image whose classes fill stripes of random height."""
    count = max(1, rng.poisson(CLASSES_AN_IMAGE))
    classes = np.unique(order[np.searchsorted(np.cumsum(share), rng.random(count)).clip(0, len(order) - 1)]).astype(np.uint16)
    cuts = np.sort(rng.integers(1, HEIGHT, len(classes) - 1))
    rows = np.diff(np.concatenate([[0], cuts, [HEIGHT]]))
    runs = Runs(np.repeat(classes, rows), np.full(HEIGHT, WIDTH, np.uint16), HEIGHT, WIDTH)
    none = np.zeros(0, np.uint16)
    return Sample(image_id=image_id, path=f"{image_id % DISTINCT}.jpg", runs=runs, content=b"", neg=none, not_exhaustive=none)


@contextmanager
def started(data: Path, cache: Path) -> Iterator[tuple[str, float, int]]:
    """(address, time of the start, process id) of an explorer."""
    command = [sys.executable, "-m", "cli.cocolvis", "view", str(data), "--port", "0"]
    variables = os.environ | {"COCOLVIS_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    begun = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[4], begun, process.pid
        finally:
            process.terminate()


def painted(browser: Browser, address: str, begun: float) -> tuple[float, int]:
    """Seconds from ``begun`` to the first contentful paint, and the bytes of the page with everything that it loads."""
    page = browser.new_page()
    page.goto(address, wait_until="load")
    while not page.evaluate("performance.getEntriesByName('first-contentful-paint').length"):
        page.wait_for_timeout(10)
    seconds = page.evaluate(
        "(performance.timeOrigin + performance.getEntriesByName('first-contentful-paint')[0].startTime) / 1000"
    )
    size = page.evaluate("performance.getEntries().reduce((sum, one) => sum + (one.encodedBodySize ?? 0), 0)")
    page.close()
    return seconds - begun, size


def seconds_of(address: str, times: int = 5) -> float:
    """Median seconds of a request."""
    measured = []
    for _ in range(times):
        begun = time.perf_counter()
        with urllib.request.urlopen(address) as answer:
            answer.read()
        measured.append(time.perf_counter() - begun)
    return statistics.median(measured)


def peak_memory(process: int) -> int:
    """The most bytes that a process has occupied."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def measure(data: Path, cache: Path) -> dict[str, float]:
    """All figures of the explorer over a data set."""
    found: dict[str, float] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        browser.new_page().close()
        with started(data, cache) as (address, begun, _):
            found["first start: something is seen, s"] = painted(browser, address, begun)[0]
            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector("#classes", timeout=120_000)
            found["first start: the classes are seen, s"] = time.time() - begun
            page.close()
        starts = []
        for _ in range(STARTS):
            with started(data, cache) as (address, begun, _):
                starts.append(painted(browser, address, begun))
        found["later starts: the classes are seen, s (median of 5)"] = statistics.median(seconds for seconds, _ in starts)
        found["first page, bytes"] = starts[0][1]
        with started(data, cache) as (address, _, process):
            found |= _answers(address.rstrip("/"))
            painted(browser, f"{address}pictures", time.time())
            found["server memory at its peak, bytes"] = peak_memory(process)
        browser.close()
    return found


def _answers(address: str) -> dict[str, float]:
    """Seconds of pages with pictures, and of thumbnails."""
    with urllib.request.urlopen(f"{address}/classes.json") as answer:
        rows = json.loads(answer.read())["rows"]
    names = [urllib.parse.quote(rows[place]["name"]) for place in (0, 1, 2, len(rows) // 2)]
    seconds_of(f"{address}/pictures")
    addresses = {
        "the commonest class": f"all={names[0]}&sort=area",
        "a class in the middle": f"all={names[3]}&sort=area",
        "two classes without a third": f"all={names[0]}&all={names[1]}&none={names[2]}",
    }
    found = {f"pictures of {what}, s": seconds_of(f"{address}/pictures?{query}") for what, query in addresses.items()}
    for state in ("new", "cached"):
        begun = time.perf_counter()
        for image in range(48):
            seconds_of(f"{address}/thumbnails/{image * 7}.jpg", 1)
        found[f"48 thumbnails, {state}, s"] = time.perf_counter() - begun
    return found


@click.command()
@click.option("--images", default=120_000, show_default=True, help="Images to generate.")
@click.option("--data", type=click.Path(path_type=Path), help="Keep the generated data set here, or use the one that is here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(images: int, data: Path | None, as_json: bool) -> None:
    """Measure the explorer."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = data or Path(temporary) / "data"
        if not (folder / "dataset.json").exists():
            write_dataset(folder, images)
        found = measure(folder, Path(temporary) / "cache")
        index = sum(path.stat().st_size for path in (Path(temporary) / "cache").rglob("*.tables"))
    found |= {"index in the cache, bytes": index}
    if as_json:
        click.echo(json.dumps({"images": images} | found, indent=1))
        return
    click.echo(f"{images:,} images")
    for what, value in found.items():
        click.echo(f"{what:<52}{value:>14,.0f}" if what.endswith("bytes") else f"{what:<52}{value:>14.3f}")


if __name__ == "__main__":
    main()
