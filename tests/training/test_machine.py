"""What a training chooses by its device: a table, and how the choices are shown, recorded and kept."""

import json

import pytest
import torch
from effects import CPU, Steps, tiny, trained
from runs import config

from ess.checkpoint import Run
from ess.config import load, preset_names
from ess.models.build import build_model
from ess.training import loop as training
from ess.training import machine, team
from ess.training.state import TrainingState

PLAIN = machine.Choices("float32", False, 2, tf32=False, benchmark=False, fused=False, prefetch=False)
FAST = machine.Choices("bf16", True, 8, tf32=True, benchmark=True, fused=True, prefetch=True)
"""What an H100 with 16 cores gets."""


@pytest.mark.parametrize(
    ("device", "capability", "cores", "expected"),
    [
        ("cpu", None, 1, PLAIN),
        ("cpu", None, 64, PLAIN),
        ("mps", None, 8, PLAIN),
        ("cuda", (9, 0), 16, FAST),
        ("cuda", (8, 0), 6, FAST._replace(workers=6)),
        ("cuda", (12, 0), 0, FAST._replace(workers=1)),
        ("cuda", (7, 5), 32, FAST._replace(precision="float32", channels_last=False)),
        ("cuda", (7, 0), 4, FAST._replace(precision="float32", channels_last=False, workers=4)),
    ],
)
def test_the_table(device, capability, cores, expected):
    assert machine.choose(device, capability, cores) == expected


@pytest.fixture
def gpu(monkeypatch) -> torch.device:
    """A device of the kind of an H100, with two processes on a machine of 12 cores."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(machine, "cores", lambda: 12)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    return torch.device("cuda")


def test_what_is_left_to_the_device_gets_a_value_and_the_rest_stays(gpu):
    free, given = config(workers="auto"), config(workers=3, precision="fp16", channels_last=False)
    found = machine.resolved(free, gpu)
    assert (found.precision, found.channels_last, found.workers) == ("bf16", True, 6)
    assert found.to_json() == free.to_json() | {"precision": "bf16", "channels_last": True, "workers": 6}
    assert machine.resolved(given, gpu) == given
    assert machine.in_force(found, gpu) == FAST._replace(workers=6)
    assert not machine.in_force(given, gpu).fused  # the loss scale waits for every step
    assert not machine.in_force(config(workers=0, precision="float32", channels_last=True), gpu).tf32


@pytest.mark.parametrize("name", preset_names())
def test_the_presets_of_the_paper_alone_are_float32_on_every_device(gpu, name):
    assert machine.resolved(load(name), gpu).precision == ("float32" if name.startswith("paper-") else "bf16")


def test_a_resumed_run_keeps_what_its_first_device_chose(gpu):
    begun = machine.resolved(config(workers="auto"), gpu)
    again = machine.resolved(config(workers="auto", lr=0.5), CPU, begun)
    assert (again.precision, again.channels_last, again.workers, again.lr) == ("bf16", True, 6, 0.5)
    assert machine.resolved(config(workers=1, precision="float32"), CPU, begun).precision == "float32"
    older = config(workers="auto")  # of a version that did not choose
    assert machine.resolved(older, CPU, older).workers == 2


def test_choices_are_told_in_one_line_and_recorded(dataset, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "ess")
    Steps(monkeypatch)
    run = trained(dataset, tmp_path / "run", steps=1, loss="auto", batch_size=4)
    threads = torch.get_num_threads()
    assert f"cpu, {threads} threads: float32, exact loss, 30 images, 7 steps an epoch, 0 workers" in caplog.messages
    content = json.loads((run.folder / "run.json").read_text())
    assert content["machine"] == {"device": f"cpu, {threads} threads", **PLAIN._replace(workers=0)._asdict()}
    assert (content["settings"]["precision"], content["settings"]["channels_last"]) == ("float32", False)
    assert Run.open(run.folder).machine == content["machine"]


def test_switches_are_set_for_the_training_and_restored(monkeypatch):
    def switches() -> tuple[str, bool]:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark

    before = switches()
    with machine.switched(FAST):
        assert switches() == ("high", True)
        with machine.evaluating():
            assert switches() == ("highest", False)
        assert switches() == ("high", True)
    assert switches() == before
    with pytest.raises(ZeroDivisionError), machine.switched(FAST):
        _ = 1 / 0
    assert switches() == before
    with machine.switched(PLAIN):
        assert switches() == ("highest", False)


def test_evaluations_within_a_training_compute_like_those_outside_of_it(dataset, tmp_path, monkeypatch):
    seen, scores = [], training._Training._scores

    def watched(*arguments):
        seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark))
        return scores(*arguments)

    monkeypatch.setattr(training._Training, "_scores", watched)
    monkeypatch.setattr(training, "model_from_config", tiny)
    monkeypatch.setattr(machine, "choices_for", lambda device: PLAIN._replace(tf32=True, benchmark=True))
    trained(dataset, tmp_path / "run", steps=1, eval_every=1, eval_limit=1, precision="bf16")
    assert seen == [("highest", False)]


@pytest.mark.parametrize(("rank", "gpu"), [(None, None), ("0", 0), ("3", 3), ("5", 1)])
def test_each_process_takes_its_own_gpu_before_it_touches_any(tmp_path, monkeypatch, rank, gpu):
    events = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: events.append(device))
    monkeypatch.setattr(team, "choose_device", lambda name: events.append(name) or CPU)
    monkeypatch.setattr(team, "Accelerator", lambda **settings: None)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    for name in ("auto", "cpu"):
        team.join(config(device=name, track="none"), tmp_path)
    assert events == [*([] if gpu is None else [gpu]), "auto", "cpu"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_momentum_keeps_its_order_in_memory_through_a_resume(optimizer):
    chosen = config(optimizer=optimizer)
    first, second = (
        TrainingState(build_model("fpn", "resnet18", classes=5, dim=3).to(memory_format=torch.channels_last), chosen)
        for _ in range(2)
    )
    for parameter in first.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    first.optimizer.step()
    second.load({name: tensor.detach().contiguous() for name, tensor in first.tensors().items()})  # as files hold them
    ordered = 0
    for parameter, values in second.optimizer.state.items():
        for key, value in values.items():
            assert key == "step" or value.stride() == parameter.stride()
            ordered += value.ndim == 4 and value.shape[2] > 1 and value.is_contiguous(memory_format=torch.channels_last)
    assert ordered > 10
