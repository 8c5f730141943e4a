"""Compares the time and memory of our training steps and predictions with the dense baseline, each in its own process."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from cocolvis.errors import DataError
from ess.bench.process import Failed, available_bytes, in_fresh_process, peak_bytes
from ess.config import Config
from ess.data.batches import Batch, FeatureBatch
from ess.data.transforms import normalize
from ess.device import choose_device, explain_out_of_memory
from ess.models.network import SegmentationModel, model_from_config
from ess.training import machine
from ess.training import team as teams
from ess.training.objective import Objective
from ess.training.state import make_optimizer
from ess.training.step import optimise


class Protocol(NamedTuple):
    """A row of the paper's Table 1: the size of its pictures, and seconds (ours, dense) per iteration and per image."""

    height: int
    width: int
    train: tuple[float, float]
    predict: tuple[float, float]


PAPER = {
    19: Protocol(1024, 2048, (5.34, 4.94), (0.233, 0.195)),
    150: Protocol(512, 512, (4.80, 3.01), (0.026, 0.023)),
    1284: Protocol(512, 512, (5.06, 4.20), (0.036, 0.049)),
}
"""Number of classes -> the measurements of the paper: Cityscapes, ADE20K, COCO+LVIS; DeepLabV3+ with ResNet-50."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement of "train" or "predict" that lasts at least ``seconds``, after one turn that is not counted.

    The contestants: "ours" is the embedding model, "dense" has one output per class, "network" is ours without a loss.
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
        """The memory of a dense head's logits, three times that in training (softmax and gradient); 0 for the others."""
        copies = {"train": 3, "predict": 1}[self.what] if self.contestant == "dense" else 0
        return copies * 4 * self.batch_size * self.classes * self.height * self.width


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step or a prediction, and the largest memory in use; or medians of both over some rounds."""

    seconds: float
    peak_bytes: float


@dataclass(frozen=True, slots=True)
class TooLarge:
    """A case that was not tried because its logits alone need more memory than is available."""

    needs_bytes: int


Measurement = Cost | TooLarge | Failed


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours compared with the dense baseline for one number of classes; a ratio is None if one of the two was not measured.

    ``measured`` holds (measurement, batch size) by contestant. ``ratio`` is ours / dense in seconds, ``ratio_per_image`` in
    seconds per image, ``beyond_network`` the share of our step that the loss and its gradient take, ``paper_ratio`` the
    paper's.
    """

    classes: int
    height: int
    width: int
    measured: dict[str, tuple[Measurement, int]]
    ratio: float | None
    ratio_per_image: float | None
    beyond_network: float | None
    paper_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name, with an object for each contestant."""
        measured = {name: asdict(measurement) | {"batch_size": size} for name, (measurement, size) in self.measured.items()}
        ratios = ("ratio", "ratio_per_image", "beyond_network", "paper_ratio")
        sizes = {"classes": self.classes, "height": self.height, "width": self.width}
        return sizes | measured | {name: getattr(self, name) for name in ratios}


def label_blocks(images: int, height: int, width: int, classes: int) -> torch.Tensor:
    """(B, H, W) random labels 0..C-1 in blocks of 32 x 32, a twentieth of them ignored (-1); int16, int32 for many classes."""
    rows, columns = math.ceil(height / 32), math.ceil(width / 32)
    blocks = torch.randint(classes, (images, rows, columns)).masked_fill(torch.rand(images, rows, columns) < 0.05, -1)
    blocks = blocks.to(torch.int16 if classes <= 2**15 else torch.int32)
    return blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :height, :width].contiguous()


def measure(case: Case) -> Measurement:
    """Measure a case in a fresh process."""
    limit = available_bytes() if choose_device(case.config.device).type == "cpu" else None
    if limit is not None and case.least_bytes() > limit:
        return TooLarge(case.least_bytes())
    return in_fresh_process(_measure_here, case, limit)


def _measure_here(case: Case, limit: int | None) -> Cost | Failed:
    """:func:`measure` in this process. Once the model exists, the process can use at most ``limit`` bytes of memory."""
    try:
        with explain_out_of_memory("a smaller --batch-size or --crop needs less"):
            return _time_turns(case, choose_device(case.config.device), limit)
    except DataError as error:
        if not str(error).startswith("out of memory"):
            raise
        return Failed(str(error))


def _time_turns(case: Case, device: torch.device, limit: int | None) -> Cost:
    torch.manual_seed(0)
    config = replace(case.config, loss="dense") if case.contestant == "dense" else case.config
    config = machine.resolved(config, device)
    model = model_from_config(config, case.classes, weights=None)
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    turn = turn_of(case, model, config, device)
    with machine.switched(machine.in_force(config, device)):
        turn()
        spent: list[float] = []
        while not spent or sum(spent) < case.seconds:
            _wait(device)
            start = time.perf_counter()
            turn()
            _wait(device)
            spent.append(time.perf_counter() - start)
    return Cost(median(spent), peak_bytes(device))


def turn_of(case: Case, model: SegmentationModel, config: Config, device: torch.device) -> Callable[[], Any]:
    """A function to be timed: a prediction, or a step like that of the trainer, on a batch of noise on the device."""
    shape = (case.batch_size, case.height, case.width)
    pixels = torch.randint(256, (shape[0], 3, *shape[1:]), dtype=torch.uint8)
    if case.what == "predict":
        model, images = model.to(device).eval(), normalize(pixels.to(device))
        return lambda: model.predict(images)
    batch = Batch(pixels.to(device), label_blocks(*shape, case.classes).to(device), torch.arange(case.batch_size))
    team = teams.join(replace(config, track="none", batch_size=case.batch_size), Path())
    objective = (_NetworkAlone if case.contestant == "network" else Objective)(model, config).to(device).train()
    fused = machine.in_force(config, device).fused
    wrapped, optimizer = team.prepare(objective, make_optimizer(model, config, objective.log_temperature, fused=fused))
    return lambda: optimise(team, wrapped, optimizer, batch)


class _NetworkAlone(Objective):
    """An objective without a loss: the sum of the network's outputs, which costs almost nothing."""

    def forward(self, batch: Batch | FeatureBatch) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._output(batch)
        return output.sum(), output.new_zeros(())


def largest(fits: Callable[[int], bool], least: int = 1) -> int:
    """The largest number that fits, found by doubling from ``least`` and then bisecting; 0 if ``least`` does not fit."""
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
) -> Comparison:
    """Compare ours with the dense baseline, in "train" or "predict", for this number of classes; medians over the rounds.

    The contestants take turns. ``crop`` None is the paper's size for this number of classes. ``batch_size`` None is the largest
    that fits a GPU, and 2 on the CPU; predictions are of one image.
    """
    cases = _cases(what, classes, config, crop, batch_size, seconds)
    measurements: dict[str, list[Measurement]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            if not measurements[name] or isinstance(measurements[name][-1], Cost):
                measurements[name].append(measure(case) if case.batch_size else Failed("not even two images fit"))
        progress()
    ratio, network = _ratio(measurements, "ours", "dense"), _ratio(measurements, "network", "ours")
    theirs = getattr(PAPER[classes], what) if classes in PAPER else None
    return Comparison(
        classes,
        cases["ours"].height,
        cases["ours"].width,
        {name: (_median(rows), cases[name].batch_size) for name, rows in measurements.items()},
        ratio=ratio,
        ratio_per_image=ratio and ratio * cases["dense"].batch_size / cases["ours"].batch_size,
        beyond_network=network and 1 - network,
        paper_ratio=theirs and theirs[0] / theirs[1],
    )


def _cases(
    what: str, classes: int, config: Config, crop: int | None, batch_size: int | None, seconds: float
) -> dict[str, Case]:
    """The contestants' cases by name; in training with their batch sizes, 0 if not even two images fit."""
    paper = PAPER.get(classes)
    height, width = (crop, crop) if crop else (paper.height, paper.width) if paper else (512, 512)
    ours = Case(
        what=what,
        contestant="ours",
        classes=classes,
        height=height,
        width=width,
        batch_size=1,
        config=config,
        seconds=seconds,
    )
    dense = replace(ours, contestant="dense")
    if what == "predict":
        return {"ours": ours, "dense": dense}
    ours, dense = (replace(case, batch_size=batch_size or _most_images(case)) for case in (ours, dense))
    return {"network": replace(ours, contestant="network"), "ours": ours, "dense": dense}


def _most_images(case: Case) -> int:
    """The largest batch that fits a GPU, or 0 if two images do not fit (BatchNorm cannot train on one); 2 on the CPU."""
    if choose_device(case.config.device).type == "cpu":
        return 2
    return largest(lambda images: isinstance(measure(replace(case, batch_size=images, seconds=0.0)), Cost), 2)


def _median(rounds: list[Measurement]) -> Measurement:
    """The median of each figure over the rounds, or the failure that ended them."""
    costs = [measurement for measurement in rounds if isinstance(measurement, Cost)]
    if len(costs) < len(rounds):
        return rounds[-1]
    return Cost(median(cost.seconds for cost in costs), median(cost.peak_bytes for cost in costs))


def _ratio(measurements: dict[str, list[Measurement]], one: str, other: str) -> float | None:
    """The median over the rounds of one's seconds / the other's; None if either could not be measured."""
    ones, others = measurements.get(one, []), measurements.get(other, [])
    pairs = zip(ones, others, strict=False)
    ratios = [a.seconds / b.seconds for a, b in pairs if isinstance(a, Cost) and isinstance(b, Cost)]
    return median(ratios) if ratios and len(ratios) == len(ones) == len(others) else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
