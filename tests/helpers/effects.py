"""Which tests check what a setting does; and a network so small that a whole training takes almost no time.

A test of tests/settings/test_settings_*.py names the settings that it checks: ``@changes("flip")`` if a setting changes a
step, ``@harmless("workers")`` if it must not. tests/settings/test_settings.py requires each setting in exactly one of the two
tables.
"""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from runs import config
from torch import nn

from ess.checkpoint import Run
from ess.config import Config
from ess.models.network import SegmentationModel
from ess.training import loop as training

CHANGING: dict[str, list[Callable]] = {}
"""Setting -> the tests that check that it changes a step: its loss, gradient, batch, rates, result or length."""

HARMLESS: dict[str, list[Callable]] = {}
"""Setting -> the tests that check that it takes effect without changing weights and losses."""

CPU = torch.device("cpu")


def changes(*settings: str) -> Callable:
    """Mark a test that fails when one of these settings no longer changes a step as it should."""
    return _noted(CHANGING, settings)


def harmless(*settings: str) -> Callable:
    """Mark a test that fails when one of these settings has no effect, or changes a step."""
    return _noted(HARMLESS, settings)


def _noted(table: dict[str, list[Callable]], settings: tuple[str, ...]) -> Callable:
    def note(test: Callable) -> Callable:
        for name in settings:
            table.setdefault(name, []).append(test)
        return test

    return note


def tiny(config: Config, classes: int, *, weights=None) -> SegmentationModel:
    """Replaces :func:`model_from_config`: encoder and decoder are a convolution each, with the layers that settings affect."""
    dim = None if config.loss == "dense" else config.dim
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    decoder = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Conv2d(8, dim or classes, 1))
    normalize = None if config.normalize == "none" else config.normalize
    return SegmentationModel(encoder, decoder, classes, dim, normalize=normalize, distance=config.distance, multiple=4)


def trained(dataset, folder, resume: bool = False, **settings) -> Run:
    """A training on the CPU without curves; of :func:`tiny` if the test has replaced the real networks by it."""
    return training.train(dataset, folder, config(**{"device": "cpu", "track": "none"} | settings), resume=resume)


class Steps(list):
    """Replaces :func:`ess.training.loop.optimise` by steps that compute nothing; a list of the arguments of each.

    ``move(model)`` may change the weights, or end the run by an exception.
    """

    def __init__(self, monkeypatch, move: Callable = lambda model: None):
        super().__init__()
        self._move = move
        monkeypatch.setattr(training, "model_from_config", tiny)
        monkeypatch.setattr(training, "optimise", self._step)

    def _step(self, team, objective, optimizer, batch, accumulate, clip_norm, guard) -> torch.Tensor:
        groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        members = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
        self.append(
            SimpleNamespace(
                team=team,
                objective=objective,
                optimizer=optimizer.optimizer,
                groups=groups,
                members=members,
                batch=batch,
                accumulate=accumulate,
                clip_norm=clip_norm,
                random=torch.rand(1).item(),
            )
        )
        with torch.no_grad():
            self._move(objective.model)
        return torch.zeros(())
