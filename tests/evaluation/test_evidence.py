"""The tables of benchmarks/evidence.py: their data, their choices, their scores, and that they continue after being killed."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import evidence
import numpy as np
import pytest
from tables import data, scores
from tables.data import Inputs
from tables.jobs import Job, Store, candidates, chosen_rate, evaluations, settings_of
from tables.rows import TABLES

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from ess.evaluation.picture_counts import PictureCounts

ROOT = Path(__file__).parents[2]
REAL = TABLES["real"]


def test_each_picture_is_held_out_once_and_never_trained_on_there():
    ids = [7 * n for n in range(41)]
    parts = [*data.folds(ids[::-1], 4)]
    assert parts == [*data.folds(ids, 4)]
    assert sorted(image for part in parts for image in part["test"]) == ids
    for part in parts:
        assert sorted(image for split in part.values() for image in split) == ids
        assert len(part["val"]) == 5 and len(part["test"]) in (10, 11)


def test_the_annotations_keep_their_images(sample, tmp_path):
    listed = data.ids_by_split(sample.lvis)
    splits = {**data.tuned(listed["train"]), "test": listed["val"]}
    data.build_part(sample.coco, sample.lvis, tmp_path / "part", splits)
    built, whole = Dataset.open(tmp_path / "part"), Dataset.open(sample.data)
    for name, ids in splits.items():
        split = built.split(name)
        assert sorted(split.image_ids().tolist()) == sorted(ids)
        for row, image in enumerate(split.image_ids().tolist()):
            np.testing.assert_array_equal(split.mask(row), whole.find(image).mask)


def test_every_row_has_a_family_of_rates_and_a_row_to_compare_with():
    from ess.config import Config

    for table in TABLES.values():
        known = {row.name for row in table.rows}
        assert len(known) == len(table.rows) and {row.against for row in table.rows} <= known and table.choosing in table.parts
        for row in table.rows:
            names = {**table.settings, **row.settings}.keys()
            assert names - Config.__dataclass_fields__.keys() <= {"points"}, row.name


def test_the_rate_of_a_family_is_the_best_one_on_training_pictures(tmp_path):
    store, row = Store(tmp_path), REAL.row("knn")
    jobs = candidates(REAL, [row, REAL.row("t10"), REAL.row("dense-points")])
    assert [job.name for job in jobs] == [
        f"{name}-fold0-seed0-lr{rate:g}" for name in ("dense", "exact") for rate in REAL.rates
    ] and {job.split for job in jobs} == {"val"}
    with pytest.raises(DataError, match="not finished, so the learning rate of knn is not chosen"):
        chosen_rate(REAL, store, row)
    store.finish(other := Job("real", "knn", "fold0", 0), {})  # of a command that was given the rate
    assert evidence.Plan(REAL, (), 1, store, Inputs(None, None, None)).finished(other) is None
    for job, miou in zip(jobs[5:], (0.2, 0.3, 0.3, 0.1, 0.1), strict=True):
        store.finish(job, {"scores": {"miou": miou}})
    assert chosen_rate(REAL, store, row) == (3e-3, {"0.001": 0.2, "0.003": 0.3, "0.01": 0.3, "0.03": 0.1, "0.1": 0.1})
    store.finish(jobs[6], {"scores": {"miou": None}})  # diverged
    assert chosen_rate(REAL, store, row)[0] == 1e-2
    store.finish(jobs[6], {"scores": {"miou": 0.3}})
    job = Job("real", "knn", "fold2", 1)
    settings = settings_of(REAL, store, job)
    assert (settings["lr"], settings["loss"], settings["seed"], job.split) == (3e-3, "knn", 1, "test")
    assert settings_of(REAL, store, replace(job, rate=0.5))["lr"] == 0.5


def test_a_rate_whose_training_diverges_does_not_end_the_table(tmp_path, monkeypatch):
    """Whether the loss or only its gradient is no longer finite."""
    from tables import training

    from ess.training.step import NotFinite

    def diverge(*_):
        raise NotFinite("the gradient of the loss 3 is not finite at step 5, lr 1, images [1]; try a smaller --lr", 5)

    monkeypatch.setattr(training, "trained_and_scored", diverge)
    plan = evidence.Plan(TABLES["longtail"], (), 1, Store(tmp_path), Inputs(None, None, None))
    monkeypatch.setattr(evidence.Plan, "identity", lambda plan, job: {"settings": {}})
    monkeypatch.setattr(evidence.Plan, "dataset", lambda plan, part: None)
    evidence.run_one(plan, job := candidates(plan.table, [plan.table.row("dense")])[0])
    assert plan.store.result(job)["scores"] == {"miou": None}
    assert "the gradient of the loss" in plan.store.result(job)["diverged"]


def test_a_given_rate_is_not_chosen(tmp_path):
    given = evidence.with_rates(REAL, ["knn=0.04", "t10=0.04"])  # rows of one family
    assert {job.row for job in candidates(given, given.rows)} == {job.row for job in candidates(REAL, REAL.rows)} - {"exact"}
    assert chosen_rate(given, Store(tmp_path), given.row("exact")) == (0.04, {})
    assert settings_of(given, Store(tmp_path), Job("real", "t40", "fold2", 1))["lr"] == 0.04
    for pair, line in (
        ("t11=0.1", "--rate t11: the rows of real are dense, "),
        ("t10", "--rate t10: expected NAME=RATE"),
        ("t10=0.1", "--rate t10=0.1: another rate is given for this family of rows"),
    ):
        with pytest.raises(DataError, match=line):
            evidence.with_rates(REAL, ["knn=0.04", pair])


def test_a_sample_that_was_cut_off_is_generated_again(tmp_path, monkeypatch):
    cut = tmp_path / "100-sample.unfinished"
    cut.mkdir()
    (cut / "old.txt").write_text("half a sample")

    def generate(command, **_):
        Path(command[command.index("--out") + 1]).mkdir()
        return subprocess.CompletedProcess(command, int("fails" in command))

    monkeypatch.setattr(subprocess, "run", generate)
    with pytest.raises(DataError, match="100-sample: the sample was not generated"):
        data._sample(tmp_path / "100-sample", ["fails"])
    assert not (tmp_path / "100-sample").exists()
    assert [*data._sample(tmp_path / "100-sample", []).iterdir()] == [] and not cut.exists()


def test_rows_on_request_run_once_and_last():
    names = [job.name for job in evaluations(REAL, REAL.rows, 2)]
    assert names[-1] == "fine-tuned-fold0-seed0" and sum(name.startswith("fine-tuned") for name in names) == 1
    assert names[0] == "dense-fold0-seed0" and len(names) == 18 * 4 * 2 + 1 == len({*names})
    assert names.index("dense-fold0-seed1") > names.index("t-learnt-fold3-seed0")


def counts(right, pictures=30, classes=6, seed=0):
    """Counts of pictures of which a share of the pixels is right."""
    rng, found = np.random.default_rng(seed), {}
    for image in range(pictures):
        truth = rng.integers(0, classes, 300)
        predicted = np.where(rng.random(300) < right, truth, rng.integers(0, classes, 300))
        both = truth[truth == predicted]
        found[image] = np.stack([np.bincount(each, minlength=classes) for each in (truth, predicted, both)])
    return found


def result(right, part="fold0", seed=0, labels="a", only=slice(None), noise=0):
    """The result of a run on some of 30 pictures, as far as the summary reads it."""
    found = {image: each for image, each in counts(right, seed=noise).items() if image in range(30)[only]}
    return {
        "part": part,
        "seed": seed,
        "scores": {"miou": right},
        "boundary": {"near": [10, 4], "elsewhere": [30, 24]},
        "steps_to_95": 40,
        "seconds_per_step": 0.5,
        "peak_bytes": 2**30,
        "settings": {"lr": 0.01},
        "labels_sha256": labels,
        "pictures": PictureCounts.of(6, found).to_json(),
    }


def test_a_difference_that_pictures_explain_is_shown_as_equal():
    groups = {"all": np.ones(6, bool), "first": np.arange(6) < 2}
    half = slice(0, 15), slice(15, 30)
    results = {
        name: [result(right, f"fold{n}", labels=f"{n}", only=only, noise=noise) for n, only in enumerate(half)]
        for noise, (name, right) in enumerate({"exact": 0.6, "knn": 0.6, "random": 0.3}.items())
    }
    rows = scores.summary(results, {"exact": "exact", "knn": "exact", "random": "exact"}, groups)
    exact, knn, random = rows
    assert "against" not in exact and knn["against"]["all"]["same"] and not random["against"]["all"]["same"]
    whole = np.stack([*counts(0.6).values()]).sum(axis=0)
    iou = whole[2] / (whole[0] + whole[1] - whole[2])
    assert exact["miou"]["all"]["value"] == pytest.approx(iou.mean())
    assert exact["miou"]["first"]["value"] == pytest.approx(iou[:2].mean())
    assert (exact["pixel_accuracy"], exact["near_boundary"], exact["elsewhere"]) == (0.7, 0.4, 0.8)
    assert exact["miou_mean"] == 0.6 and exact["miou_deviation"] == 0 and exact["labels_sha256"] == {"fold0": "0", "fold1": "1"}
    text = scores.markdown(rows)
    assert text.count("= exact") == 1 and text.splitlines()[4].split("|")[5].strip().startswith("-0.")
    assert {line.count("|") for line in text.splitlines()} == {len(text.splitlines()[0].split("|")) - 1}
    json.dumps(rows, allow_nan=False)


def test_rows_on_other_labels_are_refused():
    results = {"exact": [result(0.6)], "knn": [result(0.6, labels="b")]}
    with pytest.raises(DataError, match="exact and knn were evaluated on different labels of fold0"):
        scores.summary(results, {"exact": "exact", "knn": "exact"}, {"all": np.ones(6, bool)})


def test_gini_is_the_mean_difference():
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 50, 20) ** 3
        expected = np.abs(pixels[:, None] - pixels[None]).mean() / (2 * pixels.mean())
        assert scores.gini(pixels) == pytest.approx(expected)
    assert scores.gini(np.full(5, 3)) == 0 and scores.gini(np.array([0, 0, 0, 9])) == 0.75


def test_groups_divide_the_classes(dataset):
    groups = scores.groups_of([dataset, dataset], terciles=True)
    assert (groups["things"] ^ groups["stuff"]).all() and groups["stuff"].sum() == 81 and groups["all"].all()
    pixels = np.zeros(1284, int)
    for row in range(len(dataset.split("train"))):
        pixels += np.bincount(dataset.split("train").mask(row).ravel(), minlength=1285)[1:]
    assert (scores.training_pixels([dataset]) == pixels).all()
    most, medium, fewest = (groups[name] for name in scores.TERCILES)
    assert (most.astype(int) + medium + fewest == (pixels > 0)).all() and abs(int(most.sum()) - int(fewest.sum())) <= 1
    assert pixels[most].min() >= pixels[medium].max() >= pixels[medium].min() >= pixels[fewest].max()
    assert [*scores.groups_of([dataset], terciles=False)] == ["all", "rare", "common", "frequent", "stuff"]


def test_a_training_is_measured_and_scored(dataset, tmp_path):
    from runs import config
    from tables.training import steps_to, trained_and_scored

    from ess.evaluation.evaluate import evaluate
    from ess.inference.predictor import Predictor

    small = config(steps=2, eval_every=1, eval_limit=2, log_every=1, device="cpu", track="none")
    found = trained_and_scored(dataset, tmp_path, small, "val", lambda done, total: None)
    predictor = Predictor.from_run(tmp_path / "run", "cpu")
    assert found["scores"] == {name: value for name, value in evaluate(predictor, dataset).items() if name != "skipped"}
    assert [step for step, _ in found["curve"]] == [1, 2]
    assert found["curve"][-1][1] == evaluate(predictor, dataset, limit=2)["miou"]
    assert 0 < found["seconds_per_step"] < 600 and 2**27 < found["peak_bytes"] < 2**36
    pixels = np.add(found["boundary"]["near"], found["boundary"]["elsewhere"])
    assert pixels[1] / pixels[0] == pytest.approx(found["scores"]["pixel_accuracy"])
    again = trained_and_scored(dataset, tmp_path, small, "val", lambda done, total: None)  # scored again, not trained again
    assert again["labels_sha256"] == found["labels_sha256"] and again["seconds_per_step"] == found["seconds_per_step"]
    assert steps_to([(10, 0.1), (20, 0.38), (30, 0.3), (40, 0.4)], 0.95) == 20
    assert steps_to([(10, 0.0)], 0.95) is None


WAITS = """
import os, pathlib, sys, time
mine, other = map(pathlib.Path, sys.argv[1:])
mine.write_text(os.environ["OMP_NUM_THREADS"])
while not other.exists():
    time.sleep(0.01)
"""

SAVES = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda number, frame: (pathlib.Path(sys.argv[2]).touch(), sys.exit()))
pathlib.Path(sys.argv[1]).touch()
time.sleep(600)
"""

FAILS = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.01)\nsys.exit(3)"


@pytest.mark.parametrize("name", ["real", "longtail", "scale"])
def test_the_tables_in_the_documents_are_those_of_the_runs(name):
    text = (ROOT / "docs/evidence.md").read_text()
    found = json.loads((ROOT / f"docs/evidence/{name}.json").read_text())["sections"]
    assert found
    for part, section in found.items():
        assert scores.markdown(section["rows"]) in text, part


def test_runs_share_the_cores_and_save_their_state_when_one_fails(tmp_path):
    from tables.jobs import Processes, Store

    from cocolvis.limits import cores

    def fail(code):
        raise DataError(f"exit code {code}")

    codes, (a, b, begun, saved) = [], (tmp_path / name for name in ("a", "b", "begun", "saved"))
    with Store(tmp_path).locked() as lock:
        with Processes(lock, 2) as processes:
            processes.run(["-c", WAITS, a, b], codes.append)  # each ends only if the other one runs at the same time
            processes.run(["-c", WAITS, b, a], codes.append)
            processes.wait()
        assert codes == [0, 0] and a.read_text() == b.read_text() == str(max(1, cores() // 2))
        with pytest.raises(DataError, match="exit code 3"), Processes(lock, 2) as processes:
            processes.run(["-c", SAVES, begun, saved], codes.append)
            processes.run(["-c", FAILS, begun], fail)
            processes.wait()
        assert saved.exists() and codes == [0, 0]


@pytest.mark.long
def test_a_killed_table_continues(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "evidence.py", "longtail", "--trial", "--rows", "exact,knn"]
    command += ["--seeds", "1", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "3/4" in line:  # both learning rates are chosen, the first row is running
            process.kill()
            break
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("choices/*.json")}
    assert len(done) == 2
    while (again := subprocess.run(command, capture_output=True, text=True)).returncode == 1:
        assert "another process works there" in again.stderr  # the run of the killed process holds the lock
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("choices/*.json")} == done
    assert "| exact |" in again.stdout and "| knn |" in again.stdout
    assert [*tmp_path.rglob("running/*")] == [] and len([*tmp_path.rglob("runs/*.json")]) == 2
    shown = subprocess.run([*command, "--show", "--json"], capture_output=True, text=True, check=True)
    (found,) = json.loads(shown.stdout)["sections"].values()
    assert [row["row"] for row in found["rows"]] == ["exact", "knn"] and found["machines"][0]["cores"] >= 1
