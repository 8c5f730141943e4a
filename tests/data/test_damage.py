"""Damaged images in training and evaluation: named in one line, or skipped, reported once, counted and replaced."""

import errno
import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from runs import config, flags, same, weights
from trees import Tree, box

from cli.ess import main
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.data.loader import TrainingImages, training_batches
from ess.evaluation.evaluate import count_pixels, evaluate, predictions, scores_of
from ess.inference.predictor import Predictor
from ess.training import loop as training
from ess.training.journal import Journal
from ess.training.loop import train
from ess.training.team import join

METHODS = [(0, None), *((1, method) for method in multiprocessing.get_all_start_methods())]
TRAINED = 7
SIZE = (40, 48)


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with coco/ and data/: 7 training and 3 validation images in shards of 4; the pictures are separate files."""
    tree = Tree(tmp_path_factory.mktemp("damage"))
    for image_id in range(1, TRAINED + 4):
        split = "train" if image_id <= TRAINED else "val"
        tree.image(image_id, split, f"{split}2017", size=SIZE)
        tree.stuff(image_id, 90 + 2 * image_id, box(0, 0, 30, 20 + image_id), f"{split}2017")
    tree.build(images="path", shard_size=4)
    return tree.root


@pytest.fixture
def folder(built, tmp_path) -> Path:
    """A copy of ``built`` that the test may damage."""
    return shutil.copytree(built, tmp_path / "copy")


def opened(folder: Path) -> Dataset:
    return Dataset.open(folder / "data", folder / "coco")


def picture(folder: Path, image_id: int) -> Path:
    return next(folder.glob(f"coco/*2017/{image_id:012d}.jpg"))


def scrambled(folder, image_id):
    picture(folder, image_id).write_bytes(b"\xff\xd8" + bytes(500))


def resized(folder, image_id):
    cv2.imwrite(str(picture(folder, image_id)), np.zeros((SIZE[1], SIZE[0], 3), np.uint8))


def removed(folder, image_id):
    picture(folder, image_id).unlink()


def looping(folder, image_id):
    file = picture(folder, image_id)
    file.unlink()
    file.symlink_to(file)


def replaced_by_a_folder(folder, image_id):
    removed_path = picture(folder, image_id)
    removed_path.unlink()
    removed_path.mkdir()


def short_of_runs(folder, image_id):
    dataset = opened(folder)
    split, row = dataset.locate(image_id)
    path = dataset.shard_paths(split.name)[row // 4]
    with h5py.File(path, "r+") as file:
        file["mask/length"][int(file["mask/offsets"][row % 4])] -= 1


DAMAGES = [scrambled, resized, removed, looping, replaced_by_a_folder, short_of_runs]


def ess(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def drawn(dataset, steps=6, start=0, share=(0, 1), **settings):
    """(ids, pixels, damaged) of each step's batch."""
    chosen = config(**{"batch_size": 3, "seed": 5} | settings)
    batches = training_batches(dataset.split("train"), chosen, steps, start, share=share)
    return [(b.ids.tolist(), b.render(48, torch.device("cpu")), [*map(str, b.damaged)]) for b in batches]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_image_is_named_with_its_path_and_shard(folder, damage):
    damage(folder, 2)
    with pytest.raises(DamagedImage) as caught:
        opened(folder).find(2).image()
    assert all(part in str(caught.value) for part in ("image 2 ", "000000000002.jpg", "shards/train-00000.h5"))
    with pytest.raises(DamagedImage, match=r"shards/train-00000\.h5: .*image 2 \(.*--skip-damaged leaves such images out$"):
        drawn(opened(folder))
    assert len(opened(folder).split("train").image_ids()) == TRAINED


@pytest.mark.parametrize(("workers", "method"), METHODS)
def test_a_damaged_image_is_one_line_from_every_process(folder, workers, method):
    scrambled(folder, 2)
    with pytest.raises(DamagedImage) as caught:
        drawn(opened(folder), workers=workers, start_method=method)
    assert len(str(caught.value).splitlines()) == 1
    assert "image 2 (train2017/000000000002.jpg)" in str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_another_image_takes_the_place_of_a_damaged_one(built, folder, damage):
    damage(folder, 2)
    sound, around = drawn(opened(built)), drawn(opened(folder), skip_damaged=True)
    replaced = 0
    for (ids, crops, none), (other_ids, other_crops, damaged) in zip(sound, around, strict=True):
        assert none == [] and len(damaged) == ids.count(2)
        assert all("image 2 (" in line for line in damaged)
        for place, image_id in enumerate(ids):
            if image_id == 2:
                replaced += 1
                assert other_ids[place] in set(range(1, TRAINED + 1)) - {2}
            else:
                assert other_ids[place] == image_id
                assert torch.equal(crops.images[place], other_crops.images[place])
                assert torch.equal(crops.labels[place], other_crops.labels[place])
    assert replaced >= 2


def test_the_replacement_follows_from_seed_and_step_alone(folder):
    for image_id in (2, 5):
        scrambled(folder, image_id)
    dataset = opened(folder)
    whole = drawn(dataset, skip_damaged=True)
    later = drawn(dataset, skip_damaged=True, start=3)
    by_process = drawn(dataset, skip_damaged=True, workers=2)
    shares = [drawn(dataset, skip_damaged=True, share=(rank, 3)) for rank in range(3)]
    for step, (ids, crops, damaged) in enumerate(whole):
        others = [by_process[step]] + ([later[step - 3]] if step >= 3 else [])
        for other_ids, other_crops, other_damaged in others:
            assert (ids, damaged) == (other_ids, other_damaged)
            assert torch.equal(crops.images, other_crops.images) and torch.equal(crops.labels, other_crops.labels)
        assert ids == [image_id for share in shares for image_id in share[step][0]]
        assert torch.equal(crops.images, torch.cat([share[step][1].images for share in shares]))
        assert sorted(damaged) == sorted(line for share in shares for line in share[step][2])
    assert any(
        ids != other for (ids, _, _), (other, _, _) in zip(whole, drawn(dataset, skip_damaged=True, seed=6), strict=True)
    )


def test_the_pixels_of_a_batch_survive_damaged_ones_around_it(folder):
    """Buffers that loader processes reuse are neither overwritten early nor unknown, however many batches are damaged."""
    scrambled(folder, 2)
    dataset = opened(folder)
    alone, together = (drawn(dataset, steps=20, skip_damaged=True, workers=workers, scale_min=0.3) for workers in (0, 1))
    for (ids, crops, _), (other_ids, other_crops, _) in zip(alone, together, strict=True):
        assert ids == other_ids and torch.equal(crops.images, other_crops.images)


def test_a_sound_batch_reads_each_image_once(built, monkeypatch):
    from cocolvis.storage.samples import Sample

    calls, image = [], Sample.image
    monkeypatch.setattr(Sample, "image", lambda self: calls.append(self.image_id) or image(self))
    drawn(opened(built), steps=2, skip_damaged=True)
    assert len(calls) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_set_without_a_sound_image_is_one_line(folder, workers):
    for image_id in range(1, TRAINED + 1):
        removed(folder, image_id)
    with pytest.raises(DataError, match=r"^split train: all 7 images are damaged; the first: .*does not exist") as caught:
        drawn(opened(folder), skip_damaged=True, workers=workers)
    assert not isinstance(caught.value, DamagedImage)


def test_in_a_large_data_set_a_thousand_images_are_tried(folder, monkeypatch):
    monkeypatch.setattr("ess.data.damage._TRIES", 4)
    for image_id in range(1, TRAINED + 1):
        removed(folder, image_id)
    with pytest.raises(DataError, match="split train: 5 images in a row are damaged"):
        drawn(opened(folder), skip_damaged=True)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM, errno.ENFILE])
def test_a_failing_disk_or_machine_is_not_a_damaged_image(folder, monkeypatch, code):
    def refused(self, *arguments, **settings):
        raise OSError(code, os.strerror(code))

    for name in ("read_bytes", "stat"):
        with monkeypatch.context() as patched:
            split = opened(folder).split("train")
            split[0]
            patched.setattr(Path, name, refused)
            items = TrainingImages(split, config(skip_damaged=True)).__getitems__([(0, 0), (1, 1)])
        assert isinstance(items, DataError) and not isinstance(items, DamagedImage)
        assert os.strerror(code) in str(items) and "image 1 " in str(items)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EMFILE, "Too many open files")])
def test_what_runs_out_in_a_loader_process_is_one_line(folder, monkeypatch, error):
    def refused(*arguments, **settings):
        raise error

    monkeypatch.setattr("ess.data.loader.random_crop", refused)
    with pytest.raises(DataError, match=r"^the loader cannot continue: .*(MemoryError|Too many open files)"):
        drawn(opened(folder), skip_damaged=True, workers=1, start_method="fork")


def test_training_reports_each_damaged_image_once_and_their_number(folder, tmp_path, caplog):
    scrambled(folder, 2)
    removed(folder, 5)
    with caplog.at_level(logging.INFO, "ess"):
        train(opened(folder), tmp_path / "run", config(steps=6, skip_damaged=True, track="none"))
    lines = [record.getMessage() for record in caplog.records]
    told = [line for line in lines if line.startswith("skipped a damaged image: ")]
    assert len(told) == 2 and any("image 2 (" in line for line in told) and any("image 5 (" in line for line in told)
    assert lines[-1] == "2 pictures skipped"


def test_a_resumed_training_replaces_damaged_images_bit_identically(folder, tmp_path):
    scrambled(folder, 2)
    settings = {"steps": 4, "save_every": 2, "skip_damaged": True, "track": "none"}
    train(opened(folder), tmp_path / "whole", config(**settings))
    train(opened(folder), tmp_path / "parts", config(**settings))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000004")
    train(opened(folder), tmp_path / "parts", config(**settings), resume=True)
    assert same(weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4))


def test_a_picture_that_is_repaired_while_stored_features_lack_it_stays_left_out(built, folder, tmp_path, monkeypatch, caplog):
    scrambled(folder, 2)
    begin = training._begin

    def repaired(*arguments):
        shutil.copy(picture(built, 2), picture(folder, 2))
        return begin(*arguments)

    monkeypatch.setattr(training, "_begin", repaired)
    how = {"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "encoder_lr": 0.0, "crop": 64, "arch": "linear", "loss": "exact"}
    with caplog.at_level(logging.INFO, "ess"):
        settings = config(**how, steps=6, skip_damaged=True, track="none")
        train(opened(folder), tmp_path / "run", settings, cache_features=tmp_path / "features")
    (told,) = [line for line in caplog.messages if line.startswith("skipped a damaged image: ")]
    assert "image 2 (" in told and told.endswith("no features of it are stored")


def test_the_command_ends_with_one_line_or_skips_damaged_images(folder, tmp_path):
    scrambled(folder, 2)
    arguments = ("train", folder / "data", "--image-root", folder / "coco", "--track", "none", *flags(steps=3))
    error = ess(*arguments, "--out", tmp_path / "a", code=1).stderr.strip().splitlines()[-1]
    assert error.startswith("Error: ") and "image 2 (train2017/000000000002.jpg)" in error and "train-00000.h5" in error
    told = ess(*arguments, "--out", tmp_path / "b", "--skip-damaged").stderr
    assert told.count("image 2 (train2017/000000000002.jpg)") == 1 and "1 picture skipped" in told
    assert Run.open(tmp_path / "b").config.skip_damaged


@pytest.fixture(scope="module")
def trained(built, tmp_path_factory) -> Path:
    return train(opened(built), tmp_path_factory.mktemp("trained") / "run", config(steps=1, track="none")).folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_evaluation_names_a_damaged_image_or_leaves_it_out(built, folder, trained, damage):
    damage(folder, 9)
    predictor, seen = Predictor.from_run(trained, "cpu"), []
    with pytest.raises(DamagedImage, match=r"val-00000\.h5: .*image 9 \(.*--skip-damaged leaves such images out$"):
        evaluate(predictor, opened(folder))
    damaged, classes = [], len(opened(built).vocabulary)
    how = {"indices": range(3), "damaged": damaged, "progress": lambda *done: seen.append(done)}
    counted = count_pixels(predictions(predictor, opened(folder), **how), classes)
    sound = count_pixels(predictions(predictor, opened(built), indices=[0, 2]), classes)
    assert torch.equal(counted.pixels, sound.pixels) and counted.images == 2
    assert len(damaged) == 1 and "image 9 (" in str(damaged[0])
    assert seen == [(1, 3), (2, 3), (3, 3)]
    scores = evaluate(predictor, opened(folder), skip_damaged=True)
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert scores == scores_of(sound, opened(built)) | {"skipped": 1}


def test_an_evaluation_with_only_damaged_images_fails_in_one_line(folder, trained):
    for image_id in (8, 9, 10):
        removed(folder, image_id)
    with pytest.raises(DataError, match=r"^none of the 3 images to evaluate on can be read; the first: .*image 8 "):
        evaluate(Predictor.from_run(trained, "cpu"), opened(folder), skip_damaged=True)


def test_the_command_eval_reports_what_it_skipped(folder, trained):
    resized(folder, 9)
    arguments = ("eval", trained, folder / "data", "--image-root", folder / "coco", "--device", "cpu")
    assert "image 9 (val2017/000000000009.jpg)" in ess(*arguments, code=1).stderr
    told = ess(*arguments, "--skip-damaged")
    assert "2 images of split val, 1 picture skipped" in told.stdout
    assert told.stderr.count("skipped a damaged image: ") == 1 and "image 9 (" in told.stderr
    scores = json.loads(ess(*arguments, "--skip-damaged", "--json").stdout)
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert "skipped" not in ess(*arguments, "--limit", 1).stdout


def test_an_evaluation_within_a_training_leaves_damaged_images_out(folder, tmp_path, caplog):
    scrambled(folder, 9)
    with caplog.at_level(logging.INFO, "ess"):
        train(opened(folder), tmp_path / "run", config(steps=2, eval_every=1, skip_damaged=True))
    scores = Run.open(tmp_path / "run").listed()[-1].scores
    assert (scores["images"], scores["skipped"]) == (2, 1)
    assert sum("image 9 (" in record.getMessage() for record in caplog.records) == 1


def test_an_evaluation_within_a_training_names_a_damaged_image_and_costs_no_step(folder, tmp_path, monkeypatch):
    scrambled(folder, 9)
    ending = config(steps=1, eval_every=1, track="none")
    with pytest.raises(DataError, match=r"image 9 \(.*--skip-damaged leaves such images out; evaluations need this"):
        train(opened(folder), tmp_path / "before", ending)
    monkeypatch.setattr("ess.training.plan.check_readable", lambda *arguments, **settings: None)
    with pytest.raises(DamagedImage, match=r"image 9 \(.*--skip-damaged leaves such images out$"):
        train(opened(folder), tmp_path / "after", ending)
    assert [c.step for c in Run.open(tmp_path / "after").listed()] == [0, 1]


def test_the_pictures_of_the_journal_name_or_leave_out_a_damaged_one(folder, tmp_path, trained):
    scrambled(folder, 9)
    predictor = Predictor.from_run(trained, "cpu")
    for skip in (True, False):
        chosen = config(skip_damaged=skip, track="tensorboard", device="cpu")
        with Journal(join(chosen, tmp_path / str(skip)), tmp_path / str(skip), chosen, 0, 1) as journal:
            shown = []
            journal._board().add_image = lambda tag, *arguments, shown=shown, **settings: shown.append(tag)
            if skip:
                journal.pictures(1, predictor, opened(folder))
                assert shown == ["val/8", "val/10"]
                continue
            with pytest.raises(DamagedImage, match=r"image 9 \(.*--skip-damaged leaves such images out$"):
                journal.pictures(1, predictor, opened(folder))


def test_running_out_of_memory_is_not_a_damaged_image(folder, trained, monkeypatch):
    def refused(*arguments):
        error = cv2.error("Insufficient memory")
        error.code, error.err = cv2.Error.StsNoMem, "Failed to allocate 48 bytes"
        raise error

    monkeypatch.setattr("cocolvis.pictures.encoded.cv2.imdecode", refused)
    with pytest.raises(DataError, match=r"image \d+ .*: not enough memory for its 40 x 48 pixels$") as caught:
        drawn(opened(folder), skip_damaged=True)
    assert not isinstance(caught.value, DamagedImage)
    arguments = ("eval", trained, folder / "data", "--image-root", folder / "coco", "--skip-damaged", "--device", "cpu")
    assert "not enough memory for its 40 x 48 pixels" in ess(*arguments, code=1).stderr
