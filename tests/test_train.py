"""Training: what a run leaves, exact resume, the schedules, refusals."""

import dataclasses
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from cocolvis.files import sha256
from ess import train as training
from ess.checkpoint import Run
from ess.config import Config, load, preset_names
from ess.evaluate import evaluate
from ess.models import build_model, model_from_config
from ess.predict import Predictor
from ess.train import make_optimizer, set_learning_rates, train

SMALL = {
    "encoder": "mobilenetv2_100",
    "weights": "none",
    "crop": 48,
    "batch_size": 3,
    "workers": 0,
    "steps": 4,
    "save_every": 2,
}


def config(**settings) -> Config:
    return Config(**{**SMALL, "epochs": None} | settings)


@pytest.fixture(scope="module")
def dataset(sample_dataset):
    return Dataset.open(sample_dataset)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Run:
    """Four undisturbed steps."""
    return train(dataset, tmp_path_factory.mktemp("runs") / "run", config())


def weights(run: Run, step: int) -> dict[str, torch.Tensor]:
    return load_file(run.folder / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_holds_settings_vocabulary_and_checkpoints(run, dataset):
    content = json.loads((run.folder / "run.json").read_text())
    assert content["settings"]["batch_size"] == 3
    assert content["vocabulary"]["digest"] == dataset.vocabulary.digest
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000004"]
    state = json.loads((run.checkpoints()[-1] / "state.json").read_text())
    settings = content["settings"]
    files = state.pop("sha256")
    assert {name: sha256(run.checkpoints()[-1] / name) for name in files} == files and len(files) == 2
    assert state == {"step": 4, "vocabulary": dataset.vocabulary.digest, "scores": None, "settings": settings}
    assert list((run.folder / "tensorboard").glob("events.*"))


def test_a_run_that_was_killed_before_its_first_steps_keeps_its_first_weights(dataset, tmp_path, monkeypatch):
    def killed(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(training, "loss_of", killed)
        train(dataset, tmp_path / "run", config(seed=1))
    first = weights(Run.open(tmp_path / "run"), 0)
    loaded = []
    monkeypatch.setattr(training, "loss_of", lambda model, *rest: loaded.append(model.state_dict()) or killed())
    with pytest.raises(RuntimeError):
        train(dataset, tmp_path / "run", config(seed=2), resume=True)
    assert same(first, loaded[0])


def test_training_moves_every_parameter_group(run):
    before, after = weights(run, 2), weights(run, 4)
    for prefix in ("encoder.", "decoder.", "class_embeddings"):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(prefix)), prefix


def test_resuming_is_bit_identical(run, dataset, tmp_path):
    first = train(dataset, tmp_path / "half", config(save_every=2))
    for left in first.checkpoints()[1:]:
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    resumed = train(dataset, tmp_path / "half", config(save_every=2), resume=True)
    assert same(weights(resumed, 4), weights(run, 4))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_the_step_and_can_be_resumed(run, dataset, tmp_path, monkeypatch, number):
    original = training.loss_of
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(training, "loss_of", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config())
    assert Run.open(tmp_path / "run").checkpoints()[-1].name == "step-00000003"
    monkeypatch.setattr(training, "loss_of", original)
    assert same(weights(train(dataset, tmp_path / "run", config(), resume=True), 4), weights(run, 4))


def test_resuming_an_absent_run_begins_it_and_a_finished_one_ends_at_once(run, dataset, tmp_path):
    begun = train(dataset, tmp_path / "new", config(), resume=True)
    assert same(weights(begun, 4), weights(run, 4))
    stamp = begun.checkpoints()[-1].stat().st_mtime_ns
    train(dataset, tmp_path / "new", config(), resume=True)
    assert begun.checkpoints()[-1].stat().st_mtime_ns == stamp


def test_resume_refuses_another_model(run, dataset):
    with pytest.raises(DataError, match="was begun with dim 12, not 6"):
        train(dataset, run.folder, config(dim=6), resume=True)


def test_a_second_run_in_the_same_folder_is_refused(run, dataset):
    with pytest.raises(DataError, match="already holds a run; continue it with --resume"):
        train(dataset, run.folder, config())


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "exact"},
        {"search": "clustered", "query_stride": 4},
        {"loss": "exact", "logit_adjustment": 1.0, "class_weight_power": 0.5, "repeat_threshold": 0.5},
        {"loss": "dense"},
        {"negatives": "random"},
        {"negatives": "published", "normalize": "quarter"},
        {"distance": "cosine", "margin": 0.0, "norm": "group"},
    ],
)
def test_every_kind_of_loss_trains(dataset, tmp_path, settings):
    run = train(dataset, tmp_path / "run", config(steps=2, **settings))
    assert all(torch.isfinite(value).all() for value in weights(run, 2).values())


@pytest.mark.parametrize(("most", "expected"), [(5, "exact"), (4, "knn")])
def test_auto_takes_the_exact_loss_up_to_some_number_of_classes(monkeypatch, most, expected):
    for name in ("exact", "knn"):
        monkeypatch.setattr(training.losses, f"{name}_cross_entropy", lambda *inputs, name=name, **settings: name)
    monkeypatch.setattr(training.losses, "EXACT_UP_TO", most)
    model = build_model("deeplabv3plus", "resnet18", classes=5, dim=2)
    images, labels = torch.zeros(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.int16)
    assert training.loss_of(model, images, labels, Config(loss="auto", margin=0)) == expected


def test_a_loss_that_is_not_finite_stops_with_step_lr_and_images(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "loss_of", lambda model, *rest: model.class_embeddings.sum() * torch.nan)
    with pytest.raises(DataError, match=r"loss is nan at step 1, lr 0.01, images \[\d+, \d+, \d+\]"):
        train(dataset, tmp_path / "run", config())


def test_out_of_memory_names_batch_and_crop(dataset, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "loss_of", exhausted)
    with pytest.raises(DataError, match="out of memory; try a --batch-size below 3 or a --crop below 48"):
        train(dataset, tmp_path / "run", config())


def test_the_three_groups_follow_their_polynomials():
    settings = config(lr=0.1, encoder_lr=0.1, power=0.9, embedding_power=0.95, min_lr=1e-6)
    model = model_from_config(settings, 20, weights=None)
    optimizer = make_optimizer(model, settings)
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9, 0.95]
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    set_learning_rates(optimizer, settings, 30, 120)
    expected = [0.01 * 0.75**0.9, 0.1 * 0.75**0.9, 0.1 * 0.75**0.95]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
    set_learning_rates(optimizer, settings, 120, 120)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-6] * 3


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_two_steps(dataset, tmp_path, name):
    flags = {"weights": "none", "steps": 2, "batch_size": 2, "crop": 64, "workers": 0, "eval_every": None}
    trained = train(dataset, tmp_path / "run", load(name, None, flags))
    scores = evaluate(Predictor.from_run(trained.folder, "cpu"), dataset, limit=1)
    assert scores["images"] == 1


def test_the_papers_preset_trains_on_real_images(real, tmp_path):
    flags = {"weights": "none", "steps": 2, "batch_size": 2, "crop": 64, "workers": 0}
    trained = train(Dataset.open(real.data), tmp_path / "run", load("coco-lvis", None, flags))
    assert all(torch.isfinite(value).all() for value in weights(trained, 2).values())


def test_evaluation_during_training_stands_in_the_checkpoint(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", config(steps=1, eval_every=1, eval_limit=2))
    scores = json.loads((run.checkpoints()[-1] / "state.json").read_text())["scores"]
    assert scores["images"] == 2


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_text("{}")])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, dataset, tmp_path, caplog, name, damage):
    shutil.copytree(run.folder, tmp_path / "run")
    harmed = Run.open(tmp_path / "run")
    damage(harmed.checkpoints()[-1] / name)
    resumed = train(dataset, tmp_path / "run", config(), resume=True)
    assert "looking for another checkpoint" in caplog.text and "step-00000004" in caplog.text
    assert same(weights(resumed, 4), weights(run, 4))
    Predictor.from_run(tmp_path / "run", "cpu")


def test_without_a_whole_checkpoint_there_is_one_line(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    for folder in Run.open(tmp_path / "run").checkpoints():
        cut(folder / "model.safetensors")
    with pytest.raises(DataError, match=r"step-00000002/model\.safetensors: is not what was written"):
        Predictor.from_run(tmp_path / "run", "cpu")


def test_the_newest_and_the_best_checkpoint_are_kept(run, tmp_path):
    model = model_from_config(run.config, len(run.vocabulary), weights=None)
    kept = Run(tmp_path, dataclasses.replace(run.config, keep=3), run.vocabulary)
    for step, miou in enumerate([None, 0.1, 0.4, 0.2, 0.4, 0.3, None, 0.1, 0.0, None]):
        model.class_embeddings.data.fill_(step)
        kept.save(step, model, {"rng/cpu": torch.get_rng_state()}, None if miou is None else {"miou": miou})
    assert [folder.name[-2:] for folder in kept.checkpoints()] == ["02", "07", "08", "09"]
    for which, step in (("newest", 9), ("best", 2)):
        assert kept.load(model, which).step == step
        assert (model.class_embeddings == step).all()


def test_the_best_of_none_is_one_line(run):
    with pytest.raises(DataError, match="no checkpoint was evaluated; train with --eval-every"):
        Predictor.from_run(run.folder, "cpu", "best")
