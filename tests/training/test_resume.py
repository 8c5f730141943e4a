"""A run that was interrupted, killed or damaged continues, and ends bit-identical to an undisturbed one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from runs import config, flags, same, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from victims import GUARD, contents, until

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from ess.checkpoint import Run
from ess.models.build import model_from_config
from ess.training import loop as training
from ess.training.loop import train


def test_a_run_that_was_killed_before_its_first_steps_keeps_its_first_weights(dataset, tmp_path, monkeypatch):
    def killed(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(training, "optimise", killed)
        train(dataset, tmp_path / "run", config(seed=1))
    first = weights(tmp_path / "run", 0)
    loaded = []
    monkeypatch.setattr(training, "optimise", lambda team, objective, *rest: loaded.append(objective.state_dict()) or killed())
    with pytest.raises(RuntimeError):
        train(dataset, tmp_path / "run", config(seed=2), resume=True)
    assert same({f"model.{name}": tensor for name, tensor in first.items()}, loaded[0])


def test_resuming_is_bit_identical(run, dataset, tmp_path):
    first = train(dataset, tmp_path / "half", config(save_every=2))
    for left in first.checkpoints()[1:]:
        for file in left.iterdir():
            file.unlink()
        left.rmdir()
    resumed = train(dataset, tmp_path / "half", config(save_every=2), resume=True)
    assert same(weights(resumed.folder, 4), weights(run.folder, 4))


def test_a_learnt_temperature_is_logged_stored_and_resumed_bit_by_bit(dataset, tmp_path, caplog):
    caplog.set_level("INFO", "ess")
    settings = {"temperature": "learnt", "lr": 1e-3, "log_every": 1, "save_every": 1, "keep": 9}
    whole = train(dataset, tmp_path / "whole", config(**settings))
    shown = [message.split("  T ")[1].split()[0] for message in caplog.messages if "  T " in message]
    reached = [c.temperature for c in whole.listed()]
    assert reached[0] == pytest.approx(20) and len({*reached}) == 5 and shown == [f"{t:.2f}" for t in reached[1:]]
    board = EventAccumulator(str(next((whole.folder / "tensorboard").iterdir()))).Reload()
    assert [point.value for point in board.Scalars("train/temperature")] == pytest.approx(reached[1:])
    train(dataset, tmp_path / "half", config(**settings, device="cpu"))
    for step in (3, 4):
        shutil.rmtree(tmp_path / "half" / "checkpoints" / f"step-{step:08d}")
    half = train(dataset, tmp_path / "half", config(**settings), resume=True)
    for name in ("model", "training"):
        assert same(weights(half.folder, 4, name), weights(whole.folder, 4, name))
    kept = weights(half.folder, 4, "training")
    assert kept["log_temperature"].exp().item() == reached[4] and "optimizer/momentum_buffer/log_temperature" in kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_saves_the_step_and_can_be_resumed(run, dataset, tmp_path, monkeypatch, number):
    original = training.optimise
    calls = []

    def interrupt(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return original(*arguments)

    monkeypatch.setattr(training, "optimise", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config())
    assert Run.open(tmp_path / "run").checkpoints()[-1].name == "step-00000003"
    monkeypatch.setattr(training, "optimise", original)
    assert same(weights(train(dataset, tmp_path / "run", config(), resume=True).folder, 4), weights(run.folder, 4))


def test_resuming_an_absent_run_begins_it_and_a_finished_one_ends_at_once(run, dataset, tmp_path, capsys):
    begun = train(dataset, tmp_path / "new", config(), resume=True)
    assert same(weights(begun.folder, 4), weights(run.folder, 4))
    stamp = begun.checkpoints()[-1].stat().st_mtime_ns
    train(dataset, tmp_path / "new", config(), resume=True)
    assert begun.checkpoints()[-1].stat().st_mtime_ns == stamp and capsys.readouterr().out == ""


def test_resume_refuses_another_model(run, dataset):
    with pytest.raises(DataError, match="was begun with dim 64, not 6"):
        train(dataset, run.folder, config(dim=6), resume=True)


def test_a_second_run_in_the_same_folder_is_refused(run, dataset):
    with pytest.raises(DataError, match="already holds a run; continue it with --resume"):
        train(dataset, run.folder, config())


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (Path.unlink, "holds checkpoints up to step-00000004 but no run.json"),
        (lambda path: path.write_text(""), "run.json: is not JSON"),
        (lambda path: path.write_text("[1]"), "run.json: format and version are None"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "run.json: is not JSON"),
        (lambda path: path.write_text(path.read_text().replace('"digest"', '"digits"', 1)), "run.json: malformed dataset"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), "run.json: cannot be read"),
        (
            lambda path: path.write_text(path.read_text().replace('"synset": "', '"synset": "x', 1)),
            "run.json: vocabulary digest is .*: the classes were edited",
        ),
        (
            lambda path: path.write_text(path.read_text().replace('"loss": "auto"', '"loss": "x"')),
            "run.json: setting loss is 'x'; expected",
        ),
        (lambda path: path.write_text(path.read_text().replace('"lr"', '"rate"')), "run.json: malformed settings"),
    ],
)
def test_a_run_without_its_run_json_is_refused_and_left_alone(run, dataset, tmp_path, harm, told, resume):
    shutil.copytree(run.folder, tmp_path / "run")
    harm(tmp_path / "run" / "run.json")
    before = contents(tmp_path / "run")
    with pytest.raises(DataError, match=told) as caught:
        train(dataset, tmp_path / "run", config(), resume=resume)
    assert "\n" not in str(caught.value) and contents(tmp_path / "run") == before


def test_what_a_run_left_that_was_killed_before_its_run_json_is_begun_anew(run, dataset, tmp_path, caplog):
    caplog.set_level("INFO", "ess")
    shutil.copytree(run.folder / "checkpoints" / "step-00000002", tmp_path / "run" / "checkpoints" / "step-00000000")
    begun = train(dataset, tmp_path / "run", config(steps=1, keep=9), resume=True)
    assert "holds no run to resume; a new one begins" in caplog.text and [c.step for c in begun.listed()] == [0, 1]
    assert not same(weights(begun.folder, 0), weights(run.folder, 2))


@pytest.mark.parametrize(
    ("length", "told"), [({"steps": 3}, "--steps 3 "), ({"steps": None, "epochs": 1}, "--epochs 1, which are 2 steps,")]
)
def test_fewer_steps_than_are_done_are_refused(run, dataset, length, told, monkeypatch):
    monkeypatch.setattr("ess.training.plan.epoch_length", lambda *inputs: 6)
    before = contents(run.folder)
    with pytest.raises(DataError, match=f"has done 4 steps already; {told}"):
        train(dataset, run.folder, config(**length), resume=True)
    assert contents(run.folder) == before


def test_another_data_set_is_refused_unless_it_is_allowed(run, dataset, tmp_path, caplog):
    caplog.set_level("INFO", "ess")
    shutil.copytree(run.folder, tmp_path / "run")
    ours, path = dataset.index["digest"], tmp_path / "run" / "run.json"
    assert json.loads(path.read_text())["dataset"] == {"digest": ours, "earlier": []}
    other = Dataset(dataset.folder, {**dataset.index, "digest": "0" * 64})
    before = contents(tmp_path / "run")
    with pytest.raises(DataError, match=f"data set of digest {ours[:12]}..., not 000000000000...; .* --allow-other-data"):
        train(other, tmp_path / "run", config(), resume=True)
    assert contents(tmp_path / "run") == before
    train(other, tmp_path / "run", config(), resume=True, allow_other_data=True)
    changed = {"digest": "0" * 64, "earlier": [{"digest": ours, "steps": 4}]}
    assert json.loads(path.read_text())["dataset"] == changed and "continues with another data set" in caplog.text
    train(other, tmp_path / "run", config(), resume=True)
    assert json.loads(path.read_text())["dataset"] == changed

    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "dataset"}))
    train(dataset, tmp_path / "run", config(), resume=True)
    assert "is recorded from now on" in caplog.text and Run.open(tmp_path / "run").dataset == ours


def test_a_torn_later_checkpoint_does_not_push_out_what_is_trained_after_it(run, dataset, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"torn")
    resumed = train(dataset, tmp_path / "run", config(steps=3, keep=1), resume=True)
    assert resumed.load(model_from_config(run.config, len(run.vocabulary), weights=None)).step == 3


def test_a_second_training_in_the_same_folder_is_refused_while_the_first_one_runs(dataset, tmp_path, monkeypatch):
    out, optimise, told = tmp_path / "run", training.optimise, []

    def other(resume):
        with pytest.raises(DataError) as caught:
            train(dataset, out, config(), resume=resume)
        told.append(str(caught.value))

    def step(*arguments):
        if len(told) < 2:
            other(resume=True)
            before = contents(out)
            other(resume=False)
            assert contents(out) == before
        return optimise(*arguments)

    monkeypatch.setattr(training, "optimise", step)
    found = train(dataset, out, config(steps=2, track="none"))
    assert [path.name[-1] for path in found.checkpoints()] == ["0", "2"] and not [*out.glob(".*")]
    assert told[0].startswith(f"{out}: a training (process {os.getpid()} on ") and "is running there" in told[0]
    assert "already holds a run" in told[1]


def test_a_new_training_is_refused_while_another_one_begins_there(dataset, tmp_path, monkeypatch):
    """Its run.json does not exist yet."""
    begin, told = training._begin, []

    def beginning(*arguments):
        if not told:
            with pytest.raises(DataError, match=r"a training .* is running there") as caught:
                train(dataset, tmp_path / "run", config())
            told.append(caught.value)
        return begin(*arguments)

    monkeypatch.setattr(training, "_begin", beginning)
    train(dataset, tmp_path / "run", config(steps=1, track="none"))
    assert told


def test_a_training_that_lost_its_folder_writes_no_more(dataset, tmp_path, monkeypatch):
    """Another machine takes the folder over when a training was suspended for minutes."""
    optimise = training.optimise

    def step(*arguments):
        for lock in (tmp_path / "run").glob(".build-*.lock"):
            lock.unlink()
        return optimise(*arguments)

    monkeypatch.setattr(training, "optimise", step)
    with pytest.raises(DataError, match="this process has lost the folder"):
        train(dataset, tmp_path / "run", config(steps=2, track="none"))
    assert [path.name for path in Run.open(tmp_path / "run").checkpoints()] == ["step-00000000"]


def started(dataset: Dataset, out: Path, **settings) -> subprocess.Popen:
    """``ess train`` in a process group of its own."""
    command = [sys.executable, "-m", "cli.ess", "train", str(dataset.folder), "--out", str(out), "--resume"]
    return subprocess.Popen([*command, *flags(**settings)], start_new_session=True, stderr=subprocess.PIPE, text=True)


def assert_kills_change_nothing(dataset, folder, numbers, delays):
    """Kill a training once for each of ``numbers``, ``delays`` seconds after it kept a step; the end must be the same."""
    settings = {"steps": 3 + 2 * len(numbers), "save_every": 1, "keep": 2, "workers": 1, "ema": 0.9, "class_crop": 0.5}
    whole = train(dataset, folder / "whole", config(**settings))
    kept, out = 0, folder / "killed"
    for number, delay in zip(numbers, delays, strict=True):
        victim = started(dataset, out, **settings)
        until(partial(has_kept_more, victim, out, kept))
        time.sleep(delay)
        os.killpg(victim.pid, number)
        error = victim.communicate(timeout=GUARD)[1]
        assert victim.returncode == {signal.SIGKILL: -signal.SIGKILL}.get(number, 130), error
        kept = steps(out)[-1]
        assert kept < settings["steps"]
    last = started(dataset, out, **settings)
    error = last.communicate(timeout=GUARD)[1]
    assert last.returncode == 0 and f"resumed {out} at step {kept}" in error, error
    for name in ("model", "training"):
        assert same(*(weights(run, settings["steps"], name) for run in (out, whole.folder)))
    assert not list(out.glob("checkpoints/.*"))


def has_kept_more(victim: subprocess.Popen, out: Path, than: int) -> bool:
    """Whether there is a further checkpoint, or the process has ended."""
    return victim.poll() is not None or max(steps(out), default=0) > than


def steps(out: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in out.glob("checkpoints/step-*"))


def test_killed_trainings_end_with_the_same_bits(dataset, tmp_path):
    assert_kills_change_nothing(dataset, tmp_path, [signal.SIGKILL], [0.1])


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_trainings_killed_at_many_moments_end_with_the_same_bits(dataset, tmp_path, seed):
    rng = random.Random(seed)
    numbers = rng.choices([signal.SIGKILL, signal.SIGTERM, signal.SIGINT], weights=[3, 1, 1], k=6)
    assert_kills_change_nothing(dataset, tmp_path, numbers, [rng.uniform(0, 0.4) for _ in numbers])
