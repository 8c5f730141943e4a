"""One job in this process: a training, its evaluation on pictures, and what they cost."""

import hashlib
import logging
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from cocolvis.disk.files import read_json, write_json
from cocolvis.limits import cores
from cocolvis.progress import Progress
from cocolvis.storage.dataset import Dataset
from ess.bench.process import peak_bytes
from ess.checkpoint import Run
from ess.config import Config
from ess.evaluation.boundary import DISTANCE, boundary_counts
from ess.evaluation.evaluate import image_indices, predictions
from ess.evaluation.metrics import Confusion
from ess.evaluation.picture_counts import PictureCounts
from ess.inference.predictor import Predictor
from ess.training.loop import train

CLOSE = 0.95
"""The share of the last mIoU at which a training counts as nearly finished."""

_PACKAGES = ("cocolvis-ess", "torch", "numpy", "numba", "timm")


def trained_and_scored(
    dataset: Dataset, folder: Path, config: Config, split: str, progress: Progress, cache: Path | None = None
) -> dict[str, Any]:
    """Train on the split "train" of a data set, evaluate on ``split``, and return everything that the tables need.

    ``folder`` receives the run; a run that is already there is continued. The split "val" must be part of the training
    pictures: it is scored during the training. ``cache`` is the folder of the features of a frozen encoder.
    """
    run, cost = _train(dataset, folder, config, {} if cache is None else {"cache_features": cache})
    curve = _curve(run)
    scored = score(Predictor.from_run(run.folder, config.device), dataset, split, progress)
    cost["peak_bytes"] = max(cost["peak_bytes"], peak_bytes(torch.device("cpu")))
    reached = {"curve": curve, "steps_to_95": steps_to(curve, CLOSE)}
    return {**cost, **reached, **scored, "machine": machine(), "versions": versions()}


def _train(dataset: Dataset, folder: Path, config: Config, how: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """The finished run in a folder, with {"seconds_per_step", "peak_bytes"} of the process that made its last steps."""
    measured = folder / "measured.json"
    if measured.exists():
        return Run.open(folder / "run"), read_json(measured)
    found = Run.find(folder / "run")
    if found and found.listed()[-1].step == config.steps:  # killed before the measurements were written
        shutil.rmtree(folder / "run")
    elif found:
        config = replace(config, weights=found.config.weights)  # the file may have moved; the identity has its digest
    pace = Pace()
    log = logging.getLogger("ess")
    log.setLevel(logging.INFO)
    log.addHandler(pace)
    run = train(dataset, folder / "run", config, resume=True, **how)
    cost = {"seconds_per_step": config.batch_size / pace.images_per_second(), "peak_bytes": peak_bytes(torch.device("cpu"))}
    write_json(measured, cost)
    return run, cost


class Pace(logging.Handler):
    """Reads the speed of a training from the lines of its log, which leave out the time of evaluations."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._speeds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note the speed in a line such as "step 20/100  loss 1.2345  lr 0.01  31.4 images/s  ETA 0:00:20"."""
        head, images, _ = str(record.msg).partition(" images/s")
        if images and isinstance(record.args, tuple):
            self._speeds.append(float(record.args[head.count("%") - 1]))  # type: ignore[arg-type]

    def images_per_second(self) -> float:
        """The median speed."""
        return median(self._speeds)


def score(predictor: Predictor, dataset: Dataset, split: str, progress: Progress) -> dict[str, Any]:
    """The scores on a split, its accuracies near boundaries and elsewhere, and the counts of each picture."""
    total = Confusion(len(dataset.vocabulary))
    boundary, counts, digests = np.zeros((2, 2), np.int64), {}, {}
    indices = image_indices(dataset, split)
    for image in predictions(predictor, dataset, split=split, indices=indices, progress=progress):
        confusion = Confusion(total.classes)
        confusion.update(image.labels, image.prediction)
        total += confusion
        boundary += boundary_counts(image.labels, image.prediction)
        counts[image.image_id] = confusion.pixels.numpy()
        labels = np.ascontiguousarray(image.labels.astype("<i4"))
        digests[image.image_id] = hashlib.sha256(f"{image.image_id} {labels.shape} ".encode() + labels.tobytes()).hexdigest()
    return {
        "split": split,
        "scores": total.summary([c.group for c in dataset.vocabulary]),
        "boundary": {"distance": DISTANCE, "near": boundary[0].tolist(), "elsewhere": boundary[1].tolist()},
        "labels_sha256": hashlib.sha256("".join(digests[key] for key in sorted(digests)).encode()).hexdigest(),
        "pictures": PictureCounts.of(total.classes, counts).to_json(),
    }


def _curve(run: Run) -> list[tuple[int, float]]:
    """(step, mIoU on the split "val") of each evaluation during the training."""
    return [(checkpoint.step, checkpoint.miou) for checkpoint in run.listed() if checkpoint.scores is not None]


def steps_to(curve: list[tuple[int, float]], share: float) -> int | None:
    """The first step of a curve with at least this share of its last mIoU; None if nothing was learnt."""
    if not curve or curve[-1][1] <= 0:
        return None
    return next(step for step, miou in curve if miou >= share * curve[-1][1])


def machine() -> dict[str, Any]:
    """The processor, the number of cores that this process may use, the number that it uses, and the memory."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kilobytes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": next(iter(names), platform.processor() or "unknown"),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": next(iter(kilobytes), 0) * 1024,
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages that decide the results."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
