"""A step does not wait for the GPU, and rendering a batch is as many kernels for many images as for few."""

from itertools import pairwise

import pytest
import torch
from effects import CPU, tiny, trained
from runs import config, same, weights
from torch._subclasses.fake_tensor import FakeTensorMode
from waits import Waits

from cocolvis.errors import DataError
from ess.checkpoint import Run
from ess.data.batches import Batch, RawBatch
from ess.data.loader import training_batches
from ess.data.rendering import render_together
from ess.device import moved
from ess.losses.cross_entropy import margin_penalty
from ess.training import loop as training
from ess.training import machine
from ess.training.objective import Objective

FUSED = machine.Choices("float32", False, 0, tf32=True, benchmark=True, fused=True, prefetch=False)
"""The choices for a GPU, as far as they make sense on the CPU."""

GPU = torch.device("cuda", 0)


@pytest.fixture
def waits(monkeypatch) -> list[Waits]:
    """A training makes its steps like on a GPU, and the list gets what each of them would wait for."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    monkeypatch.setattr(machine, "choices_for", lambda device: FUSED)
    step, seen = training._Training._step, []

    def watched(*arguments):
        with Waits() as mode:
            made = step(*arguments)
        seen.append(mode)
        return made

    monkeypatch.setattr(training._Training, "_step", watched)
    return seen


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "exact", "class_weight_power": 0.5, "logit_adjustment": 1.0, "federated": True},
        {"loss": "exact", "ema": 0.9, "clip_norm": 1.0, "accumulate": 3, "precision": "bf16", "channels_last": True},
        {"loss": "dense", "points": 64, "optimizer": "adamw", "freeze_bn": True},
    ],
)
def test_a_step_waits_for_nothing(dataset, tmp_path, waits, settings):
    trained(dataset, tmp_path / "run", steps=2, crop=32, **settings)
    assert len(waits) == 2
    for step in waits:
        assert not step.found and step.launched > 100


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_parts_of_a_step_hold_nothing_that_is_not_on_the_gpu(dataset, tmp_path, monkeypatch, accumulate):
    """With several GPUs, DistributedDataParallel would copy it there for every part, and wait."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    forward, parts = Objective.forward, []
    monkeypatch.setattr(Objective, "forward", lambda self, part: parts.append(part) or forward(self, part))
    trained(dataset, tmp_path / "run", loss="exact", federated=True, steps=1, accumulate=accumulate)
    assert len(parts) == accumulate
    for part in parts:
        assert [id(column) for column in part if column is not None] == [id(tensor) for tensor in part.on_device()]


PLANTED = {
    "_local_scalar_dense": lambda images: images.sum().item(),
    "nonzero": lambda images: images.flatten().nonzero(),
    "index": lambda images: images[images > 0],
    "index_put_": lambda images: images.clone().__setitem__(images > 2, 0.0),
}


@pytest.mark.parametrize("operator", PLANTED)
def test_what_is_waited_for_is_seen(dataset, tmp_path, waits, monkeypatch, operator):
    forward = Objective.forward
    monkeypatch.setattr(Objective, "forward", lambda self, batch: (PLANTED[operator](batch.images), forward(self, batch))[1])
    trained(dataset, tmp_path / "run", loss="exact", steps=2)
    assert all(step.found[operator] == 1 for step in waits)


@pytest.fixture
def raw(dataset) -> RawBatch:
    chosen = config(batch_size=6, color_jitter=0.1, federated=True, loss="exact", scale_min=0.3)
    return next(training_batches(dataset.split("train"), chosen, 1))._replace(classes=None)


def some(raw: RawBatch, count: int) -> RawBatch:
    """The first crops of a batch."""
    area = sum(crop.area for crop in raw.crops[:count])
    kept = int(raw.lengths.cumsum().searchsorted(area)) + 1
    return raw._replace(
        pixels=raw.pixels[: 3 * area],
        labels=raw.labels[:kept],
        lengths=raw.lengths[:kept],
        crops=raw.crops[:count],
        ids=raw.ids[:count],
    )


def test_a_batch_on_a_gpu_is_rendered_in_a_fixed_number_of_kernels_without_waiting(raw):
    launched = []
    for count in (1, 3, 6):
        with FakeTensorMode(allow_non_fake_inputs=True), Waits() as mode:
            batch = some(raw, count).render(48, GPU)
        assert batch.images.device == batch.labels.device == GPU and batch.images.shape == (count, 3, 48, 48)
        assert not mode.found
        launched.append(mode.launched)
    assert launched[0] == launched[1] == launched[2] < 150


@pytest.mark.parametrize("size", [48, 61])
def test_crops_rendered_together_are_those_rendered_one_by_one(raw, size):
    """The crops were drawn for 48 pixels; a larger window shows more that is outside of them."""
    expected = raw.render(size, CPU)
    assert expected.labels.unique().numel() > 3 and (expected.labels == -1).any()
    assert {crop.mirrored for crop in raw.crops} == {False, True}
    labels = torch.from_numpy(raw.labels).repeat_interleave(torch.from_numpy(raw.lengths))
    images, truths = render_together(raw.pixels, labels, raw.crops, size)
    assert torch.equal(truths, expected.labels) and truths.dtype == expected.labels.dtype
    assert images.shape == expected.images.shape and images.dtype == torch.uint8
    differences = (images.int() - expected.images.int()).abs()
    assert differences.max() <= 1 and differences.float().mean() < 1e-3  # a tie is rounded the other way at times


def test_the_network_and_its_losses_copy_from_pinned_memory_alone(monkeypatch):
    """Forward only: the backward pass of fake tensors needs a real GPU."""
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, **how: module)  # fake weights cannot be moved
    chosen = config(loss="dense", points=8)
    with FakeTensorMode():
        with torch.device(GPU):
            objective = Objective(tiny(chosen, 9), chosen)
            images, labels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.zeros(2, 16, 16, dtype=torch.int16)
        with Waits() as mode:
            batch = Batch(images, labels, torch.arange(2))
            objective(batch)
            objective.total_weight(batch)
        assert not mode.found and mode.launched > 50
        with Waits() as mode:
            torch.tensor([0.5, 0.5], device=GPU)
            moved(torch.ones(2), GPU)
            torch.ones(2, device=GPU).cpu()
        assert mode.found == {"_to_copy": 2}


def test_a_gpu_searches_for_near_classes_in_few_kernels():
    with FakeTensorMode(), Waits() as mode:
        classes = torch.empty(65_000, 12, device=GPU)
        assert margin_penalty(classes).shape == ()
    assert mode.launched < 1_000


@pytest.mark.parametrize("fused", [True, False])
def test_layers_that_are_no_longer_frozen_learn_from_their_first_step_on(dataset, tmp_path, monkeypatch, fused):
    """Their momentum is not in the checkpoint; fused SGD wants that of all parameters of a group, or of none."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    monkeypatch.setattr(machine, "choices_for", lambda device: FUSED._replace(fused=fused))
    shared = {"loss": "exact", "save_every": 1, "keep": 9}
    trained(dataset, tmp_path / "run", steps=1, freeze_bn=True, **shared)
    trained(dataset, tmp_path / "run", steps=2, freeze_bn=False, resume=True, **shared)
    run = trained(dataset, tmp_path / "run", steps=3, resume=True, **shared)
    frozen, learnt = ([weights(run.folder, step)["encoder.1.weight"] for step in steps] for steps in ((0, 1), (1, 2, 3)))
    assert torch.equal(*frozen) and not any(torch.equal(*pair) for pair in pairwise(learnt))
    momentum = "optimizer/momentum_buffer/encoder.1.weight"
    first, second = (weights(run.folder, step, "training") for step in (1, 2))
    assert momentum not in first and second[momentum].any()
    assert second.keys() - first.keys() == {momentum, momentum.replace("weight", "bias")}


@pytest.mark.parametrize(
    ("fused", "fault", "settings"),
    [
        (True, "loss", {"ema": 0.9}),
        (True, "gradient", {"optimizer": "adamw", "temperature": "learnt"}),
        (False, "loss", {"optimizer": "adamw", "temperature": "learnt"}),
        (False, "gradient", {"ema": 0.9}),
    ],
)
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(dataset, tmp_path, monkeypatch, fused, fault, settings):
    """Step 3 of 5 fails; the run ends with its images, and with the checkpoint that an undisturbed run has after step 2."""
    shared = {"loss": "exact", "steps": 5, "keep": 9, **settings}
    monkeypatch.setattr(training, "model_from_config", tiny)
    monkeypatch.setattr(machine, "choices_for", lambda device: FUSED._replace(fused=fused))
    whole = trained(dataset, tmp_path / "whole", **shared, save_every=1)
    ids, forward, total_weight = [], Objective.forward, Objective.total_weight
    monkeypatch.setattr(
        Objective, "total_weight", lambda self, batch: (ids.append(batch.ids.tolist()), total_weight(self, batch))[1]
    )

    def faulty(self, batch):
        loss, penalty = forward(self, batch)
        if len(ids) == 3 and fault == "gradient":
            self.model.class_embeddings.register_hook(lambda gradient: gradient * torch.inf)
        return loss * torch.nan if len(ids) == 3 and fault == "loss" else loss, penalty

    monkeypatch.setattr(Objective, "forward", faulty)
    told = "loss is nan" if fault == "loss" else r"the gradient of the loss \d+\.\d+ is not finite"
    with pytest.raises(DataError, match=rf"^{told} at step 3, lr 0.\d+, images \[") as caught:
        trained(dataset, tmp_path / "run", **shared, save_every=99)
    assert str(ids[2]) in str(caught.value) and len(ids) == 3 + fused
    run = Run.open(tmp_path / "run")
    assert [c.step for c in run.listed()] == [0, 2]
    for name in ("model", "training"):
        assert same(weights(run.folder, 2, name), weights(whole.folder, 2, name))
    assert not same(weights(whole.folder, 3), weights(whole.folder, 2))


def test_a_checkpoint_that_is_there_already_keeps_its_scores(dataset, tmp_path, monkeypatch):
    """Step 2 is saved and evaluated, and step 3 fails."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    losses = iter([1.0, 1.0, torch.nan])
    monkeypatch.setattr(training, "optimise", lambda *inputs: torch.tensor(next(losses)))
    with pytest.raises(DataError, match="loss is nan at step 3"):
        trained(dataset, tmp_path / "run", eval_every=2, eval_limit=1)
    assert [(c.step, c.scores is None) for c in Run.open(tmp_path / "run").listed()] == [(0, True), (2, False)]
