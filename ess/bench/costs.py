"""What a training step and a prediction cost, ours beside the dense baseline, and how fast batches come; a process each."""

import math
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import torch

from cocolvis.errors import DataError
from cocolvis.memory import keep_freed_memory
from cocolvis.pictures.encoded import decode_rgb
from cocolvis.storage.dataset import Dataset
from ess.config import Config
from ess.data.batches import Batch
from ess.data.loader import training_batches, training_split
from ess.data.transforms import normalize
from ess.device import choose_device, explain_out_of_memory
from ess.models.network import SegmentationModel, model_from_config
from ess.training import team as teams
from ess.training.loop import optimise
from ess.training.objective import Objective
from ess.training.state import make_optimizer


class Protocol(NamedTuple):
    """A row of the paper's Table 1: the size of its pictures, and seconds (ours, dense) an iteration and an image."""

    height: int
    width: int
    train: tuple[float, float]
    predict: tuple[float, float]


PAPER = {
    19: Protocol(1024, 2048, (5.34, 4.94), (0.233, 0.195)),
    150: Protocol(512, 512, (4.80, 3.01), (0.026, 0.023)),
    1284: Protocol(512, 512, (5.06, 4.20), (0.036, 0.049)),
}
"""Classes -> what the paper measured: Cityscapes, ADE20K, COCO+LVIS; DeepLabV3+ with ResNet-50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement, of "train" or "predict"; it lasts ``seconds`` or longer, after one turn that does not count.

    The contestants: "ours" is the embedding model, "dense" has one output a class, "network" is ours without a loss.
    """

    what: str
    contestant: str
    classes: int
    height: int
    width: int
    batch_size: int
    config: Config
    seconds: float

    def least_bytes(self) -> int:
        """What the logits of a dense head need: with softmax and gradient three times over in training; else 0."""
        copies = {"train": 3, "predict": 1}[self.what] if self.contestant == "dense" else 0
        return copies * 4 * self.batch_size * self.classes * self.height * self.width


def label_blocks(images: int, height: int, width: int, classes: int) -> torch.Tensor:
    """(B, H, W) labels 0..C-1, int16 or for many classes int32, in blocks of 32 x 32, a twentieth of them ignored (-1)."""
    rows, columns = math.ceil(height / 32), math.ceil(width / 32)
    blocks = torch.randint(classes, (images, rows, columns)).masked_fill(torch.rand(images, rows, columns) < 0.05, -1)
    blocks = blocks.to(torch.int16 if classes <= 2**15 else torch.int32)
    return blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width].contiguous()


def measure(case: Case) -> dict[str, float]:
    """{"seconds", "peak_bytes"} of a case in a fresh process; {"needs_bytes"} or {"failed"} where memory is not enough."""
    on_cpu = choose_device(case.config.device).type == "cpu"
    free = _available() if on_cpu else None
    if on_cpu and case.least_bytes() > free:
        return {"needs_bytes": case.least_bytes()}
    return _in_a_process(_measured, case, free)


def _measured(case: Case, limit: int | None) -> dict[str, float]:
    """:func:`measure` in this process, which once it has a model gets ``limit`` bytes of memory and no more."""
    try:
        with explain_out_of_memory("a smaller --batch-size or --crop needs less"):
            return _timed(case, choose_device(case.config.device), limit)
    except DataError as error:
        if not str(error).startswith("out of memory"):
            raise
        return {"failed": str(error)}


def _timed(case: Case, device: torch.device, limit: int | None) -> dict[str, float]:
    torch.manual_seed(0)
    config = replace(case.config, loss="dense") if case.contestant == "dense" else case.config
    model = model_from_config(config, case.classes, weights=None)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    turn = turn_of(case, model, config, device)
    turn()
    spent: list[float] = []
    while not spent or sum(spent) < case.seconds:
        _wait(device)
        start = time.perf_counter()
        turn()
        _wait(device)
        spent.append(time.perf_counter() - start)
    return {"seconds": median(spent), "peak_bytes": _peak(device)}


def turn_of(case: Case, model: SegmentationModel, config: Config, device: torch.device) -> Callable[[], Any]:
    """What is measured: a prediction, or a step as the trainer makes it, on one batch of noise that lies on the device."""
    shape = (case.batch_size, case.height, case.width)
    images = torch.randint(256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
    if case.what == "predict":
        model, images = model.to(device).eval(), normalize(images.to(device))
        return lambda: model.predict(images)
    batch = Batch(images.to(device), label_blocks(*shape, case.classes).to(device), torch.arange(case.batch_size))
    team = teams.join(replace(config, track="none", batch_size=case.batch_size), Path())
    objective = Objective(model, config).to(device).train()
    optimizer = make_optimizer(model, config)
    if case.contestant == "network":
        objective.forward = lambda batch: (model(normalize(batch.images)).sum(), torch.zeros((), device=device))
    objective, optimizer = team.prepare(objective, optimizer)
    return lambda: optimise(team, objective, optimizer, batch)


def largest(fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number that fits, by doubling from ``least`` and then bisecting; 0 where not even that does."""
    if not fits(least):
        return 0
    low = least
    while fits(2 * low):
        low *= 2
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def compare(
    what: str,
    classes: int,
    config: Config,
    *,
    crop: int | None = None,
    batch_size: int | None = None,
    seconds: float = 1.0,
    rounds: int = 3,
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Ours beside the dense baseline, in "train" or "predict", over so many classes; the contestants take turns.

    ``crop`` None is the paper's size for so many classes. ``batch_size`` None is the largest that fits a GPU, 2 on the CPU;
    predictions are of one image. Each contestant has {"seconds", "peak_bytes", "batch_size"}, medians over the rounds, or says
    why not; "ratio" is ours / dense by seconds, "ratio_per_image" by seconds an image, "beyond_network" the share of our step
    that the loss and its way back take, "paper_ratio" what the paper has; None where there is nothing to compare.
    """
    cases = _cases(what, classes, config, crop, batch_size, seconds)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            if not found[name] or "seconds" in found[name][-1]:
                found[name].append(measure(case) if case.batch_size else {"failed": "not even two images fit"})
        progress()
    ratio, network = _ratio(found, "ours", "dense"), _ratio(found, "network", "ours")
    theirs = getattr(PAPER[classes], what) if classes in PAPER else None
    return {
        "classes": classes,
        "height": cases["ours"].height,
        "width": cases["ours"].width,
        **{name: _medians(rows) | {"batch_size": cases[name].batch_size} for name, rows in found.items()},
        "ratio": ratio,
        "ratio_per_image": ratio and ratio * cases["dense"].batch_size / cases["ours"].batch_size,
        "beyond_network": network and 1 - network,
        "paper_ratio": theirs and theirs[0] / theirs[1],
    }


def _cases(
    what: str, classes: int, config: Config, crop: int | None, batch_size: int | None, seconds: float
) -> dict[str, Case]:
    """The contestants' cases by name, those that train at their batch sizes: 0 where nothing fits."""
    paper = PAPER.get(classes)
    height, width = (crop, crop) if crop else (paper.height, paper.width) if paper else (512, 512)
    sizes = {"classes": classes, "height": height, "width": width, "batch_size": 1}
    ours = Case(what=what, contestant="ours", config=config, seconds=seconds, **sizes)
    dense = replace(ours, contestant="dense")
    if what == "predict":
        return {"ours": ours, "dense": dense}
    ours, dense = (replace(case, batch_size=batch_size or _most_images(case)) for case in (ours, dense))
    return {"network": replace(ours, contestant="network"), "ours": ours, "dense": dense}


def _most_images(case: Case) -> int:
    """The largest batch of a GPU, two at least because BatchNorm cannot train on one, or 0; on the CPU 2."""
    if choose_device(case.config.device).type == "cpu":
        return 2
    return largest(lambda images: "seconds" in measure(replace(case, batch_size=images, seconds=0.0)), 2)


def loading(folder: Path, config: Config, *, seconds: float = 5.0, rounds: int = 3) -> dict[str, float]:
    """Augmented crops a second from ``config.workers`` processes, beside decoding the JPEGs alone in one; medians of rounds.

    "share" is the crops a second, divided by workers times decodes a second.
    """
    rows = []
    for _ in range(rounds):
        rows.append([_in_a_process(work, folder, config, seconds) for work in (_decodes, _crops)])
    decodes, crops = (median(column) for column in zip(*rows, strict=True))
    workers = max(1, config.workers)
    share = median(crop / (decode * workers) for decode, crop in rows)
    return {"workers": workers, "crops_per_second": crops, "decodes_per_second": decodes, "share": share}


def _decodes(folder: Path, config: Config, seconds: float) -> float:
    """Pictures a second that one process decodes."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    split = Dataset.open(folder).split("train")
    pictures = [split[index].content for index in range(min(len(split), 200))]
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        decode_rgb(pictures[count % len(pictures)])
        count += 1
    return count / (time.perf_counter() - start)


def _crops(folder: Path, config: Config, seconds: float) -> float:
    """Crops a second that the loader gives to a process that does nothing else, once its processes are under way."""
    with closing(training_batches(training_split(Dataset.open(folder), config), config, 2**40)) as batches:
        for _ in range(1 + 2 * config.workers):
            next(batches)
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            count += len(next(batches).ids)
        return count / (time.perf_counter() - start)


def _medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure over the rounds, or what the last one says of its failure."""
    return {name: median(row[name] for row in rows) for name in rows[0]} if "seconds" in rows[-1] else rows[-1]


def _ratio(found: dict[str, list[dict[str, Any]]], one: str, other: str) -> float | None:
    """The median over the rounds of one's seconds / the other's; None where either could not be measured."""
    if not all("seconds" in found.get(name, [{}])[-1] for name in (one, other)):
        return None
    return median(a["seconds"] / b["seconds"] for a, b in zip(found[one], found[other], strict=True))


def _in_a_process(work: Callable, *arguments: Any) -> Any:
    """What ``work`` returns in a process of its own that has done nothing before; {"failed"} where that is killed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(work, *arguments).result()
        except BrokenProcessPool:
            return {"failed": "its process was killed, most likely for its memory"}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    """The most bytes that were in use: of a GPU's memory by tensors, of a CPU's by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _kilobytes("/proc/self/status", "VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _available() -> int:
    """Bytes of memory that a new process can have; a guess where the system does not say."""
    return _kilobytes("/proc/meminfo", "MemAvailable") or 8 << 30


def _kilobytes(file: str, field: str) -> int:
    """A field of a file of the Linux kernel that counts in kB, in bytes; 0 where there is no such file."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
