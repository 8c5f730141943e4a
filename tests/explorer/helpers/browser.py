"""A real browser for tests, and the explorer as a process; says loudly when there is no browser."""

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--force-renderer-accessibility",  # as with a screen reader
]
_NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120
"""Seconds after which a page is given up; tests run on busy machines."""
_MISSING = "there is no Chromium to test the explorer with: `make browser` installs it"


def executable() -> str:
    """The path of Chromium. Without one, the test is skipped with a warning, or fails if COCOLVIS_BROWSER is "required"."""
    found = os.environ.get("COCOLVIS_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None) or _of_playwright()
    if found:
        return found
    if os.environ.get("COCOLVIS_BROWSER") == "required":
        pytest.fail(_MISSING)
    warnings.warn(_MISSING, stacklevel=2)
    pytest.skip(_MISSING)


def _of_playwright() -> str | None:
    """The browser that `playwright install` put into a cache of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = driver.chromium.executable_path
    return path if Path(path).exists() else None


@contextmanager
def chromium() -> Iterator:
    """A running browser, as playwright's Browser."""
    path = executable()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS, timeout=PATIENCE * 1000)
        yield browser
        browser.close()


@contextmanager
def tab(browser, site: str, **settings) -> Iterator:
    """A page in a context of its own, as playwright's Page; it waits for a slow machine."""
    context = browser.new_context(base_url=site, **settings)
    context.set_default_timeout(PATIENCE * 1000)
    try:
        yield context.new_page()
    finally:
        context.close()


def until(page, expression: str) -> None:
    """Wait until an expression is true in a page. Playwright's own wait needs eval, which the pages forbid."""
    for _ in range(PATIENCE * 20):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never true: {expression}")


def wait_until_ready(page, *runs: str) -> None:
    """Wait until the explorer has prepared the data set and these runs. The page does not load itself again meanwhile."""
    page.goto("/status.json")
    for address in ("/status.json", *(f"/status.json?run={run}" for run in runs)):
        until(page, f"fetch('{address}').then((answer) => answer.json()).then((state) => state.ready)")


@contextmanager
def explorer(data: Path, *arguments: str | Path, cache: Path) -> Iterator[str]:
    """The address of ``cocolvis view``, which runs as a process of its own."""
    command = [sys.executable, "-m", "cli.cocolvis", "view", data, "--port", "0", *arguments]
    variables = os.environ | {"COCOLVIS_CACHE": str(cache), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables) as process:
        assert process.stdout
        try:
            line = process.stdout.readline()
            assert "http://" in line, line + process.stdout.read()
            yield line.split()[4].rstrip("/")
        finally:
            process.terminate()
