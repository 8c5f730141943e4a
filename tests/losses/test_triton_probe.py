"""A GPU on which Triton cannot run its kernels: losses and searches by PyTorch after one warning, or a refusal in one line."""

import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from runs import config

from cocolvis.errors import DataError
from ess.kernels.gpu import probe
from ess.losses import fused, neighbours
from ess.training.objective import check_device

GPU = torch.device("cuda")


def on_gpu(like: torch.Tensor) -> SimpleNamespace:
    """What is known of embeddings on a GPU before anything is computed."""
    return SimpleNamespace(device=GPU, is_cuda=True, dtype=like.dtype, shape=like.shape, stride=like.stride)


ON_GPU = on_gpu(torch.empty(2, 12, 9, 9))

FAULTS = [
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    subprocess.CalledProcessError(1, ["gcc", "/tmp/main.c", *["-I/a/long/path"] * 50]),
    AssertionError(),
]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Triton is installed, and nothing is known of the GPU yet."""
    monkeypatch.setattr(probe, "find_spec", lambda name: object())
    probe.works.cache_clear()
    yield
    probe.works.cache_clear()


def choices() -> tuple[bool, str, str]:
    """Whether a kernel computes the losses, the search that is chosen, and why "triton" cannot be."""
    return (
        fused.chosen("auto", ON_GPU, ON_GPU),
        neighbours._best(ON_GPU, 8, biased=False),
        neighbours.fault_of("triton", 8, GPU),
    )


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_triton_that_fails_is_replaced_by_torch_with_one_warning(monkeypatch, caplog, fault):
    def fail(device):
        raise fault

    monkeypatch.setattr(probe, "_run", fail)
    assert [choices() for _ in range(3)] == [(False, "torch", "'triton', which cannot run its kernels here")] * 3
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelno == logging.WARNING and said.endswith("apt install gcc python3-dev") and len(said) < 450
    assert (str(fault)[:40] or "AssertionError") in said and "\n" not in said


def test_a_triton_that_works_is_chosen_without_a_word(monkeypatch, caplog):
    monkeypatch.setattr(probe, "_run", lambda device: None)
    assert choices() == (True, "triton", "") and not caplog.records
    monkeypatch.setattr(probe, "find_spec", lambda name: None)
    probe.works.cache_clear()
    assert choices()[:2] == (False, "torch") and not caplog.records


def test_a_lack_of_memory_is_not_a_fault_of_triton(monkeypatch):
    def exhausted(device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probe, "_run", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        probe.works(GPU)
    monkeypatch.setattr(probe, "_run", lambda device: None)
    assert probe.works(GPU)


@pytest.mark.parametrize(
    ("embeddings", "fits"),
    [
        (torch.empty(8, 256, 512, 512, device="meta"), True),
        (torch.empty(8, 257, 512, 512, device="meta"), False),
        (torch.empty(2, 64, 5_500, 5_500, device="meta"), True),
        (torch.empty(2, 64, 5_800, 5_800, device="meta"), False),
        (torch.empty(2, 5_800, 5_800, 64, device="meta").permute(0, 3, 1, 2), False),
        (torch.empty(1, 200, 4_000, 4_000, device="meta")[:, ::100], True),
        (torch.empty(1, 200, 4_000, 4_000, device="meta")[:, ::150], False),
        (torch.empty(1, 256, 1, 1, device="meta").expand(-1, -1, 3_000, 3_000), False),
    ],
)
def test_images_beyond_the_reach_of_32_bits_are_left_to_torch(monkeypatch, embeddings, fits):
    monkeypatch.setattr(probe, "_run", lambda device: None)
    assert fused.chosen("auto", on_gpu(embeddings), ON_GPU) == fits
    if not fits:
        with pytest.raises(ValueError, match=r"backend is 'fused': .* at most 256 channels and 2 billion numbers per image"):
            fused.chosen("fused", on_gpu(embeddings), ON_GPU)


@pytest.mark.parametrize("given", [{"compile": True}, {"loss": "knn", "search": "triton"}], ids=str)
def test_settings_that_need_triton_are_refused_before_the_run_begins(monkeypatch, given):
    chosen = config(**given)
    monkeypatch.setattr(probe, "_run", lambda device: None)
    check_device(chosen, 1284, GPU)
    monkeypatch.setattr(probe, "_run", lambda device: 1 / 0)
    probe.works.cache_clear()
    with pytest.raises(DataError, match=r"(compile|search) .*, which cannot run its kernels here; (leave out|choose) --"):
        check_device(chosen, 1284, GPU)
    check_device(config(loss="knn", search="torch"), 1284, GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="looks at a machine without a GPU")
def test_without_a_gpu_nothing_works(caplog):
    pytest.importorskip("triton")
    assert not probe.works(GPU) and "NVIDIA" in caplog.text


def test_the_kernel_of_the_probe_runs():
    pytest.importorskip("triton")
    code = "import torch; from ess.kernels.gpu import probe; probe._run(torch.device('cpu'))"
    done = subprocess.run([sys.executable, "-c", code], check=False, env=os.environ | {"TRITON_INTERPRET": "1"})
    assert done.returncode == 0
