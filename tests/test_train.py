"""Training: what a run leaves, exact resume, the schedules, refusals; then evaluation and prediction from the run."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from runs import config, weights

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from cocolvis.files import sha256
from ess import train as training
from ess.checkpoint import Run
from ess.config import load, preset_names
from ess.evaluate import evaluate
from ess.predict import Predictor
from ess.train import train


@pytest.fixture(scope="module")
def dataset(sample_dataset):
    return Dataset.open(sample_dataset)


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Run:
    """Four undisturbed steps."""
    return train(dataset, tmp_path_factory.mktemp("runs") / "run", config())


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
    assert list((run.folder / "tensorboard").rglob("events.*"))


def test_training_moves_every_parameter_group(run):
    before, after = weights(run.folder, 2), weights(run.folder, 4)
    for prefix in ("encoder.", "decoder.", "class_embeddings"):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(prefix)), prefix


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
    assert all(torch.isfinite(value).all() for value in weights(run.folder, 2).values())


def test_a_loss_that_is_not_finite_stops_with_step_lr_and_images(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "optimise", lambda *inputs: torch.tensor(torch.nan))
    with pytest.raises(DataError, match=r"loss is nan at step 1, lr 0.01, images \[\d+, \d+, \d+\]"):
        train(dataset, tmp_path / "run", config())


def test_out_of_memory_names_batch_and_crop(dataset, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(training, "optimise", exhausted)
    with pytest.raises(DataError, match="out of memory; try a --batch-size below 3, a --crop below 48, or --accumulate"):
        train(dataset, tmp_path / "run", config())


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_trains_two_steps(dataset, tmp_path, name):
    flags = {"weights": "none", "steps": 2, "batch_size": 2, "crop": 64, "workers": 0, "eval_every": None}
    trained = train(dataset, tmp_path / "run", load(name, None, flags))
    scores = evaluate(Predictor.from_run(trained.folder, "cpu"), dataset, limit=1)
    assert scores["images"] == 1


def test_the_papers_preset_trains_on_real_images(real, tmp_path):
    flags = {"weights": "none", "steps": 2, "batch_size": 2, "crop": 64, "workers": 0}
    trained = train(Dataset.open(real.data), tmp_path / "run", load("coco-lvis", None, flags))
    assert all(torch.isfinite(value).all() for value in weights(trained.folder, 2).values())


def test_scores_are_those_of_a_plain_count(dataset):
    """A stand-in for the predictor that is right in the right half of every image."""
    samples = [dataset.split("val")[index] for index in range(3)]
    predictions = [sample.mask.copy() for sample in samples]
    for prediction in predictions:
        prediction[prediction == 0] = 1
        prediction[:, : prediction.shape[1] // 2] = 5

    class HalfRight:
        vocabulary = dataset.vocabulary
        left = iter(predictions)

        def __call__(self, image):
            return next(self.left)

    scores = evaluate(HalfRight(), dataset, limit=3)
    truth, predicted = (np.concatenate([m.ravel() for m in masks]) for masks in ([s.mask for s in samples], predictions))
    truth, predicted = truth[truth > 0], predicted[truth > 0]
    iou = {
        c: ((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum() for c in np.unique(truth).tolist()
    }
    stuff = [value for c, value in iou.items() if dataset.vocabulary[c].group == "stuff"]
    assert 0.2 < scores["pixel_accuracy"] < 0.8
    assert scores["pixel_accuracy"] == pytest.approx((truth == predicted).mean())
    assert scores["miou"] == pytest.approx(np.mean(list(iou.values())))
    assert scores["groups"]["stuff"] == pytest.approx(np.mean(stuff))
    assert set(scores) == {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "groups", "images"}
    assert set(scores["groups"]) == {"rare", "common", "frequent", "stuff"} and scores["images"] == 3


def test_evaluation_during_training_stands_in_the_checkpoint(dataset, tmp_path):
    run = train(dataset, tmp_path / "run", config(steps=1, eval_every=1, eval_limit=2))
    scores = json.loads((run.checkpoints()[-1] / "state.json").read_text())["scores"]
    assert scores["images"] == 2


def test_another_vocabulary_is_refused(run, dataset, monkeypatch):
    predictor = Predictor.from_run(run.folder, "cpu")
    other = dataclasses.replace(dataset.vocabulary[1284], name="timber")
    monkeypatch.setattr(predictor, "vocabulary", type(dataset.vocabulary)([*dataset.vocabulary.classes[:-1], other]))
    with pytest.raises(DataError, match="another vocabulary"):
        evaluate(predictor, dataset)


def test_predictor_takes_any_size_and_refuses_what_is_no_image(run):
    predictor = Predictor.from_run(run.folder, "cpu")
    rng = np.random.default_rng(0)
    assert predictor(rng.integers(0, 256, (43, 64, 3), dtype=np.uint8)).shape == (43, 64)
    with pytest.raises(ValueError, match="expected uint8"):
        predictor(np.zeros((4, 4), np.uint8))
