"""Settings that take effect and must not change what is learned."""

import contextlib
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from effects import CPU, Steps, harmless, tiny, trained
from runs import config, same, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cocolvis.errors import DataError
from ess.data.batches import Batch
from ess.data.loader import training_batches
from ess.training import journal, team
from ess.training import loop as training
from ess.training.objective import Objective

CLASSES = 9


def curves(folder: Path) -> EventAccumulator:
    """The scalars that TensorBoard shows for a run."""
    board = EventAccumulator(str(next(path for path in (folder / "tensorboard").iterdir() if path.is_dir())))
    return board.Reload()


@harmless("device", "workers", "track", "log_every", "eval_every", "eval_limit", "save_every", "keep")
def test_logging_and_checkpoints_leave_the_weights_alone(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "model_from_config", tiny)
    monkeypatch.setattr(journal, "PICTURES", 1)
    shared = {"color_jitter": 0.2, "steps": 4}
    loud = {"track": "tensorboard", "log_every": 1, "eval_every": 2, "eval_limit": 2, "save_every": 1, "keep": 9, "workers": 1}
    quiet = trained(dataset, tmp_path / "quiet", **shared, save_every=99)
    other = trained(dataset, tmp_path / "loud", **shared, **loud, device="auto" if not torch.cuda.is_available() else "cpu")
    for name in ("model", "training"):
        assert same(weights(quiet.folder, 4, name), weights(other.folder, 4, name))


@harmless("log_every", "track")
@pytest.mark.parametrize(("log_every", "lines"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (20, [5])])
def test_lines_and_points_come_at_the_given_interval_and_at_the_end(dataset, tmp_path, monkeypatch, caplog, log_every, lines):
    clock = {"now": 0.0}
    monkeypatch.setattr(journal, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    Steps(monkeypatch, lambda model: clock.update(now=clock["now"] + 2.0))
    caplog.set_level("INFO", "ess")
    run = trained(dataset, tmp_path / "run", steps=5, log_every=log_every, track="tensorboard")
    told = [message.split() for message in caplog.messages if message.startswith("step")]
    assert [words[1] for words in told] == [f"{step}/5" for step in lines]
    assert all("1.5 images/s" in message for message in caplog.messages if message.startswith("step"))
    assert [point.step for point in curves(run.folder).Scalars("train/loss")] == lines


@harmless("track")
def test_curves_go_to_the_trackers(dataset, tmp_path, monkeypatch):
    steps = Steps(monkeypatch)
    for track in ("none", "tensorboard"):
        run = trained(dataset, tmp_path / track, track=track, steps=1)
        assert [tracker.name for tracker in steps[-1].team.trackers] == [track] * (track != "none")
        assert (run.folder / "tensorboard").exists() == (track != "none")
    with pytest.raises(DataError, match=r"tracker 'scribe' is not installed; there are tensorboard.*, and none"):
        trained(dataset, tmp_path / "other", track="tensorboard,scribe")


def test_points_that_a_killed_run_made_after_its_checkpoint_are_gone(dataset, tmp_path, monkeypatch):
    """TensorBoard drops the points after the step that a resumed run starts from, and keeps all earlier ones."""
    shared = {"track": "tensorboard", "log_every": 1, "save_every": 2, "steps": 6, "eval_every": 2, "eval_limit": 1}
    monkeypatch.setattr(journal, "PICTURES", 1)
    steps = Steps(monkeypatch, lambda model: 1 / (len(steps) - 4))
    with pytest.raises(ZeroDivisionError):
        trained(dataset, tmp_path / "run", **shared)
    for file in (tmp_path / "run/tensorboard").rglob("events.*"):  # TensorBoard reads files in the order of their names
        file.rename(file.with_name(file.name.replace("tfevents.", "tfevents.0")))
    before = curves(tmp_path / "run")
    assert [point.step for point in before.Scalars("train/loss")] == [1, 2, 3]
    for name in ("step", "evaluation", "pictures", "classes"):
        monkeypatch.setattr(journal.Journal, name, lambda *_: None)  # otherwise its points would replace the old ones
    trained(dataset, tmp_path / "run", **shared, resume=True)
    after = curves(tmp_path / "run")
    assert [point.step for point in after.Scalars("train/loss")] == [1, 2]
    assert [point.step for point in after.Scalars("val/pixel_accuracy")] == [2]
    assert [step.groups[1]["lr"] for step in steps][4] == steps[2].groups[1]["lr"]


@harmless("save_every", "keep", "eval_every", "eval_limit")
@pytest.mark.parametrize(
    ("settings", "kept", "evaluated"),
    [
        ({"save_every": 2, "keep": 9}, [0, 2, 4, 6, 7], {}),
        ({"save_every": 3, "keep": 9}, [0, 3, 6, 7], {}),
        ({"save_every": 1, "keep": 3}, [5, 6, 7], {}),
        ({"save_every": 99, "keep": 1}, [7], {}),
        ({"save_every": 99, "keep": 9, "eval_every": 3, "eval_limit": 2}, [0, 3, 6, 7], {3: 2, 6: 2, 7: 2}),
        ({"save_every": 4, "keep": 9, "eval_every": 5}, [0, 4, 5, 7], {5: 10, 7: 10}),
        (
            {"save_every": 99, "keep": 9, "eval_every": "epoch", "eval_limit": 1, "batch_size": 10},
            [0, 3, 6, 7],
            {3: 1, 6: 1, 7: 1},
        ),
        ({"save_every": 99, "keep": 9, "eval_every": "epoch", "batch_size": 3}, [0, 7], {7: 10}),
    ],
)
def test_checkpoints_and_evaluations_come_at_the_given_intervals(dataset, tmp_path, monkeypatch, settings, kept, evaluated):
    assert (len(dataset.split("train")), len(dataset.split("val"))) == (30, 10)
    Steps(monkeypatch)
    run = trained(dataset, tmp_path / "run", steps=7, **settings)
    assert [int(folder.name[-8:]) for folder in run.checkpoints()] == kept
    assert {c.step: c.scores["images"] for c in run.listed() if c.scores} == evaluated


@harmless("workers", "start_method")
@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_batches_are_the_same_for_every_number_of_processes(dataset, method):
    chosen, steps = config(batch_size=4), 14  # enough for memory to be reused
    other = config(batch_size=4, workers=2, start_method=method)
    split = dataset.split("train")
    before = {*multiprocessing.active_children()}
    with contextlib.closing(training_batches(split, other, steps)) as together:
        for one, other in zip(training_batches(split, chosen, steps), together, strict=True):
            loading = {*multiprocessing.active_children()} - before
            assert {type(process).__name__ for process in loading} == {f"{method.title()}Process"} and len(loading) == 2
            assert all(torch.equal(a, b) for a, b in zip(one.render(48, CPU)[:3], other.render(48, CPU)[:3], strict=True))


@harmless("device")
def test_a_training_runs_on_the_device(tmp_path, monkeypatch):
    assert team.join(config(device="cpu", track="none"), tmp_path).device == CPU
    with pytest.raises(DataError, match=r"device 'cuda:99' cannot be used .*; choose --device auto, cpu or cuda"):
        team.join(config(device="cuda:99"), tmp_path)
    asked, original = [], team.Accelerator
    monkeypatch.setattr(team, "Accelerator", lambda **k: asked.append(k["cpu"]) or original(**k))
    for found, cpu in (("cpu", True), ("meta", False)):
        monkeypatch.setattr(team, "choose_device", lambda name, found=found: torch.device(found))
        team.join(config(track="none"), tmp_path)
        assert asked[-1] == cpu


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=g)
    return Batch(images, torch.randint(-1, CLASSES, (6, 32, 32), generator=g), torch.arange(6))


def stepped(batch, watch=lambda objective: None, **settings):
    """(loss, objective) after a step of a small network, for which the division into parts makes no difference."""
    chosen = config(**{"dropout": 0.0, "margin": 1.5} | settings)
    torch.manual_seed(0)
    objective = Objective(tiny(chosen, CLASSES), chosen).eval()
    watch(objective)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.1)
    return training.optimise(Accelerator(cpu=True), objective, optimizer, batch, chosen.accumulate), objective


def alike(found, expected) -> None:
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=0)
    for one, other in zip(found[1].parameters(), expected[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@harmless("channels_last")
def test_the_order_in_memory_changes_nothing_but_rounding(batch):
    seen = []

    def watch(objective):
        for layer in (objective.model.encoder[0], objective.model.encoder[1]):
            layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].stride(1) == 1))

    plain, ordered = (stepped(batch, watch, channels_last=chosen) for chosen in (False, True))
    assert seen == [False, False, True, True]
    assert [objective.model.encoder[0].weight.stride(1) == 1 for _, objective in (plain, ordered)] == [False, True]
    alike(ordered, plain)


@harmless("compile")
@pytest.mark.parametrize("backend", ["counted", pytest.param("inductor", marks=pytest.mark.long)])
def test_compilation_changes_nothing_but_rounding(batch, monkeypatch, backend):
    compiled, original = [], torch.compile
    how = {"inductor": "inductor", "counted": lambda graph, inputs: compiled.append(graph) or graph.forward}[backend]
    monkeypatch.setattr(torch, "compile", lambda function: original(function, backend=how))
    expected = stepped(batch)
    assert not compiled
    alike(stepped(batch, compile=True), expected)
    assert len(compiled) == 1 or backend == "inductor"


@harmless("accumulate")
def test_a_batch_in_parts_is_the_step_on_the_whole(batch, dataset, tmp_path, monkeypatch):
    sizes = []

    def watch(objective):
        objective.model.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))

    whole = stepped(batch, watch)
    for parts in (2, 3):
        alike(stepped(batch, watch, accumulate=parts), whole)
    assert sizes == [6, 3, 3, 2, 2, 2]
    steps = Steps(monkeypatch)
    trained(dataset, tmp_path / "run", accumulate=3, steps=1)
    assert steps[0].accumulate == 3
    with pytest.raises(DataError, match="batch_size 3 is not a multiple of processes x accumulate = 1 x 2"):
        trained(dataset, tmp_path / "other", accumulate=2, steps=1)
