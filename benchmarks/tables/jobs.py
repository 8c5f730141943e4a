"""The runs of a table: which there are, which are finished, and how the others are started, each in its own process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cocolvis.disk.alone import alone_in
from cocolvis.disk.files import read_json, sweep, write_aside
from cocolvis.errors import DataError
from cocolvis.limits import cores
from tables.rows import Row, Table

_POLL = 0.1
"""Seconds between two looks at the commands that run."""


class NotChosen(DataError):
    """A learning rate that is neither given nor chosen yet."""


@dataclass(frozen=True, slots=True)
class Job:
    """A training and its evaluation: a row of a table on one part with one seed.

    With a ``rate``, it is a candidate for the learning rate of the row's family, and is scored on the split "val", which is
    part of the training pictures. Otherwise it is scored on "test", the pictures that are held out.
    """

    table: str
    row: str
    part: str
    seed: int
    rate: float | None = None

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.row}-{self.part}-seed{self.seed}" + ("" if self.rate is None else f"-lr{self.rate:g}")

    @property
    def split(self) -> str:
        """The split that is scored at the end."""
        return "test" if self.rate is None else "val"


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of a table: its data sets, the results of finished jobs, and the unfinished runs."""

    folder: Path

    @property
    def data(self) -> Path:
        """The folder of the data sets of the parts."""
        return self.folder / "data"

    def running(self, job: Job) -> Path:
        """The run of a job that is not finished."""
        return self.folder / "running" / job.name

    def result(self, job: Job) -> dict[str, Any] | None:
        """The result of a finished job, or None."""
        path = self._path(job)
        return read_json(path) if path.exists() else None

    def finish(self, job: Job, result: dict[str, Any]) -> None:
        """Write the result of a job; it appears whole or not at all."""
        with write_aside(self._path(job)) as aside:
            aside.write_text(json.dumps(result, separators=(",", ":"), allow_nan=False), encoding="utf-8")

    def _path(self, job: Job) -> Path:
        return self.folder / ("runs" if job.rate is None else "choices") / f"{job.name}.json"

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Lock the folder for this process and those that inherit the descriptor; raises DataError if another has it."""
        with alone_in(self.folder, "another process works there; wait for it, or choose another --out") as lock:
            for name in ("runs", "choices"):
                sweep(self.folder / name)
            yield lock


def candidates(table: Table, rows: Sequence[Row]) -> list[Job]:
    """The jobs that decide the learning rates of the families of ``rows``, each with the first row of the family.

    Families whose rate is given need none.
    """
    families = {row.family for row in rows} - table.given.keys()
    first = {family: next(row for row in table.rows if row.family == family) for family in sorted(families)}
    return [Job(table.name, row.name, table.choosing, 0, rate) for row in first.values() for rate in table.rates]


def evaluations(table: Table, rows: Sequence[Row], seeds: int) -> list[Job]:
    """The jobs whose scores the table shows; the first seed of all rows comes before the second one."""
    jobs = [Job(table.name, row.name, part, seed) for seed in range(seeds) for row in rows for part in table.parts]
    few = [job for job in jobs if not table.row(job.row).only_on_request]
    return few + [job for job in jobs if job not in few and (job.seed, job.part) == (0, table.parts[0])]


def chosen_rate(table: Table, store: Store, row: Row) -> tuple[float, dict[str, float | None]]:
    """The learning rate with the highest mIoU on training pictures that were left out, and the mIoU of each candidate.

    A training that diverged has none. Ties go to the lower rate. A rate that was given has no candidates. Raises NotChosen if a
    candidate is not finished.
    """
    if row.family in table.given:
        return table.given[row.family], {}
    scores = {}
    for job in candidates(table, [row]):
        result = store.result(job)
        if result is None or job.rate is None:
            raise NotChosen(f"{store.folder}: {job.name} is not finished, so the learning rate of {row.name} is not chosen")
        scores[job.rate] = result["scores"]["miou"]
    best = max(scores, key=lambda rate: (scores[rate] or 0.0, -rate))
    return best, {f"{rate:g}": score for rate, score in scores.items()}


def settings_of(table: Table, store: Store, job: Job) -> dict[str, Any]:
    """The settings of a job, as for ``ess.config.Config``; the learning rate of an evaluation is the chosen one."""
    row = table.row(job.row)
    rate = job.rate if job.rate is not None else chosen_rate(table, store, row)[0]
    settings = {**table.settings, **row.settings, "seed": job.seed, "lr": rate}
    steps = settings["steps"]
    return settings | {"eval_every": max(1, steps // table.evaluations), "save_every": max(1, steps // 4), "keep": steps}


class Processes:
    """Runs commands, at most ``parallel`` at a time, each in a process with an equal share of the cores.

    The processes inherit the descriptor ``lock``, which locks the folder even after this process was killed. After Ctrl-C or
    SIGTERM, or once a command has failed, the others save their state and end.
    """

    def __init__(self, lock: int, parallel: int) -> None:
        self._lock = lock
        self._parallel = parallel
        self._running: dict[subprocess.Popen[bytes], Callable[[int], None]] = {}
        self._interrupted = False

    def __enter__(self) -> "Processes":
        self._handlers = {number: signal.signal(number, self._interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        for process in self._running:
            process.wait()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def run(self, command: Sequence[str], ended: Callable[[int], None]) -> None:
        """Start a command as soon as fewer than ``parallel`` run; ``ended`` is called with its exit code.

        Raises KeyboardInterrupt if this process was interrupted, and whatever ``ended`` raises.
        """
        while len(self._running) >= self._parallel:
            self._collect()
        threads = str(max(1, cores() // self._parallel))
        environment = os.environ | {"OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads}
        process = subprocess.Popen([sys.executable, *command], pass_fds=[self._lock], env=environment)
        self._running[process] = ended

    def wait(self) -> None:
        """Wait for all commands; raises as :meth:`run` does."""
        while self._running:
            self._collect()

    def _collect(self) -> None:
        """Wait a moment for the commands that run, and report those that have ended."""
        if self._interrupted:
            raise KeyboardInterrupt
        for process, ended in list(self._running.items()):
            if process.poll() is not None:
                del self._running[process]
                ended(process.returncode)
        time.sleep(_POLL)

    def _interrupt(self, number: int, frame: object) -> None:
        self._interrupted = True
        self._stop()

    def _stop(self) -> None:
        for process in self._running:
            process.send_signal(signal.SIGTERM)


def shortened(table: Table) -> Table:
    """The table for a trial: two steps, two parts, one learning rate, two pictures for each evaluation during the training."""
    settings = {**table.settings, "steps": 2, "eval_limit": 2}
    return replace(
        table, settings=settings, parts=table.parts[:2], choosing=table.parts[0], rates=table.rates[:1], evaluations=2
    )
