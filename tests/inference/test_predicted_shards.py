"""Predictions as shards: they are those of the predictor, other commands read them, and a continued call changes nothing."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cli.ess import main
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.index import open_index
from cocolvis.vocabulary import Vocabulary
from ess.inference import shards
from ess.inference.predictor import Predictor
from ess.inference.shards import predict_split


@pytest.fixture(scope="module")
def predictor(untrained_run) -> Predictor:
    return Predictor.from_run(untrained_run, "cpu")


@pytest.fixture(scope="module")
def written(predictor, dataset, tmp_path_factory):
    """Predictions for the split train, which has several shards."""
    out, seen = tmp_path_factory.mktemp("predicted") / "out", []
    assert predict_split(predictor, dataset, "train", out, progress=lambda *done: seen.append(done)) == []
    total = dataset.splits["train"]
    assert seen == sorted(seen) and seen[-1] == (total, total)
    return out


def test_every_mask_is_the_one_that_the_predictor_gives(written, predictor, dataset):
    truth, found = dataset.split("train"), Dataset.open(written).split("train")
    assert len(found) == len(truth) and len(Dataset.open(written).shard_paths("train")) > 1
    for i in range(len(truth)):
        assert (found[i].image_id, found[i].path) == (truth[i].image_id, truth[i].path)
        assert np.array_equal(found.mask(i), predictor(truth[i].image()))


def test_the_folder_says_what_was_predicted_and_by_what(written, dataset, predictor):
    made_by = open_index(written)["predictions"]
    assert made_by["of"] == dataset.index["digest"] and made_by["step"] == 1
    assert made_by["run"] == predictor.checkpoint.folder.parents[1].name and len(made_by["weights"]) == 64
    assert made_by["views"]["scales"] in ([1.0], (1.0,))


def test_a_data_set_of_predictions_is_verified_and_compared_like_any_other(written, sample_dataset):
    from cli.cocolvis import main as cocolvis

    verified = CliRunner().invoke(cocolvis, ["verify", str(written)])
    assert verified.exit_code == 0, verified.output
    compared = CliRunner().invoke(cocolvis, ["diff", str(sample_dataset), str(written)])
    assert compared.exit_code == 0 and "images differ" in compared.stdout


def note_shards(monkeypatch, made):
    """Append the name of each shard that is written to the list ``made``."""
    write = shards._Writing._write_shard
    monkeypatch.setattr(shards._Writing, "_write_shard", lambda *a: made.append(a[2].name) or write(*a))


def test_finished_shards_are_kept_and_the_rest_is_predicted(written, predictor, dataset, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(written, out)
    index = (out / "dataset.json").read_bytes()
    paths = sorted((out / "shards").iterdir())
    (out / "dataset.json").unlink()
    paths[0].unlink()
    paths[-1].write_bytes(paths[-1].read_bytes()[:3000])  # as after a kill on a file system that loses data
    made = []
    note_shards(monkeypatch, made)
    predict_split(predictor, dataset, "train", out, skip_existing=True)
    assert made == [paths[0].name, paths[-1].name]
    assert (out / "dataset.json").read_bytes() == index
    assert [path.read_bytes() for path in paths] == [(written / "shards" / path.name).read_bytes() for path in paths]


def test_shards_of_other_views_are_not_kept(written, untrained_run, dataset, tmp_path, monkeypatch):
    from ess.inference.views import Inference

    out, made = tmp_path / "out", []
    shutil.copytree(written, out)
    note_shards(monkeypatch, made)
    flipped = Predictor.from_run(untrained_run, "cpu", inference=Inference(flip=True))
    predict_split(flipped, dataset, "train", out, skip_existing=True)
    assert len(made) == len(dataset.shard_paths("train"))
    assert open_index(out)["predictions"]["views"]["flip"] is True


def test_shards_of_another_batch_size_and_of_a_renamed_run_are_kept(written, untrained_run, dataset, tmp_path, monkeypatch):
    from ess.inference.views import Inference

    out, made = tmp_path / "out", []
    shutil.copytree(written, out)
    shutil.copytree(untrained_run, tmp_path / "renamed")
    note_shards(monkeypatch, made)
    renamed = Predictor.from_run(tmp_path / "renamed", "cpu", inference=Inference(batch_size=3))
    predict_split(renamed, dataset, "train", out, skip_existing=True)
    made_by = open_index(out)["predictions"]
    assert made == [] and made_by["run"] == "renamed" and made_by["views"]["batch_size"] == 3


def test_shards_of_another_calibration_are_not_kept(written, untrained_run, dataset, tmp_path, monkeypatch):
    out, made, plain = tmp_path / "out", [], Predictor.from_run(untrained_run, "cpu")
    shutil.copytree(written, out)
    note_shards(monkeypatch, made)
    digests, shards_of_all = [], len(dataset.shard_paths("train"))
    for shift, expected in ((None, 0), (0.1, shards_of_all), (0.2, shards_of_all), (0.2, 0), (None, shards_of_all)):
        bias = None if shift is None else torch.linspace(-shift, shift, len(dataset.vocabulary))
        calibrated = Predictor(plain.model, plain.vocabulary, plain.device, checkpoint=plain.checkpoint, bias=bias)
        made.clear()
        predict_split(calibrated, dataset, "train", out, skip_existing=True)
        assert len(made) == expected
        digests.append(open_index(out)["predictions"]["calibration"])
    assert digests == [None, digests[1], digests[2], digests[2], None] and len({*digests}) == 3


def test_damaged_images_are_left_out_and_reported_even_when_continued(predictor, sample_dataset, tmp_path):
    shutil.copytree(sample_dataset, tmp_path / "data")
    (shard,) = sorted((tmp_path / "data" / "shards").glob("val-*.h5"))[:1]
    with h5py.File(shard) as file:
        start, first = file["image/bytes"].id.get_offset(), int(file["id"][0])
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(b"GIF89a" + bytes(100))
    dataset, out = Dataset.open(tmp_path / "data"), tmp_path / "out"
    for skip_existing in (False, True):
        faults = predict_split(predictor, dataset, "val", out, skip_existing=skip_existing)
        assert len(faults) == 1 and f"val-00000.h5: image {first} (" in faults[0] and "it is a GIF" in faults[0]
        assert open_index(out)["report"]["counts"] == {"damaged image": 1}
        assert len(Dataset.open(out).split("val")) == len(dataset.split("val")) - 1


@pytest.fixture
def elsewhere(sample, tmp_path):
    """A data set of picture paths and the folder of its pictures, which was moved."""
    shutil.copytree(sample.coco, tmp_path / "coco")
    moved = tmp_path / "moved"
    built = sample._replace(coco=tmp_path / "coco").rebuild(tmp_path / "data", images="path", shard_size=4)
    (tmp_path / "coco").rename(moved)
    return built.folder, moved


def test_images_that_could_not_be_reached_are_predicted_later(predictor, elsewhere, tmp_path, monkeypatch):
    folder, moved = elsewhere
    out, made = tmp_path / "out", []
    note_shards(monkeypatch, made)
    whole = Dataset.open(folder, moved)
    hidden = moved / whole.split("val")[0].path
    hidden.rename(tmp_path / "hidden.jpg")
    for skip_existing in (False, True):
        (fault,) = predict_split(predictor, whole, "val", out, skip_existing=skip_existing)
        assert f"{hidden.name}: does not exist" in fault
        assert open_index(out)["report"]["faults"][0]["reason"] == fault
    assert len(made) == len(whole.shard_paths("val")) > 1  # all shards once: the image is as unreachable as before
    made.clear()
    (tmp_path / "hidden.jpg").rename(hidden)
    assert predict_split(predictor, whole, "val", out, skip_existing=True) == []
    assert made == ["val-00000.h5"] and len(Dataset.open(out).split("val")) == len(whole.split("val"))


@pytest.mark.parametrize("skip_existing", [False, True])
def test_good_predictions_are_not_replaced_if_no_image_can_be_reached(skip_existing, predictor, elsewhere, tmp_path):
    folder, moved = elsewhere
    out = tmp_path / "out"
    predict_split(predictor, Dataset.open(folder, moved), "val", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    told = r"none of the \d+ images of split val can be read; the first: .*pass the folder of the images with --image-root"
    with pytest.raises(DataError, match=told):
        predict_split(predictor, Dataset.open(folder), "val", out, skip_existing=skip_existing)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_two_predictions_never_write_to_one_folder(predictor, dataset, tmp_path):
    refused = []

    def progress(done, total):
        if not refused:
            with pytest.raises(
                DataError, match=r"a prediction \(process \d+ on .+\) is running there; wait until it ends"
            ) as error:
                predict_split(predictor, dataset, "val", tmp_path / "out")
            refused.append(error)

    predict_split(predictor, dataset, "val", tmp_path / "out", progress=progress)
    assert refused and len(Dataset.open(tmp_path / "out").split("val")) == len(dataset.split("val"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", "shards"]


def test_a_data_set_of_labels_is_never_overwritten(predictor, dataset, sample_dataset, tmp_path):
    shutil.copytree(sample_dataset, tmp_path / "data")
    with pytest.raises(DataError, match="holds a data set that is not predictions; choose another --out"):
        predict_split(predictor, dataset, "val", tmp_path / "data")
    assert (tmp_path / "data" / "dataset.json").read_bytes() == (sample_dataset / "dataset.json").read_bytes()


def test_predictions_for_another_split_and_unfinished_builds_are_never_replaced(written, predictor, dataset, tmp_path):
    shutil.copytree(written, tmp_path / "out")
    with pytest.raises(DataError, match="holds predictions for the split train, which would be lost; choose another --out"):
        predict_split(predictor, dataset, "val", tmp_path / "out")
    (tmp_path / "built" / ".build").mkdir(parents=True)
    with pytest.raises(DataError, match="holds an unfinished build, whose shards would be lost; choose another --out"):
        predict_split(predictor, dataset, "val", tmp_path / "built")
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError):
            predict_split(predictor, dataset, "val", out)
    assert (tmp_path / "out" / "dataset.json").read_bytes() == (written / "dataset.json").read_bytes()


def test_another_vocabulary_is_refused(predictor, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "vocabulary", Vocabulary(dataset.vocabulary.classes[:-1]))
    with pytest.raises(DataError, match="has another vocabulary than the model was trained with"):
        predict_split(predictor, dataset, "val", tmp_path / "out")


def test_the_command_predicts_a_split(untrained_run, sample_dataset, tmp_path):
    arguments = ["predict", str(untrained_run), str(sample_dataset), "--out", str(tmp_path / "out"), "--device", "cpu"]
    done = CliRunner().invoke(main, [*arguments, "--format", "shards"])
    assert done.exit_code == 0 and f"The predictions are in {tmp_path / 'out'}." in done.output, done.output
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["splits"].keys() == {"val"}
    for wrong in (["--split", "val"], ["--format", "shards", "--format", "png"], ["--image-root", "x"]):
        assert CliRunner().invoke(main, [*arguments, *wrong]).exit_code == 2
    missing = CliRunner().invoke(main, [*arguments, "--format", "shards", "--split", "test"])
    assert missing.exit_code == 1 and "has no split 'test'" in missing.stderr
