"""Evaluation compared with plain counts over the whole data set; the ranking by training images; what the command writes."""

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from cli.ess import main
from cocolvis.errors import DataError
from cocolvis.vocabulary import Vocabulary
from ess.evaluation.bootstrap import drawn_miou
from ess.evaluation.evaluate import count_pictures, count_pixels, evaluate, image_indices, predictions, scores_of
from ess.evaluation.metrics import Confusion, miou_curve
from ess.evaluation.reports import COLUMNS, frequency_curve, top_scores, training_images, write_classes
from ess.inference.predictor import Predictor
from ess.inference.views import Inference
from ess.models.network import SegmentationModel


@pytest.fixture(scope="module")
def predictor(dataset) -> Predictor:
    """A model without a network that is sometimes right: it predicts the class with the nearest mean colour."""
    split, sums = dataset.split("val"), np.zeros((len(dataset.vocabulary) + 1, 4))
    for index in range(len(split)):
        sample = split[index]
        pixels = np.concatenate([sample.image().reshape(-1, 3), np.ones((sample.mask.size, 1))], axis=1)
        np.add.at(sums, sample.mask.ravel(), pixels)
    mean, std = (torch.tensor(numbers) for numbers in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    colours = torch.from_numpy(sums[1:, :3] / np.maximum(sums[1:, 3:], 1) / 255).float()
    colours[torch.from_numpy(sums[1:, 3] == 0)] = 100.0
    model = SegmentationModel(nn.Identity(), nn.Identity(), len(colours), 3, normalize=None, multiple=8)
    model.class_embeddings.data = (colours - mean) / std
    return Predictor(model.eval(), dataset.vocabulary, torch.device("cpu"))


@pytest.fixture(scope="module")
def plain(dataset, predictor) -> tuple[np.ndarray, np.ndarray]:
    """Truth and prediction of every labelled pixel of the split val."""
    samples = [dataset.split("val")[index] for index in range(len(dataset.split("val")))]
    truth = np.concatenate([sample.mask.ravel() for sample in samples])
    predicted = np.concatenate([predictor(sample.image()).ravel() for sample in samples])
    return truth[truth > 0], predicted[truth > 0]


def counted(predictor, dataset, indices, **how) -> Confusion:
    """The counts of some images of the split val."""
    return count_pixels(predictions(predictor, dataset, indices=indices, **how), len(dataset.vocabulary))


def ious(truth, predicted) -> dict[int, float]:
    return {
        c: ((truth == c) & (predicted == c)).sum() / ((truth == c) | (predicted == c)).sum() for c in np.unique(truth).tolist()
    }


def test_scores_are_those_of_a_plain_count(dataset, predictor, plain):
    scores, iou = evaluate(predictor, dataset), ious(*plain)
    assert 0.05 < scores["pixel_accuracy"] < 0.95
    assert scores["pixel_accuracy"] == pytest.approx((plain[0] == plain[1]).mean())
    assert scores["miou"] == pytest.approx(np.mean(list(iou.values())))
    stuff = [value for c, value in iou.items() if dataset.vocabulary[c].group == "stuff"]
    assert scores["groups"]["stuff"] == pytest.approx(np.mean(stuff))
    assert set(scores) == {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "groups", "images", "skipped"}
    assert scores["images"] == len(dataset.split("val"))
    assert evaluate(predictor, dataset, limit=3)["images"] == 3


@pytest.mark.parametrize("world", [2, 3, 99])
def test_the_counts_of_several_processes_add_up(dataset, predictor, world):
    images = image_indices(dataset, "val", 7)
    whole = counted(predictor, dataset, images)
    parts = [counted(predictor, dataset, images[rank::world]) for rank in range(world)]
    total = parts[0]
    for part in parts[1:]:
        total += part
    assert (total.pixels == whole.pixels).all() and total.images == 7
    assert scores_of(total, dataset) == evaluate(predictor, dataset, limit=7)


def test_batches_change_nothing_and_progress_counts(dataset, predictor):
    batched = Predictor(predictor.model, predictor.vocabulary, predictor.device, Inference(batch_size=4))
    seen = []
    found = counted(batched, dataset, range(6), progress=lambda *done: seen.append(done))
    assert (found.pixels == counted(predictor, dataset, range(6)).pixels).all()
    assert seen == [(done, 6) for done in range(1, 7)]


def test_oracle_classes_are_those_of_the_truth_of_each_image(dataset, predictor):
    split, classes = dataset.split("val"), predictor.model.class_embeddings.detach().double()
    truth, found = [], []
    for index in range(len(split)):
        sample = split[index]
        present = np.unique(sample.mask[sample.mask > 0]).astype(int)
        if not len(present):
            continue
        output = predictor.outputs([sample.image()])[0].movedim(0, 2).double()
        apart = (output[:, :, None] - classes[present - 1]).norm(dim=3)
        truth.append(sample.mask.ravel())
        found.append(present[apart.argmin(dim=2).numpy()].ravel())
    t, p = np.concatenate(truth), np.concatenate(found)
    expected = np.mean(list(ious(t[t > 0], p[t > 0]).values()))
    batched = Predictor(predictor.model, predictor.vocabulary, predictor.device, Inference(batch_size=3))
    for one in (predictor, batched):
        assert evaluate(one, dataset, oracle_classes=True)["miou"] == pytest.approx(expected, abs=1e-4)
    assert expected > evaluate(predictor, dataset)["miou"] + 0.05


def test_the_counts_of_single_pictures_add_up(dataset, predictor):
    whole = counted(predictor, dataset, range(5))
    found = count_pictures(predictions(predictor, dataset, indices=range(5)), len(dataset.vocabulary))
    assert found.ids.tolist() == sorted(dataset.split("val").image_ids()[:5].tolist())
    np.testing.assert_array_equal(found.dense().sum(axis=0), whole.pixels.numpy())
    assert torch.equal(found.total().pixels, whole.pixels) and found.total().images == 5
    everything = {"all": np.ones(found.classes, bool)}
    assert drawn_miou(found, np.ones((1, 5), int), everything)["all"][0] == pytest.approx(whole.summary()["miou"])


def test_another_vocabulary_is_refused(dataset, predictor):
    other = dataclasses.replace(dataset.vocabulary[1284], name="timber")
    vocabulary = Vocabulary([*dataset.vocabulary.classes[:-1], other])
    with pytest.raises(DataError, match="another vocabulary"):
        evaluate(Predictor(predictor.model, vocabulary, predictor.device), dataset)


def test_the_most_frequent_classes_are_those_in_most_training_images(dataset, predictor, plain):
    split = dataset.split("train")
    seen = np.zeros(len(dataset.vocabulary) + 1, int)
    for index in range(len(split)):
        seen[np.unique(split.mask(index))] += 1
    images = training_images(dataset)
    np.testing.assert_array_equal(images, seen[1:])
    order = sorted(range(1, len(seen)), key=lambda c: (-seen[c], c))
    iou = ious(*plain)
    curve = frequency_curve(counted(predictor, dataset, image_indices(dataset, "val")).iou(), images)
    for n in (1, 7, 30, 1284):
        expected = [iou[c] for c in order[:n] if c in iou]
        (found,) = top_scores(curve, [n])
        assert found == {"n": n, "miou": pytest.approx(np.mean(expected)) if expected else None}


def test_the_curve_starts_where_a_class_counts():
    iou = np.array([0.5, np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(miou_curve(iou, np.array([1, 0, 3, 2])), [np.nan, 0.5, 0.75, 0.5])
    assert top_scores(np.array([np.nan, 0.5]), [1, 2]) == [{"n": 1, "miou": None}, {"n": 2, "miou": 0.5}]


def test_the_table_of_classes(dataset, predictor, plain, tmp_path):
    confusion = counted(predictor, dataset, image_indices(dataset, "val"))
    write_classes(tmp_path / "c.csv", confusion, dataset, training_images(dataset))
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert tuple(rows[0]) == COLUMNS and [int(row["class"]) for row in rows] == list(range(1, 1285))
    truth, predicted = plain
    iou = ious(truth, predicted)
    for row in rows:
        c = int(row["class"])
        assert (row["name"], row["group"]) == (dataset.vocabulary[c].name, dataset.vocabulary[c].group)
        assert int(row["truth_pixels"]) == (truth == c).sum() and int(row["predicted_pixels"]) == (predicted == c).sum()
        assert row["iou"] == (f"{iou[c]:.6f}" if c in iou else "")
        assert row["accuracy"] == (f"{(predicted[truth == c] == c).mean():.6f}" if c in iou else "")


def ess_eval(run, data, *arguments, code=0):
    result = CliRunner().invoke(main, ["eval", str(run), str(data), "--limit", "2", "--device", "cpu", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_scores_table_and_curve(untrained_run, sample_dataset, tmp_path):
    files = ("--per-class", tmp_path / "c.csv", "--plot", tmp_path / "c.png")
    how = ("--window", 48, "--stride", 32, "--flip", "--scales", "1,0.75", "--batch-size", 2)
    scores = json.loads(ess_eval(untrained_run, sample_dataset, "--top-n", "5,1284", "--json", *files, *how).stdout)
    assert [top["n"] for top in scores["top_n"]] == [5, 1284] and scores["top_n"][1]["miou"] == scores["miou"]
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1285
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "mIoU, 5 most frequent" in ess_eval(untrained_run, sample_dataset, "--top-n", 5).stdout
    assert "--top-n is 1285: expected 1..1284" in ess_eval(untrained_run, sample_dataset, "--top-n", 1285, code=1).stderr
    ess_eval(untrained_run, sample_dataset, "--top-n", "a", code=2)
    oracle = json.loads(ess_eval(untrained_run, sample_dataset, "--oracle-classes", "--json").stdout)
    assert oracle["oracle_classes"] is True and oracle["miou"] > scores["miou"]
    assert "predicted among the classes in the truth" in ess_eval(untrained_run, sample_dataset, "--oracle-classes").stdout


@pytest.mark.parametrize("name", ["write_pictures", "write_classes", "plot_curve"])
def test_scores_are_printed_although_a_file_cannot_be_written(name, untrained_run, sample_dataset, tmp_path, monkeypatch):
    def full(*_, **__):
        raise DataError("c.csv: cannot be written: No space left on device")

    monkeypatch.setattr(f"ess.evaluation.reports.{name}", full)
    files = ("--per-class", tmp_path / "c.csv", "--per-image", tmp_path / "p.csv", "--plot", tmp_path / "c.png")
    result = ess_eval(untrained_run, sample_dataset, "--json", "--top-n", 5, *files, code=1)
    assert json.loads(result.stdout)["images"] == 2 and json.loads(result.stdout)["top_n"][0]["n"] == 5
    assert result.stderr.endswith("Error: c.csv: cannot be written: No space left on device\n")
    assert "mIoU, 5 most frequent" in ess_eval(untrained_run, sample_dataset, "--top-n", 5, *files, code=1).stdout


def test_files_are_written_although_the_scores_cannot_be_printed(untrained_run, sample_dataset, tmp_path, monkeypatch):
    def full(_):
        raise DataError("stdout: cannot be written: No space left on device")

    monkeypatch.setattr("cli.ess.evaluation.eval.print_json", full)
    files = ("--per-class", tmp_path / "c.csv", "--per-image", tmp_path / "p.csv")
    result = ess_eval(untrained_run, sample_dataset, "--json", *files, code=1)
    assert "stdout: cannot be written" in result.stderr and {path.name for path in tmp_path.iterdir()} == {"c.csv", "p.csv"}
