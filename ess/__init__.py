"""Embedding-based scalable segmentation: more than a thousand classes on a single GPU.

``ess.Predictor`` and the losses are importable from here; they load torch when they are first asked for.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Predictor": "ess.inference.predictor",
    "exact_cross_entropy": "ess.losses.cross_entropy",
    "knn_cross_entropy": "ess.losses.cross_entropy",
    "margin_penalty": "ess.losses.cross_entropy",
}

__all__ = ["Predictor", "exact_cross_entropy", "knn_cross_entropy", "margin_penalty"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
