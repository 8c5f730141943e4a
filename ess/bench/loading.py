"""Measures the speed of the loader relative to plain decoding of the pictures."""

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2

from cocolvis.errors import DataError
from cocolvis.memory import keep_freed_memory
from cocolvis.storage.dataset import Dataset
from ess.bench.process import Failed, in_fresh_process
from ess.config import Config
from ess.data.loader import processes, training_batches, training_split


@dataclass(frozen=True, slots=True)
class LoadingSpeed:
    """Augmented crops per second from ``workers`` processes, and pictures per second that one process decodes.

    ``share`` is crops per second / (workers * decodes per second).
    """

    workers: int
    crops_per_second: float
    decodes_per_second: float
    share: float

    def to_json(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def measure_loading(folder: Path, config: Config, *, seconds: float = 5.0, rounds: int = 3) -> LoadingSpeed:
    """Measure the loader with ``config.workers`` processes, and plain decoding in one process; medians over the rounds.

    Raises DataError if a process is killed, or if there are no pictures or one is damaged.
    """
    speeds = []
    for _ in range(rounds):
        decodes, crops = (in_fresh_process(work, folder, config, seconds) for work in (_decodes, _crops))
        if isinstance(decodes, Failed) or isinstance(crops, Failed):
            raise DataError("a process that measures the loader was killed, most likely for its memory; try fewer --workers")
        speeds.append((decodes, crops))
    workers = max(1, processes(config))
    return LoadingSpeed(
        workers,
        crops_per_second=median(crops for _, crops in speeds),
        decodes_per_second=median(decodes for decodes, _ in speeds),
        share=median(crops / (decodes * workers) for decodes, crops in speeds),
    )


def _decodes(folder: Path, config: Config, seconds: float) -> float:
    """Pictures per second that one process decodes."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    split = training_split(Dataset.open(folder), config)
    samples = [split[index] for index in range(min(len(split), 200))]
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        samples[count % len(samples)].image()
        count += 1
    return count / (time.perf_counter() - start)


def _crops(folder: Path, config: Config, seconds: float) -> float:
    """Crops per second that the loader delivers to an idle process, after its own processes have started."""
    with closing(training_batches(training_split(Dataset.open(folder), config), config, 2**40)) as batches:
        for _ in range(1 + 2 * processes(config)):
            next(batches)
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            count += len(next(batches).ids)
        return count / (time.perf_counter() - start)
