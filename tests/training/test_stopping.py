"""Requests to end a training: Ctrl-C and signals, once or repeatedly, to a process, its group, or several processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import Accelerator
from runs import config, flags, same, weights
from victims import GUARD, until

from ess.checkpoint import Run
from ess.data.loader import training_batches
from ess.inference.predictor import Predictor
from ess.stopping import stop_requests
from ess.training import loop as training
from ess.training.loop import train

TOGETHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "cli.ess"]


def send(number: int) -> None:
    """Send a signal to this thread: one sent to the process may arrive late, in a moment without the handlers of the test."""
    signal.raise_signal(number)


def check_second_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requests(Accelerator(cpu=True)) as stop:
        assert not stop.agreed()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            send(number)
            assert stop.agreed()
        with pytest.raises(KeyboardInterrupt):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


def test_only_a_second_ctrl_c_interrupts_at_once():
    """In a process of its own: without the handlers, a signal would end the process that runs the tests."""
    script = f"import sys; sys.path[:] = {sys.path!r}; import test_stopping; test_stopping.check_second_ctrl_c()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_hangup_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests(Accelerator(cpu=True)) as stop:
            send(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("second", "kept"), [(signal.SIGTERM, 3), (signal.SIGINT, 2)])
def test_a_second_request_during_the_save(dataset, tmp_path, monkeypatch, second, kept):
    """After a first Ctrl-C, a SIGTERM lets the save finish; a second Ctrl-C does not."""
    optimise, save = training.optimise, Run.save
    steps = []

    def interrupted(*inputs):
        steps.append(1)
        if len(steps) == 3:
            send(signal.SIGINT)
        return optimise(*inputs)

    def saved(run, step, *rest):
        if step == 3:
            send(second)
        return save(run, step, *rest)

    monkeypatch.setattr(training, "optimise", interrupted)
    monkeypatch.setattr(Run, "save", saved)
    with pytest.raises(KeyboardInterrupt):
        train(dataset, tmp_path / "run", config())
    assert Run.open(tmp_path / "run").checkpoints()[-1].name == f"step-{kept:08d}"


def test_a_stop_during_an_evaluation_discards_it_and_resuming_makes_it_first(run, dataset, tmp_path, monkeypatch):
    classify, seen = Predictor._classify_coarse, []

    def counted(predictor, *output):
        seen.append(1)
        if len(seen) == 2:
            send(signal.SIGTERM)
            send(signal.SIGTERM)
        return classify(predictor, *output)

    settings = config(eval_every=3, save_every=100, track="none")
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "_classify_coarse", counted)
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path / "run", settings)
    assert len(seen) <= 3 < dataset.splits["val"]
    (_, stopped) = Run.open(tmp_path / "run").listed()
    assert (stopped.step, stopped.scores) == (3, None)
    ended = train(dataset, tmp_path / "run", settings, resume=True)
    assert [(c.step, (c.scores or {}).get("images")) for c in ended.listed()] == [(n, dataset.splits["val"]) for n in (3, 4)]
    assert same(weights(ended.folder, 4), weights(run.folder, 4))


def test_a_stop_at_the_last_step_leaves_its_evaluation_to_the_next_call(dataset, tmp_path, monkeypatch):
    optimise = training.optimise
    settings = config(steps=1, eval_every=1, eval_limit=1, track="none")
    with monkeypatch.context() as patch:
        patch.setattr(training, "optimise", lambda *inputs: send(signal.SIGTERM) or optimise(*inputs))
        with pytest.raises(KeyboardInterrupt):
            train(dataset, tmp_path / "run", settings)
    assert Run.open(tmp_path / "run").listed()[-1][1:3] == (1, None)
    assert train(dataset, tmp_path / "run", settings, resume=True).listed()[-1].scores["images"] == 1


def test_a_run_that_dies_between_save_and_evaluation_is_whole(dataset, tmp_path, monkeypatch):
    def killed(*inputs, **settings):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(training, "count_pixels", killed)
        train(dataset, tmp_path / "run", config(steps=2, eval_every=1, eval_limit=1, track="none"))
    assert Run.open(tmp_path / "run").listed()[-1][1:3] == (1, None)
    assert Predictor.from_run(tmp_path / "run", "cpu").checkpoint.step == 1


def test_loader_processes_know_no_sigterm_and_end_with_their_iterator(dataset):
    batches = training_batches(dataset.split("train"), config(workers=2), 50)
    next(batches)  # by one of the two; the other may not have begun
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for _ in range(2):
        for worker in workers:
            os.kill(worker.pid, signal.SIGTERM)
        next(batches)
    batches.close()
    assert not any(worker.is_alive() for worker in workers)


def started(command: list[str], dataset, out: Path, log: Path, **settings) -> subprocess.Popen:
    """A training in a process group of its own, with more steps than it will have time for."""
    arguments = [
        "train",
        dataset.folder,
        "--out",
        out,
        *flags(steps=400, save_every=400, log_every=1, track="none", **settings),
    ]
    with log.open("w") as file:
        return subprocess.Popen([*command, *map(str, arguments)], start_new_session=True, stdout=file, stderr=file)


def begins(victim: subprocess.Popen, log: Path) -> None:
    """Wait until some steps are done."""
    until(lambda: victim.poll() is not None or "step 2/" in log.read_text(), 0.05)
    assert victim.poll() is None, log.read_text()


def steps(out: Path) -> list[int]:
    return [c.step for c in Run.open(out).listed()]


def test_two_sigterms_to_the_group_keep_all_steps(dataset, tmp_path):
    log, out = tmp_path / "log", tmp_path / "run"
    victim = started([sys.executable, "-m", "cli.ess"], dataset, out, log, workers=1)
    begins(victim, log)
    for _ in range(2):
        os.killpg(victim.pid, signal.SIGTERM)
        time.sleep(0.2)
    assert victim.wait(GUARD) in (130, -signal.SIGTERM), log.read_text()  # the latter where the second came after all was done
    assert steps(out)[-1] >= 2, log.read_text()


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return found


@pytest.mark.linux
@pytest.mark.long
@pytest.mark.parametrize("whom", ["all", "one"])
def test_processes_that_train_together_wait_for_the_save(dataset, tmp_path, whom):
    """Two SIGTERMs to torchrun and both processes, or one to the process that does not save. The encoder learns nothing."""
    log, out = tmp_path / "log", tmp_path / "run"
    victim = started(TOGETHER, dataset, out, log, batch_size=2, norm="group", encoder_lr=0.0)
    begins(victim, log)
    ranks = children(victim.pid)
    assert len(ranks) == 2
    for _ in range(1 + (whom == "all")):
        for pid in (victim.pid, *ranks) if whom == "all" else ranks[1:]:
            os.kill(pid, signal.SIGTERM)
        time.sleep(0.2)
    assert victim.wait(GUARD) != 0
    until(lambda: not any(Path(f"/proc/{rank}").exists() for rank in ranks), 0.05)  # a second signal may end torchrun first
    last = steps(out)[-1]
    assert last >= 2, log.read_text()
    first, after = weights(out, 0), weights(out, last)
    moved = {name for name in first if not first[name].equal(after[name])}
    assert moved and not any(name.startswith("encoder.") for name in moved)


SLOWLY = f"""
import sys, time
sys.path[:] = {sys.path!r}
from cli.ess import main
from ess.training import loop

predictions = loop.predictions

def slow(*arguments, **settings):
    for image in predictions(*arguments, **settings):
        time.sleep(2)
        yield image

loop.predictions = slow
main()
"""
"""``ess`` with evaluations that take two seconds for each image."""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for the processes in /proc")
@pytest.mark.long
@pytest.mark.linux
def test_processes_that_evaluate_together_stop_together(dataset, tmp_path):
    """The signal goes to one process; both leave the evaluation by themselves, and the step is kept without scores."""
    log, out, script = tmp_path / "log", tmp_path / "run", tmp_path / "slowly.py"
    script.write_text(SLOWLY)
    victim = started([*TOGETHER[:-2], str(script)], dataset, out, log, batch_size=2, norm="group", eval_every=3)
    until(lambda: victim.poll() is not None or (out / "checkpoints" / "step-00000003").exists())
    os.kill(children(victim.pid)[1], signal.SIGTERM)
    assert victim.wait(GUARD) != 0
    assert [(c.step, c.scores) for c in Run.open(out).listed()][-1] == (3, None), log.read_text()
    said = log.read_text()  # torchrun ends the process that exits last by a signal, unless it is quick
    assert said.count("interrupted; the last checkpoint is kept") == 2, said
    assert "exitcode  : 130" in said.partition("Root Cause")[2], said
