"""Which tests see what a setting does; and a network so small that a whole training takes no time.

A test of tests/test_settings_*.py names the settings whose effect it sees: ``@changes("flip")`` where a setting changes a
step, ``@harmless("workers")`` where it must not. tests/test_settings.py wants each setting in exactly one of the two tables.
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
"""Setting -> the tests that see it change a step: its loss, gradient, batch, rates, result or length."""

HARMLESS: dict[str, list[Callable]] = {}
"""Setting -> the tests that see that it was put in force, and that weights and losses stay what they are."""

CPU = torch.device("cpu")


def changes(*settings: str) -> Callable:
    """Marks a test that fails when one of these settings no longer changes a step as it should."""
    return _noted(CHANGING, settings)


def harmless(*settings: str) -> Callable:
    """Marks a test that fails when one of these settings is not put in force, or changes a step."""
    return _noted(HARMLESS, settings)


def _noted(table: dict[str, list[Callable]], settings: tuple[str, ...]) -> Callable:
    def note(test: Callable) -> Callable:
        for name in settings:
            table.setdefault(name, []).append(test)
        return test

    return note


def tiny(config: Config, classes: int, *, weights=None) -> SegmentationModel:
    """In place of :func:`model_from_config`: two convolutions, each part with the layers that settings are about."""
    dim = None if config.loss == "dense" else config.dim
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    decoder = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Dropout(0.1), nn.Conv2d(8, dim or classes, 1))
    normalize = None if config.normalize == "none" else config.normalize
    return SegmentationModel(encoder, decoder, classes, dim, normalize=normalize, distance=config.distance, multiple=4)


def trained(dataset, folder, resume: bool = False, **settings) -> Run:
    """A run of :func:`tiny`, where the test has put that in the place of real networks: on the CPU, without curves."""
    return training.train(dataset, folder, config(**{"device": "cpu", "track": "none"} | settings), resume=resume)


class Steps(list):
    """Steps that compute nothing, in the place of :func:`ess.training.loop.optimise`; a list of what each was given.

    ``move(model)`` may change the weights, or end the run by an exception.
    """

    def __init__(self, monkeypatch, move: Callable = lambda model: None):
        super().__init__()
        self._move = move
        monkeypatch.setattr(training, "model_from_config", tiny)
        monkeypatch.setattr(training, "optimise", self._step)

    def _step(self, team, objective, optimizer, batch, *accumulate) -> torch.Tensor:
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
                random=torch.rand(1).item(),
            )
        )
        with torch.no_grad():
            self._move(objective.model)
        return torch.zeros(())
