"""Compares the time and memory of our training steps and predictions with the dense baseline, each in its own process."""

import gc
import math
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from cocolvis.text import one_line
from ess.bench.process import Failed, available_bytes, in_fresh_process, peak_bytes
from ess.config import Config
from ess.data.batches import Batch, FeatureBatch
from ess.data.transforms import normalize
from ess.device import OutOfMemory, choose_device, explain_out_of_memory
from ess.models.build import model_from_config
from ess.models.network import SegmentationModel
from ess.models.prediction import for_prediction
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


POINTS = 12_544
"""The points per image of the contestant "points", as in Mask2Former."""

EPOCHS, IMAGES = 40, 100_170
"""The length of the paper's training on COCO+LVIS, and the number of training images of LVIS."""


_COARSEST = 8
"""The coarsest resolution of a decoder's output, in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement of "train" or "predict" that lasts at least ``seconds``, after one turn that is not counted.

    The contestants: "ours" is the embedding model, "network" is ours without a loss, "dense" has one output per class, and
    "points" is dense with the loss at some points of each image.
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
        """The memory of a dense head's logits, three times that in training (softmax and gradient); 0 for the others.

        Training on a GPU needs them at full resolution, everything else at that of the decoder, at least an eighth of it.
        """
        copies = {"train": 3, "predict": 1}[self.what] if self.contestant == "dense" else 0
        resized = self.what == "train" and choose_device(self.config.device).type == "cuda"
        pixels = self.height * self.width // (1 if resized else _COARSEST**2)
        return copies * 4 * self.batch_size * self.classes * pixels // self.config.accumulate

    def settings(self) -> Config:
        """The settings of the contestant."""
        if self.contestant not in ("dense", "points"):
            return self.config
        return replace(self.config, loss="dense", points=POINTS if self.contestant == "points" else None)


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

    ``what`` is "train" or "predict". ``measured`` holds (measurement, batch size) by contestant. ``ratio`` is ours / dense in
    seconds, ``ratio_per_image`` in seconds per image, ``beyond_network`` the share of our step that the loss and its gradient
    take, ``paper_ratio`` the paper's.
    """

    what: str
    classes: int
    height: int
    width: int
    measured: dict[str, tuple[Measurement, int]]
    ratio: float | None
    ratio_per_image: float | None
    beyond_network: float | None
    paper_ratio: float | None

    def to_json(self) -> dict[str, Any]:
        """The figures by name, with an object for each contestant, and in training the hours of 40 epochs of COCO+LVIS."""
        measured: dict[str, dict[str, Any]] = {}
        for name, (measurement, size) in self.measured.items():
            measured[name] = asdict(measurement) | {"batch_size": size}
            if isinstance(measurement, Cost):
                measured[name]["images_per_second"] = rate = size / measurement.seconds
                if self.what == "train":
                    measured[name]["hours_coco_lvis"] = EPOCHS * IMAGES / rate / 3600
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
    """:func:`measure` in this process. Once the model exists, the process can use at most ``limit`` bytes of memory.

    Any RuntimeError is a failure of the case: a batch that is too large for a kernel or a library has many messages.
    """
    try:
        with explain_out_of_memory("a smaller --batch-size or --crop needs less"):
            return _time_turns(case, choose_device(case.config.device), limit)
    except (OutOfMemory, RuntimeError) as error:
        return Failed(one_line(error))


def _time_turns(case: Case, device: torch.device, limit: int | None) -> Cost:
    torch.manual_seed(0)
    config = machine.resolved(case.settings(), device)
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
        model, images = for_prediction(model, device), normalize(pixels.to(device))
        return lambda: model.predict(images)
    batch = Batch(pixels.to(device), label_blocks(*shape, case.classes).to(device), torch.arange(case.batch_size))
    team = teams.join(replace(config, track="none", batch_size=case.batch_size), Path())
    objective = (_NetworkAlone if case.contestant == "network" else Objective)(model, config).to(device).train()
    fused = machine.in_force(config, device).fused
    wrapped, optimizer = team.prepare(objective, make_optimizer(model, config, objective.log_temperature, fused=fused))
    return lambda: optimise(team, wrapped, optimizer, batch, config.accumulate)


class _NetworkAlone(Objective):
    """An objective without a loss: the sum of the network's outputs, which costs almost nothing."""

    def forward(self, batch: Batch | FeatureBatch) -> tuple[torch.Tensor, torch.Tensor]:
        output = self._output(batch)
        return output.sum(), output.new_zeros(())


def largest(fits: Callable[[int], bool], least: int = 1, until: float = math.inf) -> int:
    """The largest number that fits, found by doubling from ``least`` and then bisecting; 0 if ``least`` does not fit.

    It is exact up to 31 and then to a sixteenth, or the largest that was found ``until`` a time of the monotonic clock.
    """
    if not fits(least):
        return 0
    low = least
    while time.monotonic() < until and fits(2 * low):
        low *= 2
    high = 2 * low
    while time.monotonic() < until and high - low > max(1, low // 16):
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
    until: float = math.inf,
    progress: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare ours with the dense baseline, in "train" or "predict", for this number of classes; medians over the rounds.

    The contestants take turns; no round after the first starts later than ``until``, a time of the monotonic clock. ``crop``
    None is the paper's size for this number of classes. ``batch_size`` None is the largest that is found to fit a GPU until
    then, and 2 parts of a step on the CPU; predictions are of one image.
    """
    cases = _cases(what, classes, config, crop, batch_size, seconds, until)
    measurements: dict[str, list[Measurement]] = {name: [] for name in cases}
    for done in range(rounds):
        if done and time.monotonic() > until:
            break
        for name, case in cases.items():
            if not measurements[name] or isinstance(measurements[name][-1], Cost):
                measurements[name].append(measure(case))
        progress()
    ratio, network = _ratio(measurements, "ours", "dense"), _ratio(measurements, "network", "ours")
    theirs = getattr(PAPER[classes], what) if classes in PAPER else None
    return Comparison(
        what,
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
    what: str, classes: int, config: Config, crop: int | None, batch_size: int | None, seconds: float, until: float
) -> dict[str, Case]:
    """The contestants' cases by name; in training with their batch sizes, whose searches share the time ``until`` equally."""
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

    def filled(case: Case, left: int) -> Case:
        now = time.monotonic()
        return replace(case, batch_size=batch_size or _most_images(case, now + (until - now) / left))

    ours, dense, points = map(filled, (ours, dense, replace(ours, contestant="points")), (3, 2, 1))
    return {"ours": ours, "network": replace(ours, contestant="network"), "dense": dense, "points": points}


def _most_images(case: Case, until: float) -> int:
    """The largest batch that is found to fit a GPU ``until`` a time of the monotonic clock, which all processes share.

    These are two images per part of a step, which BatchNorm needs, on the CPU and if not even those fit.
    """
    least = 2 * case.config.accumulate
    if choose_device(case.config.device).type == "cpu":
        return least
    found = in_fresh_process(most_images_here, case, until)
    return least if isinstance(found, Failed) else max(least, found)


def most_images_here(case: Case, until: float) -> int:
    """The result of :func:`_most_images` on a GPU, in this process; 0 if nothing fits."""
    parts = case.config.accumulate

    def fits(images: int) -> bool:
        found = _measure_here(replace(case, batch_size=images * parts, seconds=0.0), None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return isinstance(found, Cost)

    return parts * largest(fits, 2, until)


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
