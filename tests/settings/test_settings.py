"""Every training setting has a test of its effect, or of having none, and a training passes all of them on."""

import copy
import importlib
import inspect
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from effects import CHANGING, CPU, HARMLESS, Steps, tiny, trained
from runs import config, same, weights

from cocolvis.errors import DataError
from ess.checkpoint import Run
from ess.config import Config
from ess.data.loader import training_batches
from ess.data.longtail import tail_of
from ess.training import loop as training
from ess.training import machine
from ess.training.objective import Objective
from ess.training.state import TrainingState, set_learning_rates

MODULES = [importlib.import_module(path.stem) for path in sorted(Path(__file__).parent.glob("test_settings_*.py"))]
"""The test modules that fill the two tables when they are imported."""

KNOWN = [field.name for field in fields(Config)]


@pytest.mark.parametrize("name", [*KNOWN, *sorted({*CHANGING, *HARMLESS} - {*KNOWN})])
def test_every_setting_is_in_one_table(name):
    assert name in KNOWN, f"a test is marked with {name!r}, but ess.config.Config has no such setting"
    assert name in CHANGING or name in HARMLESS, (
        f"no test sees what the setting {name!r} does. Write one in tests/settings/test_settings_*.py that fails when it is"
        f' ignored, marked @changes("{name}") from tests/helpers/effects.py where it changes a step (its loss, gradient, batch,'
        f' rates or result), else @harmless("{name}"), and showing that weights and losses stay what they are'
    )
    assert not (name in CHANGING and name in HARMLESS), f"the setting {name!r} cannot both change a step and leave it alone"


def test_the_tables_name_tests_that_run():
    found = {test for module in MODULES for name, test in inspect.getmembers(module) if name.startswith("test_")}
    assert all(test in found for table in (CHANGING, HARMLESS) for tests in table.values() for test in tests)


RICH = {
    "steps": 3,
    "batch_size": 6,
    "accumulate": 2,
    "seed": 3,
    "dim": 5,
    "loss": "exact",
    "temperature": "learnt",
    "distance": "squared",
    "normalize": "none",
    "margin": 0.9,
    "repeat_threshold": 0.3,
    "class_crop": 0.5,
    "logit_adjustment": 0.7,
    "class_weight_power": 0.3,
    "federated": True,
    "optimizer": "adamw",
    "lr": 0.01,
    "encoder_lr": 0.5,
    "warmup": 2,
    "clip_norm": 0.5,
    "ema": 0.6,
    "crop": 40,
    "color_jitter": 0.3,
    "dropout": 0.3,
    "channels_last": True,
    "precision": "bf16",
}


def test_a_training_passes_every_setting_on(dataset, tmp_path, monkeypatch):
    """Training gives the same weights, bit for bit, as calling its parts one after another with the same settings."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    found = trained(dataset, tmp_path / "run", **RICH)
    chosen = config(**RICH, device="cpu", track="none")
    assert found.config == chosen

    split = dataset.split("train")
    tail = tail_of(split, dataset.vocabulary, chosen)
    torch.manual_seed(chosen.seed)
    objective = Objective(tiny(chosen, len(dataset.vocabulary)), chosen, tail).train()
    state = TrainingState(objective.model, chosen, objective.log_temperature)
    for step, batch in enumerate(training_batches(split, chosen, chosen.steps, 0, tail)):
        set_learning_rates(state.optimizer, chosen, step, chosen.steps)
        training.seed_step(chosen.seed, step, 0)
        parts = chosen.accumulate, chosen.clip_norm
        training.optimise(Accelerator(cpu=True), objective, state.optimizer, batch.render(chosen.crop, CPU), *parts)
        state.after_step()
    assert same(weights(found.folder, 3), state.result.state_dict())
    assert same(weights(found.folder, 3, "training"), {name: tensor.detach() for name, tensor in state.tensors().items()})
    assert not same(weights(found.folder, 3), copy.deepcopy(state.model).state_dict())


def test_each_process_draws_random_numbers_of_its_own(dataset, tmp_path, monkeypatch):
    """Compares the generators of dropout and random negatives in one step of two processes."""
    drawn = {}
    for rank in (0, 1):
        monkeypatch.setattr(Accelerator, "num_processes", 2)
        monkeypatch.setattr(Accelerator, "process_index", rank)
        steps = Steps(monkeypatch)
        trained(dataset, tmp_path / str(rank), batch_size=4, steps=3)
        drawn[rank] = [step.random for step in steps]
        assert [len(step.batch.ids) for step in steps] == [2] * 3
    assert len({*drawn[0], *drawn[1]}) == 6


OTHERS = {
    "arch": "fpn",
    "encoder": "resnet18",
    "weights": "imagenet",
    "output_stride": 8,
    "features": "8,16",
    "norm": "group",
    "dim": 6,
    "normalize": "none",
    "distance": "cosine",
    "optimizer": "adamw",
    "loss": "dense",
    "temperature": "learnt",
}


def test_a_resumed_training_uses_the_settings_it_is_given(dataset, tmp_path, monkeypatch):
    steps = Steps(monkeypatch)
    trained(dataset, tmp_path / "run", steps=2)
    resumed = trained(dataset, tmp_path / "run", steps=4, keep=1, lr=0.5, crop=32, resume=True)
    given = config(steps=4, keep=1, lr=0.5, crop=32, device="cpu", track="none")
    assert resumed.config == Run.open(tmp_path / "run").config == machine.resolved(given, CPU)
    assert len(resumed.checkpoints()) == 1 and len(steps) == 4
    assert steps[2].groups[1]["lr"] == pytest.approx(0.5 * 0.5**0.9) and steps[2].batch.labels.shape == (3, 32, 32)


@pytest.mark.parametrize("name", OTHERS)
def test_what_shapes_the_model_cannot_change_on_resume(run, name):
    with pytest.raises(DataError, match=f"was begun with {name} .*, not {OTHERS[name]!r}; it cannot change on --resume"):
        Run.open(run.folder).change(replace(run.config, **{name: OTHERS[name]}))
