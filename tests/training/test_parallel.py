"""Several processes make the same steps as one: started by torchrun, over gloo, on the CPU."""

import json
import os
import subprocess
import sys

import pytest
import torch
from runs import config, flags, weights

from cocolvis.disk.lock import held
from cocolvis.storage.dataset import Dataset
from ess.training.loop import train

SAME = {"norm": "group", "freeze_bn": True, "dropout": 0.0, "batch_size": 4, "steps": 3, "save_every": 1, "eval_every": 3}
SAME |= {"clip_norm": 1.0, "temperature": "learnt", "seed": 1}  # with seed 0, rounding decides about an activation at a kink


def torchrun(dataset, out, count, *more, **settings) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "cli.ess"]
    command += ["train", str(dataset), "--out", str(out), "--log-every", "1", *more, *flags(**settings)]
    command = [word for word in command if word not in ("--freeze-bn", "True")] + ["--freeze-bn"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})


def losses(text: str) -> list[float]:
    return [float(line.split("loss ")[1].split()[0]) for line in text.splitlines() if "loss " in line]


@pytest.mark.parametrize("loss", ["exact", pytest.param("knn", marks=pytest.mark.long)])
def test_two_processes_are_one_with_twice_the_batch(sample_dataset, tmp_path, caplog, loss):
    """Their images have different numbers of labelled pixels, so the results agree only if the loss is normalised over both."""
    caplog.set_level("INFO", "ess")
    train(Dataset.open(sample_dataset), tmp_path / "one", config(**SAME, loss=loss, log_every=1))
    done = torchrun(sample_dataset, tmp_path / "two", 2, loss=loss, **SAME)
    assert done.returncode == 0 and done.stdout.count("The run is in") == 1, done.stderr
    assert losses(done.stderr) == pytest.approx(losses(caplog.text), rel=1e-3) and len(losses(done.stderr)) == 3
    one, two = (weights(tmp_path / name, 3) | weights(tmp_path / name, 3, "training") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    one, two = (
        json.loads((tmp_path / n / "checkpoints/step-00000003/state.json").read_text())["scores"] for n in ("one", "two")
    )
    assert two["images"] == one["images"] > 3
    assert two["pixel_accuracy"] == pytest.approx(one["pixel_accuracy"], abs=0.01)

    if loss == "exact":  # the short form ends here
        return
    for count, steps in ((1, 4), (2, 5)):  # another number of processes continues the run
        train(Dataset.open(sample_dataset), tmp_path / "one", config(**SAME | {"steps": steps}, loss=loss), resume=True)
        more = torchrun(sample_dataset, tmp_path / "two", count, "--resume", loss=loss, **SAME | {"steps": steps})
        assert more.returncode == 0 and f"at step {steps - 1}" in more.stderr, more.stderr
        one, two = (weights(tmp_path / name, steps) for name in ("one", "two"))
        for name in one:
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_a_folder_that_another_training_holds_is_refused_in_all_processes(sample_dataset, tmp_path):
    with held(tmp_path / "run", None, print, "a training"):
        done = torchrun(sample_dataset, tmp_path / "run", 2, **SAME)
    refusals = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode != 0 and len(refusals) == 2 and all("is running there" in line for line in refusals)
    assert done.stderr.count("Traceback") == 1  # of torchrun itself


@pytest.mark.long
def test_a_batch_that_cannot_be_shared_is_one_line(sample_dataset, tmp_path):
    done = torchrun(sample_dataset, tmp_path / "run", 2, **SAME | {"batch_size": 3})
    assert "batch_size 3 is not a multiple of processes x accumulate = 2 x 1" in done.stderr and done.returncode != 0
