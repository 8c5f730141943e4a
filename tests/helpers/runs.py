"""Settings of small training runs, and comparisons of their checkpoints."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from ess.config import Config

SMALL = {
    "device": "cpu",
    "encoder": "mobilenetv2_100",
    "weights": "none",
    "crop": 48,
    "batch_size": 3,
    "workers": 0,
    "steps": 4,
    "save_every": 2,
}


def config(**settings) -> Config:
    """The settings of a run of four steps, with changes."""
    return Config(**{**SMALL, "epochs": None} | settings)


def flags(**settings) -> list[str]:
    """The same settings as arguments of ``ess train``."""
    given = {**SMALL, **settings}
    return [text for name, value in given.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def weights(folder: Path, step: int, name: str = "model") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint."""
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
