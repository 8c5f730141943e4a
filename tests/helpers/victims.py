"""Builds in processes of their own, which tests kill at a chosen moment, and checks of the folders that these leave."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

import pytest

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader

GUARD = 120
"""Seconds after which a process that should have done something is considered to hang."""


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reports(out: Path) -> list[str]:
    """The names of the shards that an unfinished build has reports of; none if the build removes them just now."""
    return sorted(Path(name).stem for name in glob(str(out / ".build" / "*-*.json")))


def halves(folder: Path) -> list[Path]:
    """The half-written files in a folder."""
    return list(folder.glob(".*.tmp"))


def kept(out: Path) -> dict[str, tuple[int, int]]:
    """Name of a finished shard -> inode and time of the last change."""
    found = {name: (out / "shards" / f"{name}.h5").stat() for name in reports(out)}
    return {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()}


def check_unfinished(out: Path) -> None:
    """Check the folder of a killed build: it is not a data set, and no half-written file has its final name."""
    if (out / "shards").exists():
        with pytest.raises(DataError, match=r"holds no dataset\.json yet: complete it with `cocolvis build \.\.\. --resume`"):
            Dataset.open(out)
    for path in (out / "shards").glob("*.h5"):
        reader = ShardReader(path)
        assert [reader.digest(row) for row in range(len(reader))] == [row.tobytes() for row in reader.digests()]
        reader.close()


def until(true: Callable[[], object], interval: float = 0.001) -> None:
    """Wait until ``true()``; an AssertionError if that takes longer than ``GUARD``."""
    end = time.monotonic() + GUARD
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(interval)


_started: list[subprocess.Popen] = []


def kill_those_left() -> None:
    """Kill the builds that still run, or are stopped, and their workers: a test that failed has left them."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Victim:
    """A ``cocolvis build`` in a session of its own, which :func:`kill_those_left` ends if a test does not."""

    def __init__(self, built, out: Path, *options: object, command: tuple[str, ...] = ("-m", "cli.cocolvis")):
        self.out, self._log = out, out.with_name(f"{out.name}-{uuid.uuid4().hex}.log")
        arguments = [*command, "build", "--coco", built.coco, "--lvis", built.lvis, "--out", out, *options]
        with self._log.open("wb") as log:
            whole = [sys.executable, *map(str, arguments)]
            self._process = subprocess.Popen(whole, stdout=log, stderr=log, start_new_session=True)
        _started.append(self._process)

    def wait_for(self, ready: Callable[[], object]) -> bool:
        """Wait until ``ready()`` or until the build ends; whether it still runs."""
        until(lambda: ready() or self._process.poll() is not None)
        return self._process.poll() is None

    def workers(self) -> list[int]:
        """The ids of its worker processes."""
        return [pid for pid, parent, _, command in _processes() if parent == self._process.pid and b"spawn_main" in command]

    def kill(self, whom: str) -> None:
        """Send SIGKILL to "all" processes, only to the "parent", or to one "worker"."""
        workers = self.workers()
        victims = {"all": [self._process.pid, *workers], "parent": [self._process.pid], "worker": workers[:1]}[whom]
        for pid in victims:
            os.kill(pid, signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send a signal to the parent process."""
        self._process.send_signal(number)

    def ended(self) -> int:
        """Wait for the end of the process; its exit code."""
        return self._process.wait(GUARD)

    def gone(self) -> bool:
        """Whether no process of its session is left."""
        return not any(session == self._process.pid for _, _, session, _ in _processes())

    @property
    def said(self) -> str:
        """What the build wrote to its terminal."""
        return self._log.read_text()

    def error(self) -> str:
        """The one line with which a failed build ends; there must be no traceback."""
        lines = [line for line in self.said.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1 and "Traceback" not in self.said and self.said.splitlines()[-1] == lines[0], self.said
        return lines[0]


def _processes() -> Iterator[tuple[int, int, int, bytes]]:
    """(process, parent, session, command line) of all live processes."""
    for folder in Path("/proc").iterdir():
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
            if status[0] != "Z":
                yield int(folder.name), int(status[1]), int(status[3]), (folder / "cmdline").read_bytes()
        except (OSError, IndexError, ValueError):
            continue
