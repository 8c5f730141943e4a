"""Optimisers, schedules, averaged weights and loss scales: compared with their formulas, saved and restored."""

import pytest
import torch
from runs import config

from ess.losses.temperature import log_temperature
from ess.models.build import build_model
from ess.training.state import TrainingState, make_optimizer, set_learning_rates


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("ema", "learnt"), [(0.0, True), (0.5, False), (0.5, True)])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(optimizer, ema, learnt):
    settings = config(arch="fpn", encoder="resnet18", optimizer=optimizer, ema=ema)
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build_model("fpn", "resnet18", classes=5, dim=3)
        states.append(TrainingState(model, settings, log_temperature() if learnt else None))
    first, second = states
    for step in range(2):
        move(first, step)
    second.result.load_state_dict(first.result.state_dict())
    second.load({name: tensor.clone() for name, tensor in first.tensors().items()})
    for state in states:
        move(state, 2)
    assert (first.temperature == second.temperature != 20) if learnt else first.temperature is None
    for name in ("model", "result"):
        pairs = zip(getattr(first, name).state_dict().values(), getattr(second, name).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def move(state: TrainingState, step: int) -> None:
    """A step with gradients that depend only on its number."""
    g = torch.Generator().manual_seed(step)
    for parameter in state._parameters().values():
        parameter.grad = torch.randn(parameter.shape, generator=g)
    state.optimizer.step()
    state.after_step()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_learnt_temperature_moves_like_the_class_embeddings_without_decay_and_stays_in_its_limits(optimizer):
    settings = config(optimizer=optimizer, weight_decay=0.3, embedding_power=2.0, lr=0.1)
    log_t = log_temperature()
    state = TrainingState(build_model("fpn", "resnet18", classes=5, dim=3), settings, log_t)
    kind = torch.optim.SGD if optimizer == "sgd" else torch.optim.AdamW
    options = {"momentum": 0.95} if optimizer == "sgd" else {"betas": (0.95, 0.999)}
    alone = torch.nn.Parameter(log_t.detach().clone())
    plain = kind([alone], lr=0.1, weight_decay=0.0, **options)
    for step in range(3):
        set_learning_rates(state.optimizer, settings, step, 4)
        plain.param_groups[0]["lr"] = 0.1 * (1 - step / 4) ** 2
        log_t.grad, alone.grad = torch.tensor(0.5), torch.tensor(0.5)
        state.optimizer.step()
        plain.step()
        state.after_step()
    torch.testing.assert_close(log_t, alone)
    state.optimizer.param_groups[-1]["lr"] = 1.0
    for gradient, limit in ((1e6, 1.0), (-1e6, 100.0)):
        for _ in range(60):
            log_t.grad = torch.tensor(gradient)
            state.optimizer.step()
            state.after_step()
        assert state.temperature == pytest.approx(limit)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_adamw_decays_matrices_alone_and_sgd_everything(optimizer):
    settings = config(optimizer=optimizer, weight_decay=0.5, lr=0.1, encoder_lr=0.3)
    model = build_model("fpn", "resnet18", classes=5, dim=3)
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter)  # biases start at 0, which no decay changes
    state = TrainingState(model, settings, log_temperature())
    before = {name: p.detach().clone() for name, p in state._parameters().items()}
    for parameter in state._parameters().values():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    for name, parameter in state._parameters().items():
        rate = 0.03 if name.startswith("encoder") else 0.1
        spared = name == "log_temperature" or (optimizer == "adamw" and (parameter.ndim == 1 or name == "class_embeddings"))
        torch.testing.assert_close(parameter, before[name] * (1 if spared else 1 - 0.5 * rate), rtol=1e-5, atol=0)
    kinds = {p.ndim for p in before.values()}
    assert kinds == {0, 1, 2, 4} and any(name.endswith("bias") and p.abs().max() > 0 for name, p in before.items())


def test_averaged_weights_are_the_formula():
    state = TrainingState(build_model("fpn", "resnet18", classes=5, dim=3), config(ema=0.75))
    expected = state.model.class_embeddings.detach().clone()
    for step in range(4):
        move(state, step)
        expected = 0.75 * expected + 0.25 * state.model.class_embeddings.detach()
    torch.testing.assert_close(state.result.class_embeddings.detach(), expected)
    assert not torch.equal(state.result.class_embeddings, state.model.class_embeddings)
    assert TrainingState(state.model, config()).result is state.model


def test_the_loss_scale_goes_on():
    scaler, other = (torch.amp.GradScaler("cpu", init_scale=2.0**k) for k in (7, 9))
    scaler.scale(torch.ones(()))  # without a first call it has no scale
    other.scale(torch.ones(()))
    state = TrainingState(build_model("fpn", "resnet18", classes=5, dim=3), config())
    state.load(state.tensors(scaler), other)
    assert other.state_dict() == scaler.state_dict() and other.get_scale() == 128


def test_the_floor_of_the_schedule_raises_no_rate_that_is_lower():
    settings = config(lr=0.1, encoder_lr=1e-6, min_lr=1e-3)
    optimizer = make_optimizer(build_model("fpn", "resnet18", classes=5, dim=3), settings)
    set_learning_rates(optimizer, settings, 9, 10)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-7) and optimizer.param_groups[1]["lr"] > 1e-3
