"""Comparisons of two runs: copies have no difference, planted ones are found, and all numbers are those of plain counts."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from cli.ess import main
from cocolvis.vocabulary import ClassInfo, Vocabulary
from ess.checkpoint import Run
from ess.evaluation.bootstrap import draws
from ess.evaluation.compare import FEWEST, class_groups, compare
from ess.evaluation.evaluate import Predicted, count_pictures

CLASSES, PICTURES = 24, 40
KINDS, NAMES = ("thing", "stuff", "both"), ("rare", "common", "frequent", "stuff")
VOCABULARY = Vocabulary(
    ClassInfo(c, f"c{c}", KINDS[c % 3], "stuff" if c % 3 == 1 else NAMES[c % 2], None, {}) for c in range(1, CLASSES + 1)
)
CHANGED, SELDOM = 3, 20
"""A class that one of the runs predicts better; a class that few pictures show."""


def made(share: float, changed: float | None = None, seed: int = 0) -> list[Predicted]:
    """Pictures with 4 classes in 400 pixels, of which ``share`` are right, and ``changed`` of those of one class.

    Two calls with the same seed have the same truth, and pixels that are right with a smaller share also are with a larger one.
    """
    rng, found = np.random.default_rng(seed), []
    for image_id in range(PICTURES):
        classes = rng.choice([c for c in range(CLASSES) if c != SELDOM], 4, replace=False)
        classes[0] = SELDOM if image_id < FEWEST - 1 else classes[0]
        classes[1] = CHANGED
        truth = rng.choice(classes, 400)
        needed = np.where(truth == CHANGED, share if changed is None else changed, share)
        right = rng.random(400) < needed * (0.5 + 0.5 * rng.random())
        found.append(Predicted(image_id, truth, np.where(right, truth, rng.integers(0, CLASSES, 400))))
    return found


def ious(pictures: list[Predicted]) -> np.ndarray:
    """The IoU of each class over pictures, some of which may be listed repeatedly; NaN if the truth lacks it."""
    truth = np.concatenate([picture.labels for picture in pictures])
    found = np.concatenate([picture.prediction for picture in pictures])
    both = [
        ((truth == c) & (found == c)).sum() / ((truth == c) | (found == c)).sum() for c in range(CLASSES) if (truth == c).any()
    ]
    return np.array([both.pop(0) if (truth == c).any() else np.nan for c in range(CLASSES)])


def test_groups_are_those_of_the_vocabulary():
    groups = class_groups(VOCABULARY)
    assert [*groups] == ["all", "things", "stuff", "rare", "common"]
    for name, members in groups.items():
        expected = [name == "all" or c.group == name or (name == "things" and c.kind in ("thing", "both")) for c in VOCABULARY]
        assert members.tolist() == expected
    only = Vocabulary(ClassInfo(c, f"c{c}", "stuff", None, None, {}) for c in (1, 2))
    assert [*class_groups(only)] == ["all"]


def test_two_copies_have_no_difference():
    counts = count_pictures(made(0.6), CLASSES)
    same = compare(counts, count_pictures(made(0.6), CLASSES), VOCABULARY)
    assert all(change.difference == (0, 0, 0) and change.baseline == change.run > 0.1 for change in same.groups)
    assert same.classes == [] and same.pictures == PICTURES


def test_a_planted_difference_is_found_with_its_sign():
    worse, better = (count_pictures(made(0.5, changed), CLASSES) for changed in (0.2, 0.9))
    found = compare(worse, better, VOCABULARY)
    first = found.classes[0]
    assert first.label == CHANGED and first.difference.low > 0.2 and first.pictures == PICTURES
    assert all(change.difference.low > 0 for change in found.groups if change.name in ("all", "common", "things"))
    back = compare(better, worse, VOCABULARY)
    assert back.classes[0].label == CHANGED and back.classes[0].difference.high < -0.2
    assert back.groups[0].difference.value == -found.groups[0].difference.value


def test_the_numbers_are_those_of_plain_counts():
    baseline, run = made(0.4, seed=2), made(0.8, seed=2)
    found = compare(
        *(count_pictures(each, CLASSES) for each in (baseline, run)), VOCABULARY, most=CLASSES, resamples=200, seed=5
    )
    iou = np.stack([ious(each) for each in (baseline, run)])
    drawn = np.concatenate([*draws(PICTURES, 200, 5)])[1:]
    chosen = [[[each[i] for i in np.repeat(np.arange(PICTURES), times)] for each in (baseline, run)] for times in drawn]
    resampled = np.array([[ious(each) for each in pair] for pair in chosen])  # (200, 2, C)

    def interval(values: np.ndarray, middle: float) -> np.ndarray:
        values = values[~np.isnan(values)]
        return np.quantile(values, [0.025, 0.975]) + middle - values.mean()

    for change in found.groups:
        members = class_groups(VOCABULARY)[change.name]
        assert [change.baseline, change.run] == pytest.approx(np.nanmean(iou[:, members], axis=1))
        middle = change.run - change.baseline
        scores = np.nanmean(resampled[:, :, members], axis=2)
        assert change.difference == pytest.approx((middle, *interval(scores[:, 1] - scores[:, 0], middle)))
    order = sorted(range(CLASSES), key=lambda c: -abs(iou[1, c] - iou[0, c]))
    assert [change.label for change in found.classes] == order
    for change in found.classes:
        assert [change.baseline, change.run] == pytest.approx(iou[:, change.label])
        assert change.pictures == sum((picture.labels == change.label).any() for picture in baseline)
        middle = change.run - change.baseline
        assert change.difference.value == pytest.approx(middle)
        ends = interval(resampled[:, 1, change.label] - resampled[:, 0, change.label], middle)
        expected = ends if change.pictures >= FEWEST else [np.nan, np.nan]
        assert change.difference[1:] == pytest.approx(expected, nan_ok=True)
    assert any(np.isnan(change.difference.low) for change in found.classes)


def test_json_has_names_and_no_nan():
    found = compare(*(count_pictures(made(share), CLASSES) for share in (0.3, 0.7)), VOCABULARY, most=CLASSES)
    content = json.loads(json.dumps(found.to_json(VOCABULARY), allow_nan=False))
    assert [*content["groups"]] == ["all", "things", "stuff", "rare", "common"]
    assert content["groups"]["all"]["difference"] > 0 and content["images"] == PICTURES
    seldom = next(entry for entry in content["classes"] if entry["name"] == f"c{SELDOM + 1}")
    assert (seldom["low"], seldom["high"], seldom["images"], seldom["class"]) == (None, None, FEWEST - 1, SELDOM + 1)


def test_other_pictures_are_refused():
    counts = count_pictures(made(0.5), CLASSES)
    with pytest.raises(ValueError, match="different pictures"):
        compare(counts, count_pictures(made(0.5)[:-1], CLASSES), VOCABULARY)


def ess_compare(*arguments, code=0):
    result = CliRunner().invoke(main, ["compare", *map(str, arguments), "--device", "cpu"])
    assert result.exit_code == code, result.output
    return result


def test_the_command_compares_a_run_with_its_copy(untrained_run, sample_dataset, tmp_path):
    copy = shutil.copytree(untrained_run, tmp_path / "copy")
    found = json.loads(ess_compare(untrained_run, copy, sample_dataset, "--limit", 4, "--json").stdout)
    assert (found["images"], found["skipped"], found["classes"], found["split"]) == (4, 0, [], "val")
    defined = [group for group in found["groups"].values() if group["baseline"] is not None]
    assert defined and all((group["difference"], group["low"], group["high"]) == (0, 0, 0) for group in defined)
    text = ess_compare(untrained_run, copy, sample_dataset, "--limit", 2).stdout
    assert "+0.0000 to +0.0000" in text and "better" not in text and "2 images of split val" in text


def test_the_command_finds_a_run_that_predicts_the_truth(untrained_run, sample_dataset, tmp_path, monkeypatch):
    """Whatever its weights, the second run predicts the classes in the truth of each image only, and so better."""
    from ess.evaluation import evaluate

    copy, plain = shutil.copytree(untrained_run, tmp_path / "copy"), evaluate.predictions
    calls = []

    def helped(*inputs, **settings):
        calls.append(settings)
        return plain(*inputs, **settings | {"oracle_classes": len(calls) == 2})

    monkeypatch.setattr(evaluate, "predictions", helped)
    text = ess_compare(untrained_run, copy, sample_dataset, "--top", 3).stdout
    row = next(line for line in text.splitlines() if line.startswith("all"))
    assert row.endswith("better") and len(calls) == 2
    assert sum(line.count("%") for line in text.splitlines()) == 2  # the headers of both tables


def test_a_run_with_another_vocabulary_is_refused_before_anything_is_predicted(untrained_run, sample_dataset, tmp_path):
    copy = shutil.copytree(untrained_run, tmp_path / "copy")
    content = json.loads((copy / "run.json").read_text())
    content["vocabulary"] = VOCABULARY.to_json()
    (copy / "run.json").write_text(json.dumps(content))
    result = ess_compare(untrained_run, copy, sample_dataset, code=1)
    assert "another vocabulary" in result.stderr and "baseline:" not in result.stderr


def test_a_best_checkpoint_that_the_second_run_lacks_is_missed_before_anything_is_predicted(
    untrained_run, sample_dataset, tmp_path
):
    copy = shutil.copytree(untrained_run, tmp_path / "copy")
    Run.open(copy).score(1, {"miou": 0.5})
    result = ess_compare(copy, untrained_run, sample_dataset, "--checkpoint", "best", code=1)
    assert f"Error: {untrained_run}: no checkpoint was evaluated" in result.stderr and "baseline:" not in result.stderr
