"""What a step minimises, compared with plain formulas: the mean over all labelled pixels, in any number of parts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator

from cocolvis.errors import DataError
from ess.config import Config
from ess.data.batches import Batch
from ess.data.longtail import Tail
from ess.data.transforms import normalize
from ess.losses.cross_entropy import margin_penalty
from ess.models.build import build_model
from ess.training.loop import optimise
from ess.training.objective import Objective
from ess.training.state import TrainingState, set_learning_rates

CLASSES = 9


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = build_model("fpn", "resnet18", classes=CLASSES, dim=4, norm="group")
    return Objective(model, Config(dropout=0.0)).model


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Four crops with fewer and fewer labelled pixels; the last one has none."""
    g = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8, generator=g)
    labels = torch.randint(0, CLASSES, (4, 64, 64), dtype=torch.int16, generator=g)
    for place in range(4):
        labels[place, : 16 + 16 * place] = -1
    labels[3] = -1
    return Batch(images, labels, torch.arange(4), torch.rand(4, CLASSES, generator=g) < 0.7)


def reference(model, batch, config, tail):
    """The mean loss over all labelled pixels of the batch in plain torch, with a logit for every class."""
    embeddings = model(normalize(batch.images)).permute(0, 2, 3, 1)
    classes = model.classes()
    logits = -config.temperature * torch.linalg.vector_norm(embeddings[..., None, :] - classes, dim=-1)
    labels = batch.labels.long()
    if tail.bias is not None:
        logits = logits + tail.bias
    if config.federated:
        out = ~(batch.classes[:, None, None] | F.one_hot(labels.clamp_min(0), CLASSES).bool())
        logits = logits.masked_fill(out, -torch.inf)
    weight = torch.ones(CLASSES) if tail.weight is None else tail.weight
    loss = F.cross_entropy(logits.movedim(-1, 1), labels, weight=weight, ignore_index=-1)
    gaps = torch.cdist(classes, classes) + 9 * torch.eye(CLASSES)
    return loss + (config.margin - gaps.min(dim=1).values).clamp_min(0).mean()


TAIL = Tail(bias=torch.linspace(-2, 1, CLASSES), weight=torch.linspace(0.1, 3, CLASSES))


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(
    ("settings", "tail"),
    [({"loss": "exact"}, Tail()), ({"loss": "auto"}, Tail()), ({"loss": "exact", "federated": True}, TAIL), ({"k": 8}, Tail())],
)
def test_a_step_in_parts_is_the_step_on_the_mean_of_all_pixels(model, batch, settings, tail, accumulate):
    config = Config(margin=1.0, freeze_bn=True, **settings)
    assert margin_penalty(model.classes(), margin=config.margin) > 0.05
    if not config.federated:
        batch = batch._replace(classes=None)
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    objective = Objective(ours, config, tail).train()
    loss = optimise(Accelerator(), objective, torch.optim.SGD(ours.parameters(), lr=0.1), batch, accumulate)
    Objective(plain, config).train()  # freezes the same layers
    expected = reference(plain, batch, config, tail)
    torch.testing.assert_close(loss, expected.detach(), rtol=2e-5, atol=1e-6)
    expected.backward()
    torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.1).step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("longest", [0.3, 1e4])
def test_the_gradient_of_a_whole_step_is_clipped(model, batch, longest, accumulate):
    config = Config(loss="exact", temperature="learnt", freeze_bn=True)
    ours, plain = (Objective(copy.deepcopy(model), config).train() for _ in range(2))
    labelled = batch._replace(classes=None)
    summed, penalty = plain(labelled)
    (summed / plain.total_weight(labelled) + penalty).backward()
    norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), longest)
    assert 0.5 < norm < 1e3
    torch.optim.SGD([p for p in plain.parameters() if p.requires_grad], lr=0.1).step()
    optimise(Accelerator(), ours, torch.optim.SGD(ours.parameters(), lr=0.1), labelled, accumulate, longest)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_batch_without_a_label_is_a_step_without_a_loss(model, batch):
    empty = batch._replace(labels=torch.full_like(batch.labels, -1), classes=None)
    for loss in ("exact", "knn", "dense"):
        ours = build_model("fpn", "resnet18", classes=CLASSES, head="dense") if loss == "dense" else copy.deepcopy(model)
        before = copy.deepcopy(ours.state_dict())
        objective = Objective(ours, Config(loss=loss, margin=0, freeze_bn=True)).train()
        assert optimise(Accelerator(), objective, torch.optim.SGD(ours.parameters(), lr=1.0), empty) == 0
        assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items() if "num_batches" not in name)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_step_without_a_label_has_no_loss_on_any_number_of_processes(model, batch, monkeypatch, precision):
    empty = batch._replace(labels=torch.full_like(batch.labels, -1), classes=None)
    objective = Objective(copy.deepcopy(model), Config(loss="exact", margin=0, freeze_bn=True)).train()
    gradients = []
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda *_: gradients.extend(p.grad for p in objective.parameters() if p.grad is not None),
    )
    team = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "num_processes", 64)
    monkeypatch.setattr(Accelerator, "reduce", lambda team, tensor, how: tensor)
    if precision == "fp16":
        team.scaler = torch.amp.GradScaler("cpu")
    assert optimise(team, objective, torch.optim.SGD(objective.parameters(), lr=1.0), empty) == 0
    assert gradients and not any(gradient.any() for gradient in gradients)  # a NaN would be true


ONE = r"BatchNorm of the {} cannot learn from 1 image at a time, .*; choose a larger --batch-size, .*, or {}$"


@pytest.mark.parametrize(
    ("arch", "settings", "told"),
    [
        ("deeplabv3plus", {}, ONE.format("decoder", "--norm group")),
        ("deeplabv3plus", {"compile": True}, ONE.format("decoder", "--norm group")),
        ("deeplabv3plus", {"norm": "group"}, None),
        ("fpn", {}, None),
        ("fpn", {"crop": 32}, ONE.format("encoder", "--freeze-bn")),
        ("fpn", {"crop": 32, "freeze_bn": True}, None),
    ],
)
def test_one_image_at_a_time_is_refused_where_batch_norm_would_see_one_value(arch, settings, told):
    """Without a message, a step works; the check leaves everything as it was."""
    config = Config(**{"loss": "exact", "crop": 64, **settings})
    objective = Objective(build_model(arch, "resnet18", classes=CLASSES, dim=4, norm=config.norm), config)
    before = copy.deepcopy(objective.state_dict())
    objective.check_batch_norm(2)
    if told is not None:
        with pytest.raises(DataError, match=told):
            objective.check_batch_norm(1)
        return
    objective.check_batch_norm(1)
    assert objective.training and all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    images = torch.zeros(1, 3, config.crop, config.crop, dtype=torch.uint8)
    part = Batch(images, torch.zeros(1, config.crop, config.crop, dtype=torch.int16), torch.arange(1))
    assert objective.train()(part)[0].isfinite()


@pytest.mark.parametrize(
    "settings",
    [
        {"encoder_lr": 0.0, "ema": 0.9},
        {"encoder_lr": 0.0, "optimizer": "adamw", "precision": "bf16"},
        pytest.param({"encoder_lr": 0.0, "precision": "fp16", "freeze_bn": True}, marks=pytest.mark.long),
        {"lr": 0.0, "optimizer": "adamw"},
        pytest.param({"encoder_lr": 0.0, "compile": True}, marks=pytest.mark.long),
    ],
)
def test_a_learning_rate_of_zero_is_zero(batch, settings):
    """The encoder stays bit-identical over ten steps of two parts, with weight decay and a minimum rate, and stores nothing."""
    config = Config(loss="exact", weight_decay=0.1, min_lr=1e-2, **settings)
    model = build_model("fpn", "resnet18", classes=CLASSES, dim=4)
    before = copy.deepcopy(model.state_dict())
    objective, state, team = Objective(model, config).train(), TrainingState(model, config), Accelerator(cpu=True)
    seen = []
    model.encoder.register_forward_hook(lambda m, i, out: seen.extend((m.training, torch.is_grad_enabled(), out[-1].grad_fn)))
    if config.precision == "fp16":
        team.scaler = torch.amp.GradScaler("cpu")
    wrapped, optimizer = team.prepare(objective, state.optimizer)
    crops = batch._replace(images=batch.images[..., :32, :32], labels=batch.labels[:, 32:, :32], classes=None)
    for step in range(10):
        set_learning_rates(state.optimizer, config, step, 10)
        optimise(team, wrapped, optimizer, crops, accumulate=2)
        state.after_step()
    assert len(seen) == 60 or "compile" in settings
    assert not any(seen)
    learned = {name for name, _ in model.named_parameters()}
    for found in (model.state_dict(), state.result.state_dict()):
        changed = {name for name in before if not torch.equal(found[name], before[name])}
        assert not any(name.startswith("encoder.") for name in changed)
        assert bool(changed & learned) == (config.lr > 0)
