"""Embedding-based scalable segmentation: more than a thousand classes on a single GPU.

Every name below is imported from its module on first use, so that ``import ess`` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ess.checkpoint import Checkpoint, Run
    from ess.config import Config, preset
    from ess.evaluation.evaluate import evaluate
    from ess.inference.predictor import Predictor
    from ess.inference.views import Inference
    from ess.losses.cross_entropy import dense_cross_entropy, exact_cross_entropy, knn_cross_entropy, margin_penalty
    from ess.losses.interpolated import interpolated_cross_entropy
    from ess.losses.neighbours import nearest
    from ess.models.build import build_model
    from ess.models.network import SegmentationModel
    from ess.training.loop import train

__all__ = [
    "Checkpoint",
    "Config",
    "Inference",
    "Predictor",
    "Run",
    "SegmentationModel",
    "build_model",
    "dense_cross_entropy",
    "evaluate",
    "exact_cross_entropy",
    "interpolated_cross_entropy",
    "knn_cross_entropy",
    "margin_penalty",
    "nearest",
    "preset",
    "train",
]

_MODULES = {
    "Checkpoint": "ess.checkpoint",
    "Config": "ess.config",
    "Inference": "ess.inference.views",
    "Predictor": "ess.inference.predictor",
    "Run": "ess.checkpoint",
    "SegmentationModel": "ess.models.network",
    "build_model": "ess.models.build",
    "dense_cross_entropy": "ess.losses.cross_entropy",
    "evaluate": "ess.evaluation.evaluate",
    "exact_cross_entropy": "ess.losses.cross_entropy",
    "interpolated_cross_entropy": "ess.losses.interpolated",
    "knn_cross_entropy": "ess.losses.cross_entropy",
    "margin_penalty": "ess.losses.cross_entropy",
    "nearest": "ess.losses.neighbours",
    "preset": "ess.config",
    "train": "ess.training.loop",
}
"""The module that defines each name; type checkers read the imports above instead, and report a name that is not there."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
