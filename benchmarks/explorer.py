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
from many_images import write_dataset
from playwright.sync_api import Browser, sync_playwright

STARTS = 5
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ROOT = Path(__file__).parents[1]


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
