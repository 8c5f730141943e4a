"""Runs the tests that are closest to a change, for at most a given time: `make quick`.

The distance of a test file is the number of imports from it to the nearest changed file. When the time is over, no test is
started any more, and the rest is counted as left out.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from import_graph import ROOT, imports_among, modules

MOST_FILES = 8
"""Test files of one run: more would not fit into its time, because importing what they test takes seconds."""
ALWAYS = ["tests/project/test_docs.py", "tests/project/test_layout.py"]
"""Tests that take a second and concern every change."""
OVER = "the time of the quick tests is over"
END = float(os.environ.get("QUICK_TESTS_END", "inf"))
"""When the time is over, in seconds since the epoch; set for pytest and for the processes of pytest-xdist."""
AT_LEAST = 10
"""Seconds from the first test to the end of the time, however long it took to collect the tests."""


def test_modules(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file of the tests and of the helpers that they import."""
    return {path.stem: path for path in sorted((root / "tests").rglob("*.py"))}


def distances(changed: Iterable[str], root: Path = ROOT) -> dict[str, int]:
    """Path of a test file -> the number of imports from it to the nearest changed file; absent where none leads there.

    ``changed`` and the result are paths relative to ``root``, with forward slashes.
    """
    files = modules(root) | test_modules(root)
    users: dict[str, set[str]] = {name: set() for name in files}
    for name, targets in imports_among(files).items():
        for target in targets:
            users[target].add(name)
    names = {path.relative_to(root).as_posix(): name for name, path in files.items()}
    found = {names[path]: 0 for path in changed if path in names}
    front = [*found]
    while front:
        reached = {user: found[name] + 1 for name in front for user in users[name] if user not in found}
        found |= reached
        front = [*reached]
    paths = {name: path.relative_to(root).as_posix() for name, path in test_modules(root).items()}
    return {paths[name]: distance for name, distance in found.items() if name.startswith("test_") and name in paths}


def chosen(changed: Iterable[str], root: Path = ROOT) -> list[str]:
    """The test files to run, closest first. Among equally close ones, those named like a changed file or its folder lead."""
    changed = [*changed]
    near = distances(changed, root)
    named = {f"test_{Path(path).stem}" for path in changed}
    rooms = {Path(path).parent.name for path in changed}

    def order(path: str) -> tuple[int, bool, bool, str]:
        return near[path], Path(path).stem not in named, Path(path).parent.name not in rooms, path

    ordered = sorted(near, key=order)
    return [path for path in ordered if path not in ALWAYS][:MOST_FILES]


def changed_files(base: str = "HEAD", root: Path = ROOT) -> list[str]:
    """The files that differ from the commit ``base``, new ones included; if there are none, those of the last commit."""

    def git(*words: str) -> list[str]:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()

    found = git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")
    return found or git("diff", "--name-only", "HEAD~1")


@cache
def end() -> float:
    """When the time is over, fixed when the first test starts."""
    return max(END, time.time() + AT_LEAST)


def pytest_runtest_setup() -> None:
    """Skip the tests that have not begun when the time is up. This and the next two are hooks of a pytest plugin."""
    import pytest

    if time.time() > end():
        pytest.skip(OVER)


def pytest_report_teststatus(report) -> tuple[str, str, str] | None:
    """Count those tests apart from other skipped ones."""
    return ("left out", "", "") if report.skipped and OVER in str(report.longrepr) else None


def pytest_terminal_summary(terminalreporter) -> None:
    """Say where to find the tests that were left out."""
    if "left out" in terminalreporter.stats:
        terminalreporter.write_line(f"{OVER}; `make test` runs everything")


def main() -> int:
    """Choose the tests, say which, run them; returns pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="HEAD", help="the commit to compare with; default: HEAD")
    parser.add_argument("--seconds", type=float, default=25, help="start no test after this time, from the start; default: 25")
    parser.add_argument("--list", action="store_true", help="print the chosen files only")
    asked, options = parser.parse_known_args()
    files = [*ALWAYS, *chosen(changed_files(asked.base))]
    print("\n".join(files), flush=True)
    if asked.list:
        return 0
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"QUICK_TESTS_END": str(time.time() + asked.seconds), "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-p", "quick_tests", "-m", "not long", *options, *files]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
