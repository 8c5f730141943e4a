"""Training on stored features: the same as on pictures, computed once, kept whole through kills and damage, and shared."""

import hashlib
import multiprocessing
import os
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from runs import config, same, weights
from victims import contents

from cocolvis.errors import DataError
from ess.checkpoint import Run
from ess.data import feature_store
from ess.data.batches import FeatureBatch
from ess.data.feature_batches import cut, window_start
from ess.data.loader import StepBatches, to_labels
from ess.data.transforms import normalize
from ess.evaluation.evaluate import evaluate
from ess.inference.predictor import Predictor
from ess.models.build import model_from_config
from ess.training import features as storing
from ess.training.loop import optimise, seed_step, train
from ess.training.objective import Objective
from ess.training.state import TrainingState, set_learning_rates

WHOLE = {"scale_min": 1.0, "scale_max": 1.0, "flip": 0.0, "encoder_lr": 0.0}
FROZEN = config(arch="linear", features="8,32", loss="exact", crop=96, steps=2, device="cpu", track="none", **WHOLE)


@pytest.fixture(scope="module")
def stored(dataset, tmp_path_factory):
    """A run of two steps on stored features, with an evaluation; and the folder of the features."""
    folder = tmp_path_factory.mktemp("stored")
    settings = replace(FROZEN, eval_every=2, workers=1)
    return train(dataset, folder / "run", settings, cache_features=folder / "features"), folder / "features"


def test_training_on_stored_features_is_training_on_whole_pictures(dataset, stored):
    split = dataset.split("train")
    torch.manual_seed(0)
    model = model_from_config(FROZEN, len(dataset.vocabulary), weights=None)
    objective = Objective(model, FROZEN).train()
    state = TrainingState(model, FROZEN)
    for step, items in enumerate(StepBatches(len(split), 3, 2, 0)):
        samples = [split[index] for index, _ in items]
        maps, labels = [], []
        for sample in samples:
            image = normalize(torch.from_numpy(sample.image()).permute(2, 0, 1)[None])
            height, width = sample.size
            image = F.pad(image, (0, -width % 32, 0, -height % 32))
            found = model.encoder((image * model.scale + model.shift) if model.scale is not None else image)
            sides = [(96 // s - each.shape[3], 96 // s - each.shape[2]) for s, each in zip((8, 32), found, strict=True)]
            maps.append([F.pad(each, (0, x, 0, y), "replicate") for each, (x, y) in zip(found, sides, strict=True)])
            labels.append(torch.from_numpy(to_labels(np.pad(sample.mask, ((0, 96 - height), (0, 96 - width))))))
        features = tuple(torch.cat(each).detach() for each in zip(*maps, strict=True))
        batch = FeatureBatch(features, torch.stack(labels), torch.arange(3))
        set_learning_rates(state.optimizer, FROZEN, step, 2)
        seed_step(0, step, 0)
        optimise(Accelerator(cpu=True), objective, state.optimizer, batch)
    found, first = weights(stored[0].folder, 2), weights(stored[0].folder, 0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-4, msg=name)
    moved = {name for name in first if not torch.equal(first[name], found[name])}
    assert {"class_embeddings", "decoder.head.weight", "decoder.norm.running_mean"} <= moved
    assert not any(name.startswith("encoder.") for name in moved)


def test_evaluations_on_stored_features_are_those_on_pictures(dataset, stored):
    scores = Run.open(stored[0].folder).listed()[-1].scores
    expected = evaluate(Predictor.from_run(stored[0].folder, "cpu"), dataset)
    assert scores["images"] == expected["images"] == 10
    assert scores["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=0.005)
    assert scores["miou"] == pytest.approx(expected["miou"], abs=0.005)


def test_a_second_run_computes_nothing_and_learns_the_same(dataset, stored, tmp_path, monkeypatch):
    monkeypatch.setattr(storing, "_features", lambda *_: pytest.fail("computes features that are stored"))
    run = train(dataset, tmp_path / "run", FROZEN, cache_features=stored[1])
    assert same(weights(run.folder, 2), weights(stored[0].folder, 2))


def test_a_run_is_continued_with_and_without_the_features(dataset, stored, tmp_path):
    half = train(dataset, tmp_path / "run", replace(FROZEN, steps=1), cache_features=stored[1])
    longer = replace(FROZEN, steps=2)
    train(dataset, half.folder, longer, resume=True)
    assert [folder.name for folder in half.checkpoints()] == ["step-00000001", "step-00000002"]


def store(dataset, folder, images=range(8), settings=FROZEN, rank=0, processes=1):
    """Store the features of some pictures of ``train``, as one of several processes would, and return them."""
    torch.manual_seed(0)
    model = Objective(model_from_config(settings, len(dataset.vocabulary), weights=None), settings).model
    ranks = {"process_index": rank, "num_processes": processes}
    team = SimpleNamespace(device=torch.device("cpu"), **ranks, wait_for_everyone=lambda: None)
    return storing.store_features(folder, dataset, {"train": images}, model, settings, team)["train"]


@pytest.fixture
def computed(monkeypatch):
    """The indices of the pictures whose features are computed; a file holds those of about three pictures."""
    indices, original = [], storing._features
    monkeypatch.setattr(
        storing, "_features", lambda split, index, *rest: indices.append(index) or original(split, index, *rest)
    )
    monkeypatch.setattr(feature_store, "_FILE_BYTES", 20_000)
    return indices


def test_a_killed_computation_leaves_whole_files_and_is_continued(dataset, tmp_path, computed, monkeypatch):
    counted = storing._features

    def killed(split, index, *rest):
        if index == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return counted(split, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(storing, "_features", killed)
        child = multiprocessing.get_context("fork").Process(target=store, args=(dataset, tmp_path), daemon=True)
        child.start()
        child.join(120)
    assert child.exitcode == -signal.SIGKILL
    files = [*tmp_path.rglob("*.h5")]
    assert files and all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)
    found = store(dataset, tmp_path)
    assert 2 <= len(computed) < 8 and computed[-2:] == [6, 7]
    (tmp_path / "whole").mkdir()
    expected = store(dataset, tmp_path / "whole")
    split = dataset.split("train")
    for index in range(8):
        for one, other in zip(found.of(split[index], index), expected.of(split[index], index), strict=True):
            assert one.dtype == np.float16 and np.array_equal(one, other)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_pictures_whenever_each_of_them_looks(dataset, tmp_path, computed, processes):
    """Each process looks for stored features when those before it have written theirs."""
    for rank in range(processes):
        found = store(dataset, tmp_path, range(12), rank=rank, processes=processes)
    assert sorted(computed) == [*range(12)]
    split = dataset.split("train")
    assert all(found.of(split[index], index) for index in range(12))


def test_damaged_files_are_computed_again(dataset, tmp_path, computed, caplog):
    store(dataset, tmp_path)
    assert computed == [*range(8)]
    file = sorted(tmp_path.rglob("*.h5"))[0]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    store(dataset, tmp_path)
    assert 1 <= len(computed) - 8 < 8 and f"{file}: is damaged" in caplog.text
    store(dataset, tmp_path)
    assert len(computed) - 8 < 8


def test_a_damaged_file_that_another_process_removes_first_is_computed_again(dataset, tmp_path, computed, monkeypatch):
    store(dataset, tmp_path)
    hashed, removed = feature_store.sha256, []

    def late(path):
        if not removed:
            removed.append(path.unlink())
        return hashed(path)

    monkeypatch.setattr(feature_store, "sha256", late)
    found = store(dataset, tmp_path)
    split = dataset.split("train")
    assert 1 <= len(computed) - 8 < 8 and all(found.of(split[index], index) for index in range(8))


def test_data_sets_share_the_features_of_their_common_pictures(sample, dataset, tmp_path, computed):
    fold = sample.rebuild(tmp_path / "fold", shard_size=7)
    store(dataset, tmp_path / "features", range(6))
    store(fold, tmp_path / "features", range(2, 9))
    assert computed == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    store(dataset, tmp_path / "features", range(2), replace(FROZEN, features="8"))
    assert computed[9:] == [0, 1]


def test_the_size_is_stated_first(dataset, tmp_path, caplog):
    caplog.set_level("INFO", "ess")
    store(dataset, tmp_path, range(20))
    words = re.match(rf"features of 20 pictures: ([\d.]+) kB in {tmp_path}$", caplog.messages[0])
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.h5"))
    assert 1000 * float(words[1]) == pytest.approx(written, rel=0.1)


def test_a_small_disk_is_refused(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(storing.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"the features need \d+.* kB, but the disk has 1.00 kB free"):
        store(dataset, tmp_path)
    assert not [*tmp_path.rglob("*.h5")]


def test_a_picture_that_does_not_fit_the_memory_is_one_line_whose_advice_helps(dataset, tmp_path, monkeypatch):
    def exhausted(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    sample = dataset.split("train")[0]
    told = "out of memory; image {} is {} x {} pixels, and --cache-features encodes it whole".format(
        sample.image_id, *sample.size
    )
    monkeypatch.setattr(storing, "normalize", exhausted)
    with pytest.raises(DataError, match=f"^{told}; choose a smaller --encoder, or leave out --cache-features$"):
        train(dataset, tmp_path / "run", FROZEN, cache_features=tmp_path / "features")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flip": 0.5, "scale_min": 0.5}, "stored features need scale_min 1, flip 0, not 0.5, 0.5"),
        ({"scale_max": 2.0}, "need scale_max 1, not 2.0"),
        ({"color_jitter": 0.1}, "need color_jitter 0, not 0.1"),
        ({"encoder_lr": 0.1}, "need encoder_lr 0, not 0.1"),
        ({"arch": "fpn", "features": None}, "need arch linear or deeplabv3plus, not fpn"),
        ({"crop": 40}, "crop is 40; stored features of mobilenetv2_100 need a multiple of 32"),
    ],
)
def test_settings_that_change_the_features_are_refused(dataset, tmp_path, changed, message):
    with pytest.raises(DataError, match=message) as refusal:
        train(dataset, tmp_path / "run", replace(FROZEN, **changed), cache_features=tmp_path / "features")
    assert "\n" not in str(refusal.value) and not [*tmp_path.rglob("*")]


def test_averaged_weights_with_another_encoder_than_the_steps_are_refused(dataset, tmp_path):
    """The encoder was trained before it was frozen."""
    run = train(dataset, tmp_path / "run", replace(FROZEN, steps=1, ema=0.5, encoder_lr=0.1))
    before = contents(run.folder)
    with pytest.raises(DataError, match=r"ema has averaged an encoder .*; leave out --cache-features$") as told:
        train(dataset, run.folder, replace(FROZEN, ema=0.5), resume=True, cache_features=tmp_path / "features")
    assert "\n" not in str(told.value) and contents(run.folder) == before and not (tmp_path / "features").exists()
    for steps in (1, 2):
        settings = replace(FROZEN, ema=0.5, steps=steps)
        train(dataset, tmp_path / "frozen", settings, resume=True, cache_features=tmp_path / "features")


def test_windows_begin_at_multiples_of_the_stride_and_contain_the_pixel():
    rng = np.random.default_rng(0)
    for side, size in ((160, 64), (64, 96), (96, 96)):
        starts = {window_start(rng, side, size, 32) for _ in range(100)}
        assert starts == {*range(0, max(side - size, 0) + 1, 32)}
        for pixel in range(side):
            allowed = {s for s in starts if s <= pixel < s + size}
            assert {window_start(rng, side, size, 32, pixel) for _ in range(20)} <= allowed
    maps = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    assert cut(maps, 1, 2, 3).tolist() == maps[:, [1, 2, 2]][:, :, [2, 3, 3]].tolist()
