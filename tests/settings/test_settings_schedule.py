"""The length, learning rates and averaged weights of a training, compared with the formulas step by step."""

import numpy as np
import pytest
import torch
from effects import Steps, changes, tiny, trained
from runs import config, weights

from ess.data.longtail import tail_of
from ess.training import journal
from ess.training import loop as training

RATES = ("lr", "encoder_lr", "power", "embedding_power", "min_lr", "warmup", "momentum", "embedding_momentum", "weight_decay")
OTHERS = dict(zip(RATES, (0.3, 0.5, 0.7, 1.3, 0.06, 2, 0.6, 0.7, 0.03), strict=True))
STILL = {"encoder_lr": 0.0, "min_lr": 0.06}


@changes("steps", "optimizer", *RATES)
@pytest.mark.parametrize("settings", [{}, OTHERS, {"optimizer": "adamw", **OTHERS}, STILL])
@pytest.mark.parametrize("steps", [4, 7])
def test_steps_are_made_at_the_rates_of_the_schedule(dataset, tmp_path, monkeypatch, settings, steps):
    made, chosen = Steps(monkeypatch), config(**settings)
    trained(dataset, tmp_path / "run", steps=steps, **settings)
    assert len(made) == steps
    parts = {
        "encoder": (chosen.lr * chosen.encoder_lr, chosen.power, chosen.momentum),
        "decoder": (chosen.lr, chosen.power, chosen.momentum),
        "class_embeddings": (chosen.lr, chosen.embedding_power, chosen.embedding_momentum),
    }
    for step, one in enumerate(made):
        assert type(one.optimizer) is {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[chosen.optimizer]
        where = {member: group for group, members in zip(one.groups, one.members, strict=True) for member in members}
        assert sum(map(len, one.members)) == len(where) and [*parts] == ["encoder", "decoder", "class_embeddings"]
        for name, parameter in one.objective.model.named_parameters():
            part, group = name.split(".")[0], where[id(parameter)]
            lr, power, momentum = parts[part]
            rise = min(1, (step + 1) / (chosen.warmup + 1))
            assert group["lr"] == pytest.approx(max(rise * lr * (1 - step / steps) ** power, min(lr, chosen.min_lr)))
            assert (group["betas"][0] if chosen.optimizer == "adamw" else group["momentum"]) == momentum
            spared = chosen.optimizer == "adamw" and (parameter.ndim == 1 or part == "class_embeddings")
            assert group["weight_decay"] == (0 if spared else chosen.weight_decay)
        assert [group["base_lr"] for group in one.groups[:3]] == [lr for lr, *_ in parts.values()]
    if settings == STILL:
        assert {one.groups[0]["lr"] for one in made} == {0.0}
    elif settings:
        assert made[-1].groups[0]["lr"] == chosen.min_lr < made[2].groups[0]["lr"]


@changes("clip_norm")
@pytest.mark.parametrize("clip_norm", [None, 0.01, 1e3])
def test_the_gradient_has_at_most_the_given_norm(dataset, tmp_path, monkeypatch, clip_norm):
    """The step of SGD on weights without momentum and decay has the norm of lr times the gradient."""
    monkeypatch.setattr(training, "model_from_config", tiny)
    settings = {"momentum": 0.0, "embedding_momentum": 0.0, "weight_decay": 0.0, "encoder_lr": 1.0, "min_lr": 0.0}
    run = trained(dataset, tmp_path / "run", clip_norm=clip_norm, steps=1, keep=2, lr=0.5, temperature=1, **settings)
    learned = [name for name, _ in tiny(run.config, 2).named_parameters()]
    before, after = (weights(run.folder, step) for step in (0, 1))
    moved = sum((after[name] - before[name]).square().sum().item() for name in learned) ** 0.5 / 0.5
    assert moved == pytest.approx(0.01, rel=1e-3) if clip_norm == 0.01 else moved > 0.1


@changes("epochs", "repeat_threshold")
@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_an_epoch_sees_each_image_as_often_as_it_is_repeated(dataset, tmp_path, monkeypatch, epochs, threshold):
    steps = Steps(monkeypatch)
    trained(dataset, tmp_path / "run", steps=None, epochs=epochs, batch_size=7, repeat_threshold=threshold)
    split = dataset.split("train")
    repeats = tail_of(split, dataset.vocabulary, config(repeat_threshold=threshold)).repeats
    images = len(split) if repeats is None else int(np.ceil(repeats.sum()))
    assert (images > 40) == bool(threshold)
    assert len(steps) == epochs * (images // 7)
    assert steps[-1].groups[1]["lr"] == pytest.approx(0.01 * (1 / len(steps)) ** 0.9)


@changes("ema")
@pytest.mark.parametrize(("ema", "averages"), [(0.0, [(2.0, 3.0), (3.0, 2.0)]), (0.75, [(1.25, 3.75), (1.6875, 3.3125)])])
def test_averaged_weights_are_evaluated_shown_and_kept(dataset, tmp_path, monkeypatch, ema, averages):
    """Steps move weights that predict one class everywhere to weights that predict another; the average lags behind."""
    masks = [dataset.split("val").mask(index).ravel() for index in range(4)]
    pixels = np.bincount(np.concatenate(masks), minlength=1285)[1:]
    one, other = (int(c) for c in np.argsort(-pixels)[:2])
    raw, shown = iter([(2.0, 3.0), (3.0, 2.0)]), []

    @torch.no_grad()
    def put(model, *places):
        """Pixels at 0, two classes at the given places, all others far away."""
        model.class_embeddings.fill_(50.0)[[one, other]] = torch.tensor(places)[:, None]
        for parameter in model.decoder[3].parameters():
            parameter.zero_()
        model.encoder[1].running_mean.fill_(places[0])
        return model

    steps = Steps(monkeypatch, lambda model: put(model, *next(raw)))
    monkeypatch.setattr(training, "model_from_config", lambda *a, **k: put(tiny(*a, **k), 1.0, 4.0))
    for name in ("pictures", "classes"):
        monkeypatch.setattr(
            journal.Journal, name, lambda self, done, predictor, *a: shown.append(predictor.model.class_embeddings.clone())
        )
    run = trained(dataset, tmp_path / "run", ema=ema, steps=2, eval_every=1, eval_limit=4, normalize="none")
    assert steps[-1].objective.model.class_embeddings[one, 0] == 3.0
    for done, (found, places) in enumerate(zip(shown, [*averages, averages[-1]], strict=True), 1):
        kept = weights(run.folder, min(done, 2))
        assert torch.equal(kept["class_embeddings"], found)
        assert [*found[[one, other], 0].tolist(), kept["encoder.1.running_mean"][0]] == pytest.approx([*places, places[0]])
    accuracies = [checkpoint.scores["pixel_accuracy"] for checkpoint in run.listed()]
    nearest = [one if a < b else other for a, b in averages]
    assert accuracies == pytest.approx([pixels[c] / pixels.sum() for c in nearest])
    assert nearest[-1] == (one if ema else other)
