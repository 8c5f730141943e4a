"""Scores of single pictures, compared with plain counts of each; what `ess eval --per-image` writes."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner

from cli.ess import main
from cocolvis.vocabulary import coco_lvis
from ess.evaluation.evaluate import Predicted, count_pictures, image_indices, predictions
from ess.evaluation.picture_scores import WORST, picture_scores
from ess.evaluation.reports import PICTURE_COLUMNS, write_pictures
from ess.inference.predictor import Predictor

CLASSES = 30


def made_pictures(count=25, seed=0) -> list[Predicted]:
    """Pictures of a few classes, with ignored pixels, in the order of no id."""
    rng, found = np.random.default_rng(seed), []
    for image_id in rng.permutation(1000)[:count].tolist():
        truth = rng.choice(rng.integers(-1, CLASSES, 5), (20, 20))
        right = rng.random(truth.shape) < rng.random()
        found.append(Predicted(image_id, truth, np.where(right & (truth >= 0), truth, rng.integers(0, CLASSES, truth.shape))))
    return found


def plainly(picture: Predicted) -> tuple[dict[int, float], float, int]:
    """IoU of each class in the truth, accuracy and number of labelled pixels."""
    labelled = picture.labels >= 0
    truth, found = picture.labels[labelled], picture.prediction[labelled]
    iou = {c: ((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum() for c in np.unique(truth).tolist()}
    return iou, (truth == found).mean(), labelled.sum()


def test_scores_are_those_of_a_plain_count_of_each_picture():
    pictures = {picture.image_id: picture for picture in made_pictures()}
    scores = picture_scores(count_pictures(pictures.values(), CLASSES))
    assert {score.image_id for score in scores} == {*pictures} and len(scores) == len(pictures)
    for score in scores:
        iou, accuracy, labelled = plainly(pictures[score.image_id])
        assert score.miou == pytest.approx(np.mean([*iou.values()])) and score.accuracy == pytest.approx(accuracy)
        assert (score.labelled, score.classes) == (labelled, len(iou))
        pixels = {c: (pictures[score.image_id].labels == c).sum() for c in iou}
        expected = sorted((c for c in iou if iou[c] < 1), key=lambda c: (iou[c], -pixels[c], c))[:WORST]
        assert [label for label, _ in score.worst] == expected
        assert [value for _, value in score.worst] == pytest.approx([iou[c] for c in expected])
    assert [score.miou for score in scores] == sorted(score.miou for score in scores)


def test_ties_go_to_the_lower_accuracy_and_id_and_pictures_without_labels_come_last():
    nothing, right, wrong = np.full((2, 4), -1), np.zeros((2, 4), int), np.ones((2, 4), int)
    halves = np.array([[0, 0, 0, 1]] * 2)
    pictures = [
        Predicted(9, nothing, wrong),
        Predicted(8, right, right),
        Predicted(7, halves, right),  # IoU 3/4 and 0, accuracy 3/4
        Predicted(6, np.zeros((1, 8), int), np.array([[0, 0, 0, 2, 2, 2, 2, 2]])),  # IoU and accuracy 3/8
        Predicted(5, right, wrong),
        Predicted(4, wrong, right),
        Predicted(3, nothing, wrong),
        Predicted(10, np.array([[0, 1, 1, 1, 2, 2, 4, 4]]), np.full((1, 8), 3)),  # all classes have an IoU of 0
    ]
    scores = picture_scores(count_pictures(pictures, CLASSES))
    assert [score.image_id for score in scores] == [4, 5, 10, 6, 7, 8, 3, 9]
    assert np.isnan([scores[-1].miou, scores[-1].accuracy]).all() and scores[-1][3:] == (0, 0, ())
    assert scores[5].worst == () and scores[4].worst == ((1, 0.0), (0, 0.75))
    assert scores[2].worst == ((1, 0.0), (2, 0.0), (4, 0.0))
    assert picture_scores(count_pictures([], CLASSES)) == []


def test_the_file_names_the_worst_classes(tmp_path):
    nothing, right = np.full((2, 4), -1), np.zeros((2, 4), int)
    pictures = [Predicted(1, nothing, right), Predicted(2, np.array([[0, 0, 0, 1]] * 2), right)]
    write_pictures(tmp_path / "p.csv", picture_scores(count_pictures(pictures, 1284)), coco_lvis())
    rows = list(csv.reader((tmp_path / "p.csv").open()))
    names = "; ".join(coco_lvis().name(c) for c in (2, 1))
    assert rows == [
        [*PICTURE_COLUMNS],
        ["2", "0.375000", "0.750000", "8", "2", names],
        ["1", "", "", "0", "0", ""],
    ]


def test_the_command_writes_every_picture_and_prints_the_same_scores(untrained_run, dataset, tmp_path):
    def ess_eval(*arguments):
        result = CliRunner().invoke(main, ["eval", str(untrained_run), str(dataset.folder), "--json", *map(str, arguments)])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    assert ess_eval("--per-image", tmp_path / "p.csv", "--device", "cpu") == ess_eval("--device", "cpu")
    predictor = Predictor.from_run(untrained_run, "cpu")
    images = predictions(predictor, dataset, indices=image_indices(dataset, "val"))
    plain = {image.image_id: plainly(image) for image in images}
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert {int(row["image_id"]) for row in rows} == {*plain} and [p.name for p in tmp_path.iterdir()] == ["p.csv"]
    for row in rows:
        iou, accuracy, labelled = plain[int(row["image_id"])]
        assert float(row["miou"]) == pytest.approx(np.mean([*iou.values()]), abs=1e-6)
        assert float(row["pixel_accuracy"]) == pytest.approx(accuracy, abs=1e-6)
        assert (int(row["labelled_pixels"]), int(row["classes"])) == (labelled, len(iou))
        assert set(row["worst_classes"].split("; ")) <= {dataset.vocabulary.name(c + 1) for c in iou}
