"""The precision of the network, and the loss scale of float16: gradients are scaled, and infinite ones skip the step."""

import copy

import pytest
import torch
from effects import Steps, changes, tiny, trained
from runs import config, weights

from ess.data.batches import Batch
from ess.losses import cross_entropy, interpolated
from ess.training import loop as training
from ess.training import team
from ess.training.objective import Objective

CLASSES = 9
KINDS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=g)
    return Batch(images, torch.randint(-1, CLASSES, (4, 16, 16), generator=g), torch.arange(4))


@changes("precision")
@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("loss", ["knn", "exact", "dense"])
def test_precision_applies_to_the_network_alone(batch, monkeypatch, precision, loss):
    seen = []
    model = tiny(config(loss=loss), CLASSES)
    for layer in (model.encoder[0], model.decoder[3]):
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    module, name = (interpolated, "interpolated") if loss == "dense" else (cross_entropy, loss)
    original = getattr(module, f"{name}_cross_entropy")
    monkeypatch.setattr(
        module, original.__name__, lambda maps, labels, *more, **settings: check(maps, labels, *more, **settings)
    )

    def check(maps, labels, *more, **settings):
        assert {tensor.dtype for tensor in (maps, *more)} == {torch.float32}
        seen.append(torch.float32)
        return original(maps, labels, *more, **settings)

    summed, penalty = Objective(model, config(loss=loss, precision=precision))(batch)
    (summed + penalty).backward()
    assert seen == [KINDS[precision]] * 2 + [torch.float32]
    assert {p.dtype for p in model.parameters()} | {p.grad.dtype for p in model.parameters()} == {torch.float32}


@changes("precision")
@pytest.mark.parametrize("precision", KINDS)
def test_float16_alone_scales_its_losses(dataset, tmp_path, monkeypatch, precision):
    steps = Steps(monkeypatch)
    trained(dataset, tmp_path / "run", precision=precision, steps=1)
    assert isinstance(steps[0].team.scaler, torch.amp.GradScaler) == (precision == "fp16")


@pytest.fixture
def step(batch, tmp_path):
    """A function that makes one step of a float16 training, and a copy of the objective."""
    chosen = config(precision="fp16", device="cpu", track="none", loss="exact", dropout=0.0, temperature=0.5)
    joined = team.join(chosen, tmp_path)
    torch.manual_seed(0)
    objective = Objective(tiny(chosen, CLASSES), chosen).train()
    wrapped, optimizer = joined.prepare(objective, torch.optim.SGD(objective.parameters(), lr=0.5))
    return (joined, wrapped, optimizer, batch), copy.deepcopy(objective)


def test_gradients_are_scaled_in_the_backward_pass_and_unscaled_for_the_step(step, batch):
    arguments, plain = step
    joined, objective = arguments[:2]
    seen, before = [], objective.model.class_embeddings.detach().clone()
    objective.model.class_embeddings.register_hook(seen.append)
    loss = training.optimise(*arguments)
    summed, penalty = plain(batch)
    expected = summed / plain.total_weight(batch) + penalty
    torch.testing.assert_close(loss, expected.detach())
    expected.backward()
    gradient = plain.model.class_embeddings.grad
    assert joined.scaler.get_scale() == 65536
    torch.testing.assert_close(sum(seen), gradient * 65536, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(objective.model.class_embeddings.detach(), before - 0.5 * gradient)
    assert all(torch.isfinite(p).all() for p in objective.parameters())


@pytest.mark.parametrize("share", [0.5, 1e4])
def test_gradients_are_clipped_without_the_loss_scale(step, batch, share):
    """To half of their norm, and to more than it; both are far below 65536 times the norm."""
    arguments, plain = step
    summed, penalty = plain(batch)
    (summed / plain.total_weight(batch) + penalty).backward()
    longest = share * float(torch.nn.utils.get_total_norm([p.grad for p in plain.parameters() if p.grad is not None]))
    torch.nn.utils.clip_grad_norm_(plain.parameters(), longest)
    torch.optim.SGD(plain.parameters(), lr=0.5).step()
    training.optimise(*arguments, 1, longest)
    for one, other in zip(arguments[1].parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)
    assert arguments[0].scaler.get_scale() == 65536


def test_a_step_with_an_infinite_gradient_is_left_out_and_the_scale_falls(step):
    arguments, plain = step
    joined, objective = arguments[:2]
    hook = objective.model.class_embeddings.register_hook(lambda gradient: gradient * torch.inf)
    assert torch.isfinite(training.optimise(*arguments, 1, 0.5))
    assert joined.scaler.get_scale() == 32768
    for one, other in zip(objective.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    hook.remove()
    training.optimise(*arguments)
    assert not torch.equal(objective.model.class_embeddings, plain.model.class_embeddings)


def test_the_scale_is_stored_in_checkpoints_and_restored(dataset, tmp_path, monkeypatch):
    steps = Steps(monkeypatch, lambda model: steps[-1].team.scaler.load_state_dict(reached))
    reached = torch.amp.GradScaler("cpu").state_dict() | {"scale": 1024.0, "_growth_tracker": 5}
    run = trained(dataset, tmp_path / "run", precision="fp16", steps=1)
    kept = weights(run.folder, 1, "training")
    assert (kept["scaler/scale"], kept["scaler/_growth_tracker"]) == (1024, 5)
    reached = reached | {"scale": 2.0}
    found = []
    steps._move = lambda model: found.append(steps[-1].team.scaler.state_dict())
    trained(dataset, tmp_path / "run", precision="fp16", steps=2, resume=True)
    assert (found[0]["scale"], found[0]["_growth_tracker"]) == (1024, 5)
