"""Computes the arithmetic, hours and memory of trainings on the real COCO+LVIS on one GPU, without training anything.

    python benchmarks/recipe.py [--preset paper-coco-lvis+exact ...] [--batch-size 8] [--json]

The network is traced on tensors without data. Every figure is therefore computed; `ess bench` measures those of a GPU.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import click
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ess.config import Config, load
from ess.models.build import model_from_config
from ess.models.network import SegmentationModel

IMAGES = 100_170
"""Images of LVIS v1's training split."""

CLASSES = 1284
PRESETS = ("coco-lvis", "paper-coco-lvis", "coco-lvis+convnext-upernet", "coco-lvis+dinov2-linear")

REACHED = (0.25, 0.5)
"""Shares of a GPU's peak arithmetic that trainings of such networks reach, low and high."""

_TRACED = 2
"""Images in the traced batch; BatchNorm cannot train on one."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU: its memory in GB, and its peak in TFLOP/s, without sparsity, by the precision of the network."""

    memory_gb: int
    float32: float
    bf16: float


GPUS = {
    "RTX 3090 24 GB": Gpu(24, 35.6, 71),
    "RTX 4090 24 GB": Gpu(24, 82.6, 165),
    "A100 80 GB": Gpu(80, 156, 312),
    "H100 80 GB": Gpu(80, 495, 989),
}
"""Peaks from NVIDIA's data sheets; float32 is TF32, which PyTorch uses for float32 convolutions."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A whole training with a preset: all figures are computed.

    ``step_tflop`` is the arithmetic of forward and backward of one step, ``images_gb`` and ``fixed_gb`` the memory that each
    image of a step needs (the tensors kept for the backward pass, and the largest tensors of the loss) and that of weights,
    gradients, optimiser and averages. ``batch_size`` is that of the preset; ``fits`` the largest batch by GPU, and ``hours``
    the (least, most) hours by GPU.
    """

    preset: str
    precision: str
    parameters: int
    batch_size: int
    steps: int
    step_tflop: float
    image_gb: float
    fixed_gb: float
    fits: dict[str, int]
    hours: dict[str, tuple[float, float]]


def estimate(preset: str, batch_size: int | None = None) -> Estimate:
    """Trace the network of a preset of COCO+LVIS and compute what its training costs."""
    config = load(preset, flags={"batch_size": batch_size} if batch_size else None)
    model = model_from_config(config, CLASSES, weights=None).train()
    flop, kept = _traced(model, config)
    trained = sum(p.numel() for name, group in model.parameter_groups().items() for p in group if _is_trained(name, config))
    passes = 3 if config.encoder_lr else 1  # a backward pass costs twice the forward pass
    step = passes * flop * config.batch_size
    steps = config.steps or (config.epochs or 0) * (IMAGES // config.batch_size)
    parameters = sum(p.numel() for p in model.parameters())
    states = 1 + (2 if config.optimizer == "adamw" else 1)  # gradient, and the optimiser's moments
    fixed = 4 * (parameters * (2 if config.ema else 1) + trained * states)
    image = kept + _loss_bytes(config)
    free = {name: 0.9 * gpu.memory_gb * 1e9 - fixed for name, gpu in GPUS.items()}
    peaks = {name: gpu.float32 if config.precision == "float32" else gpu.bf16 for name, gpu in GPUS.items()}
    return Estimate(
        preset=preset,
        precision=config.precision.replace("auto", "bf16"),  # as these GPUs choose
        parameters=parameters,
        batch_size=config.batch_size,
        steps=steps,
        step_tflop=step / 1e12,
        image_gb=image / 1e9,
        fixed_gb=fixed / 1e9,
        fits={name: int(left / image) for name, left in free.items()},
        hours={name: _hours(step * steps, peak) for name, peak in peaks.items()},
    )


def _is_trained(group: str, config: Config) -> bool:
    return group != "encoder" or config.encoder_lr > 0


def _hours(flop: float, peak: float) -> tuple[float, float]:
    """Hours at the high and at the low share of a peak in TFLOP/s."""
    least, most = (flop / (share * peak * 1e12) / 3600 for share in REACHED[::-1])
    return least, most


def _traced(model: SegmentationModel, config: Config) -> tuple[float, float]:
    """(FLOP of a forward pass, bytes that it keeps for the backward pass), each for one image."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = torch.empty(_TRACED, 3, config.crop, config.crop)
        with _kept_tensors(model) as kept, FlopCounterMode(display=False) as counter, _autocast(config):
            model(images)
    return counter.get_total_flops() / _TRACED, sum(kept.values()) / _TRACED


def _autocast(config: Config) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "float32")


@contextmanager
def _kept_tensors(model: SegmentationModel) -> Iterator[dict[int, int]]:
    """Collect the sizes in bytes of the storages that autograd keeps, weights apart, by their identity."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(storage)  # a storage that was freed could give its identity to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def _loss_bytes(config: Config) -> float:
    """The float32 tensors of a loss, for one image: embeddings and their gradient, or three times the logits of all points."""
    if config.loss != "dense":
        return 4 * config.crop**2 * 2 * config.dim
    return 4 * (config.points or config.crop**2) * 3 * CLASSES


def table(estimates: Sequence[Estimate]) -> str:
    """The estimates as a table in Markdown."""
    head = ["preset", "precision", "parameters", "TFLOP a step", "memory", *(f"hours on {name}" for name in GPUS)]
    rows = [head, ["---"] * len(head)]
    for one in estimates:
        memory = f"{one.fixed_gb:.1f} + {one.batch_size} x {one.image_gb:.2f} GB"
        hours = (f"{least:.2g} to {most:.2g}" + _advice(one, name) for name, (least, most) in one.hours.items())
        parameters = f"{one.parameters / 1e6:.0f} M"
        rows.append([f"`{one.preset}`", one.precision, parameters, f"{one.step_tflop:.1f}", memory, *hours])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _advice(one: Estimate, gpu: str) -> str:
    """How a step must be divided to fit a GPU."""
    parts = 1
    while one.fits[gpu] and -(-one.batch_size // parts) > one.fits[gpu]:
        parts += 1
    return "" if parts == 1 else f" (`--accumulate {parts}`)" if one.fits[gpu] else " (does not fit)"


@click.command(help=__doc__)
@click.option("--preset", "presets", multiple=True, default=PRESETS, show_default=True, help="Preset with variants.")
@click.option("--batch-size", type=click.IntRange(2), help="Images per step, instead of the preset's.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure.")
def main(presets: tuple[str, ...], batch_size: int | None, as_json: bool) -> None:
    """Print the estimates as a table in Markdown, or as JSON."""
    estimates = [estimate(preset, batch_size) for preset in presets]
    print(json.dumps([asdict(one) for one in estimates], indent=2) if as_json else table(estimates))


if __name__ == "__main__":
    main()
