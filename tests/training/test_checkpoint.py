"""Checkpoints: which ones are kept, and what happens to damaged ones."""

import dataclasses
import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from runs import config, same, weights

from cocolvis.errors import DataError
from ess.checkpoint import Run
from ess.inference.predictor import Predictor
from ess.models.build import model_from_config
from ess.training.loop import train


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink, lambda path: path.write_text("{}")])
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(run, dataset, tmp_path, caplog, name, damage):
    shutil.copytree(run.folder, tmp_path / "run")
    harmed = Run.open(tmp_path / "run")
    damage(harmed.checkpoints()[-1] / name)
    resumed = train(dataset, tmp_path / "run", config(), resume=True)
    assert "looking for another checkpoint" in caplog.text and "step-00000004" in caplog.text
    assert same(weights(resumed.folder, 4), weights(run.folder, 4))
    Predictor.from_run(tmp_path / "run", "cpu")


@pytest.mark.parametrize(
    "change",
    [*({"step": step} for step in ("4", 4.5, None, 7)), *({"scores": scores} for scores in ([], 5, {"miou": "0.5"}))],
    ids=str,
)
def test_a_state_of_another_shape_is_a_damaged_checkpoint(run, dataset, tmp_path, caplog, change):
    shutil.copytree(run.folder, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    resumed = train(dataset, tmp_path / "run", config(), resume=True)
    assert "step-00000004: cannot be read" in caplog.text and [c.step for c in resumed.listed()] == [2, 4]
    assert same(weights(resumed.folder, 4), weights(run.folder, 4))


@pytest.mark.parametrize("data", ["x", {"digest": 5, "earlier": []}, {"digest": "x", "earlier": [5]}, {"digest": "x"}], ids=str)
def test_a_malformed_record_of_the_data_set_is_one_line(run, tmp_path, data):
    shutil.copytree(run.folder, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": data}))
    with pytest.raises(DataError, match=r"run\.json: malformed dataset: .*$"):
        Run.open(tmp_path / "run")


def test_what_users_keep_beside_checkpoints_is_left_alone(run, dataset, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run")) / "checkpoints"
    shutil.copytree(folder / "step-00000002", folder / "step-00000002-good")
    (folder / "step-0.txt").write_text("notes")
    resumed = train(dataset, tmp_path / "run", config(steps=6, keep=1), resume=True)
    assert [path.name for path in resumed.checkpoints()] == ["step-00000006"]
    assert sorted(path.name for path in folder.iterdir()) == ["step-0.txt", "step-00000002-good", "step-00000006"]
    assert len([*(folder / "step-00000002-good").iterdir()]) == 3


def test_without_an_intact_checkpoint_there_is_one_line(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    for folder in Run.open(tmp_path / "run").checkpoints():
        cut(folder / "model.safetensors")
    with pytest.raises(DataError, match=r"step-00000002/model\.safetensors: was changed: its SHA-256 differs"):
        Predictor.from_run(tmp_path / "run", "cpu")


def test_the_newest_and_the_best_checkpoint_are_kept(run, tmp_path):
    model = model_from_config(run.config, len(run.vocabulary), weights=None)
    kept = Run(tmp_path, dataclasses.replace(run.config, keep=3), run.vocabulary)
    for step, miou in enumerate([None, 0.1, 0.4, 0.2, 0.4, 0.3, None, 0.1, 0.0, None]):
        model.class_embeddings.data.fill_(step)
        kept.save(step, model, {"rng/cpu": torch.get_rng_state()})
        if miou is not None:
            kept.score(step, {"miou": miou})
    assert [folder.name[-2:] for folder in kept.checkpoints()] == ["02", "07", "08", "09"]
    for which, step in (("newest", 9), ("best", 2)):
        assert kept.load(model, which).step == step
        assert (model.class_embeddings == step).all()


def test_the_best_is_chosen_among_scores_on_the_same_images(run, tmp_path):
    """Steps 1 and 2 are scored on one data set, 3 and 4 on another one, 5 and 6 on fewer of its images."""
    model = model_from_config(run.config, len(run.vocabulary), weights=None)
    kept = Run(tmp_path, dataclasses.replace(run.config, keep=1), run.vocabulary, "0" * 64)
    found = []
    for step, miou in enumerate([0.6, 0.5, 0.3, 0.2, 0.8, 0.9], 1):
        kept.change_data(("0" if step < 3 else "1") * 64, step, allowed=True)
        kept.config = dataclasses.replace(kept.config, eval_limit=2 if step > 4 else None)
        kept.save(step, model, {})
        found.append([int(path.name[-1]) for path in kept.checkpoints()])
        kept.score(step, {"miou": miou})
        assert kept.best().step == [1, 1, 3, 3, 5, 6][step - 1]
    assert found == [[1], [1, 2], [1, 3], [3, 4], [3, 5], [5, 6]]
    state = json.loads((kept.checkpoints()[-1] / "state.json").read_text())
    assert state["evaluated"] == {"dataset": "1" * 64, "limit": 2}


def test_scores_of_older_versions_compete_with_all_others(run, tmp_path):
    model = model_from_config(run.config, len(run.vocabulary), weights=None)
    kept = Run(tmp_path, dataclasses.replace(run.config, keep=9), run.vocabulary, "0" * 64)
    for step, miou in enumerate([0.4, 0.7, 0.5]):
        kept.save(step, model, {})
        kept.score(step, {"miou": miou})
    for folder in kept.checkpoints()[:2]:
        state = json.loads((folder / "state.json").read_text())
        del state["evaluated"]
        (folder / "state.json").write_text(json.dumps(state))
    assert kept.best().step == 1 and kept.load(model, "best").evaluated is None
    kept.dataset = "1" * 64
    kept.score(2, {"miou": 0.6})
    assert kept.best().step == 1


def test_a_checkpoint_that_cannot_be_removed_costs_a_warning_and_no_step(run, dataset, tmp_path, monkeypatch, caplog):
    shutil.copytree(run.folder, tmp_path / "run")
    rmtree = shutil.rmtree

    def refuse(path, **settings):
        if Path(path).name == "step-00000002":
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))
        rmtree(path, **settings)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    resumed = train(dataset, tmp_path / "run", config(steps=6, keep=1, save_every=1), resume=True)
    assert [path.name[-1] for path in resumed.checkpoints()] == ["2", "6"]
    line = f"{resumed.folder / 'checkpoints' / 'step-00000002'}: cannot be removed: Directory not empty; the training continues"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [line] * 2


def test_of_a_checkpoint_that_was_moved_elsewhere_only_the_link_is_removed(run, dataset, tmp_path):
    folder = Path(shutil.copytree(run.folder, tmp_path / "run")) / "checkpoints"
    for name in ("step-00000002", "step-00000004"):
        (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(tmp_path / name)
    resumed = train(dataset, tmp_path / "run", config(steps=6, keep=1), resume=True)
    assert [path.name for path in folder.iterdir()] == ["step-00000006"]
    assert all(len([*(tmp_path / name).iterdir()]) == 3 for name in ("step-00000002", "step-00000004"))
    folder.joinpath("step-00000007").symlink_to(tmp_path / "step-00000004")
    resumed.save(7, model_from_config(run.config, len(run.vocabulary), weights=None), {})
    assert not folder.joinpath("step-00000007").is_symlink() and len([*(tmp_path / "step-00000004").iterdir()]) == 3


def test_the_best_of_none_is_one_line(run):
    with pytest.raises(DataError, match="no checkpoint was evaluated; train with --eval-every"):
        Predictor.from_run(run.folder, "cpu", "best")


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_line_and_leaves_nothing(run, tmp_path):
    """A limit on the size of files stands in for a full disk: both fail in the middle of the tensors."""
    copy = Run.open(shutil.copytree(run.folder, tmp_path / "run"))
    model = model_from_config(run.config, len(run.vocabulary), weights=None)
    before = sorted(path.relative_to(copy.folder) for path in copy.folder.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DataError, match=r"step-00000009: cannot be written: .*File too large"):
            copy.save(9, model, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.relative_to(copy.folder) for path in copy.folder.rglob("*")) == before
