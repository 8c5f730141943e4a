"""What `ess bench` measures, at a tiny size: every figure exists, is sane and consistent; no speed is asserted."""

import json
import math
import time
from dataclasses import replace
from statistics import median

import pytest
import step
import torch
from click.testing import CliRunner

from cli.ess import main
from cocolvis.errors import DataError
from ess.bench import steps
from ess.bench.loading import measure_loading
from ess.bench.process import Failed, in_fresh_process
from ess.bench.steps import Case, Cost, TooLarge, compare, label_blocks, largest, measure, turn_of
from ess.config import Config
from ess.device import OutOfMemory, explain_out_of_memory
from ess.models.build import model_from_config

TINY = Config(encoder="resnet18", weights="none", loss="exact", device="cpu")


def case(**settings):
    base = {"what": "train", "contestant": "dense", "classes": 7, "height": 64, "width": 64, "batch_size": 2}
    return Case(**base | {"config": TINY, "seconds": 0.0} | settings)


@pytest.mark.parametrize("fitting", [1, 2, 5, 16, 23])
def test_the_largest_batch_is_found(fitting):
    tried = []
    assert largest(lambda size: tried.append(size) or size <= fitting) == fitting
    assert len(tried) == len(set(tried)) <= 11
    assert largest(lambda size: size <= fitting, fitting + 1) == 0


@pytest.mark.parametrize("fitting", [32, 100, 999, 1023])
def test_the_largest_batch_is_found_to_a_sixteenth_in_few_steps(fitting):
    tried = []
    assert fitting * 15 // 16 <= largest(lambda size: tried.append(size) or size <= fitting) <= fitting
    assert len(tried) <= fitting.bit_length() + 5


def test_the_search_for_the_largest_batch_ends_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def fits(size):
        now[0] += 10
        return size <= 13

    found = []
    for until in (-5, 5, 25, 45, 55, 65):
        now[0] = 0
        found.append(largest(fits, 2, until))
        assert now[0] <= max(10, until + 10)
    assert found == [2, 2, 8, 12, 12, 13]


def test_three_searches_share_the_time(monkeypatch):
    now, given = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def search(case, until):
        given.append(until)
        now[0] += 30
        return 2

    monkeypatch.setattr(steps, "_most_images", search)
    monkeypatch.setattr(steps, "measure", lambda case: Cost(1.0, 10))
    compare("train", 7, TINY, until=90.0)
    compare("train", 7, TINY)
    assert given == [30, 60, 90, math.inf, math.inf, math.inf]


def test_labels_lie_in_blocks_and_some_are_ignored():
    torch.manual_seed(0)
    labels = label_blocks(2, 70, 640, 5)
    assert labels.shape == (2, 70, 640) and labels.dtype == torch.int16
    assert labels.unique().tolist() == [-1, 0, 1, 2, 3, 4]
    assert (labels[:, :, 1:] != labels[:, :, :-1]).float().mean() < 0.04
    assert 2**15 < label_blocks(2, 640, 640, 60_000).max() < 60_000


@pytest.mark.parametrize("contestant", ["ours", "network"])
def test_a_turn_changes_every_part_that_has_a_loss(contestant):
    torch.manual_seed(0)
    model = model_from_config(TINY, 7, weights=None)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    turn_of(case(contestant=contestant), model, TINY, torch.device("cpu"))()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert ("class_embeddings" in changed) == (contestant == "ours") and "encoder.conv1.weight" in changed


def test_a_case_that_cannot_fit_is_not_tried(monkeypatch):
    monkeypatch.setattr(steps, "in_fresh_process", lambda *arguments: pytest.fail("was tried"))
    needs = 3 * 4 * 2 * 10**8 * 8 * 8
    assert measure(case(classes=10**8)) == TooLarge(needs)
    monkeypatch.setattr(steps, "available_bytes", lambda: 100)
    assert measure(case(what="predict", batch_size=1)) == TooLarge(4 * 7 * 8 * 8)


def test_a_process_out_of_memory_or_killed_says_so():
    found = in_fresh_process(steps._measure_here, case(height=4096, width=4096, classes=500), 3 * 2**29)
    assert isinstance(found, Failed) and "out of memory" in found.failed
    killed = in_fresh_process(die)
    assert isinstance(killed, Failed) and "killed" in killed.failed


MESSAGES = [
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous input.",
    "CUDA error: invalid configuration argument\nCUDA kernel errors might be asynchronously reported",
]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_batch_that_fails_in_another_way_says_how(monkeypatch, message):
    def turn():
        raise RuntimeError(message)

    monkeypatch.setattr(steps, "turn_of", lambda *arguments: turn)
    assert steps._measure_here(case(), None) == Failed(message.splitlines()[0])


@pytest.mark.parametrize(
    "message",
    [
        "FIND was unable to find an engine to execute this computation after trying 9 plans.",
        "GET was unable to find an engine to execute this computation",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    ],
)
def test_a_lack_of_memory_has_many_messages(message):
    with pytest.raises(OutOfMemory, match=r"^out of memory; buy some$"), explain_out_of_memory("buy some"):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match=r"^CUDA error: device-side assert"), explain_out_of_memory("buy some"):
        raise RuntimeError("CUDA error: device-side assert triggered")


def die():
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_comparison_without_a_process(monkeypatch):
    spent = {("network", "train"): 1.0, ("ours", "train"): 2.0, ("dense", "train"): 8.0, ("points", "train"): 3.0}
    seen = []

    def measured(case):
        seen.append((case.contestant, case.batch_size))
        return Cost(spent[case.contestant, case.what] * len(seen), 10)

    monkeypatch.setattr(steps, "measure", measured)
    found = compare("train", 1284, TINY, rounds=3)
    assert [name for name, _ in seen] == ["ours", "network", "dense", "points"] * 3 and {size for _, size in seen} == {2}
    expected = {"ours": 2.0 * 5, "network": 1.0 * 6, "dense": 8.0 * 7, "points": 3.0 * 8}
    assert found.measured == {name: (Cost(seconds, 10), 2) for name, seconds in expected.items()}
    assert found.ratio == found.ratio_per_image == median([2 / 24, 10 / 56, 18 / 88])
    assert found.beyond_network == 1 - median([2 / 2, 6 / 10, 10 / 18])
    assert found.paper_ratio == 5.06 / 4.20 and (found.height, found.width) == (512, 512)


def test_no_round_but_the_first_starts_late(monkeypatch):
    seen = []
    monkeypatch.setattr(steps, "measure", lambda case: seen.append(case.contestant) or Cost(1.0, 10))
    compare("predict", 7, TINY, rounds=3, until=time.monotonic() - 1)
    assert seen == ["ours", "dense"]


@pytest.mark.parametrize(("most", "accumulate", "expected"), [(13, 1, 13), (13, 3, 12), (1, 1, 2), (3, 2, 4)])
def test_the_largest_batch_of_a_gpu_is_found_in_one_process(most, accumulate, expected, monkeypatch):
    tried = []
    device, config = torch.device("cuda"), replace(TINY, accumulate=accumulate)
    monkeypatch.setattr(steps, "choose_device", lambda name: device)
    monkeypatch.setattr(steps, "in_fresh_process", lambda work, *given: tried.append(work) or work(*given))
    fitting = lambda case, limit: Cost(1.0, 10) if case.batch_size <= most else Failed("out of memory")  # noqa: E731
    monkeypatch.setattr(steps, "_measure_here", fitting)
    assert steps._most_images(case(config=config), math.inf) == expected and len(tried) == 1


def test_the_json_of_a_comparison_has_an_object_for_each_contestant(monkeypatch):
    answers = {"network": Failed("x"), "ours": Cost(1.5, 10), "dense": TooLarge(99), "points": Failed("y")}
    monkeypatch.setattr(steps, "measure", lambda case: answers[case.contestant])
    found = compare("train", 7, TINY, crop=64, batch_size=3, rounds=1).to_json()
    hours = 40 * 100_170 / 2.0 / 3600
    assert list(found.items()) == [
        ("classes", 7),
        ("height", 64),
        ("width", 64),
        ("ours", {"seconds": 1.5, "peak_bytes": 10, "batch_size": 3, "images_per_second": 2.0, "hours_coco_lvis": hours}),
        ("network", {"failed": "x", "batch_size": 3}),
        ("dense", {"needs_bytes": 99, "batch_size": 3}),
        ("points", {"failed": "y", "batch_size": 3}),
        ("ratio", None),
        ("ratio_per_image", None),
        ("beyond_network", None),
        ("paper_ratio", None),
    ]


@pytest.mark.parametrize(
    ("what", "contestant"),
    [("train", "ours"), ("train", "dense"), ("train", "points"), ("predict", "ours"), ("predict", "dense")],
)
def test_what_a_process_measures(what, contestant):
    found = steps._measure_here(case(what=what, contestant=contestant), None)
    assert isinstance(found, Cost) and found.seconds > 0 and found.peak_bytes > 50e6


@pytest.mark.long
def test_the_command_measures_everything(sample_dataset):
    arguments = ["--classes", "5", "--encoder", "resnet18", "--crop", "64", "--seconds", "0", "--repeats", "1"]
    arguments += ["--data", str(sample_dataset), "--workers", "1", "--batch-size", "2", "--device", "cpu", "--json"]
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    for what in ("train", "predict"):
        [row] = found[what]
        assert row["classes"] == 5 and row["ours"]["seconds"] > 0 and row["ours"]["peak_bytes"] > 50e6
        assert row["ratio"] == pytest.approx(row["ours"]["seconds"] / row["dense"]["seconds"])
        assert row["paper_ratio"] is None and row["ours"]["batch_size"] == (2 if what == "train" else 1)
    loading = found["loading"]
    assert loading["workers"] == 1 and loading["share"] == pytest.approx(
        loading["crops_per_second"] / loading["decodes_per_second"]
    )


def test_pictures_that_cannot_be_decoded_are_one_line(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data", images="none").folder
    with pytest.raises(DataError, match="no picture is stored"):
        measure_loading(data, replace(TINY, batch_size=2, workers=0), seconds=0.0, rounds=1)


def test_tables_come_in_order_until_the_budget_is_spent(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def measured(case):
        now[0] += 10
        return Cost(2.0, 10)

    monkeypatch.setattr(steps, "measure", measured)
    arguments = ["--only", "train", "--repeats", "9", "--device", "cpu", "--budget", "100", "--accumulate", "3"]
    result = CliRunner().invoke(main, ["bench", *arguments, "--precision", "bf16", "--channels-last"])
    assert result.exit_code == 0, result.output
    titles = [line for line in result.stdout.splitlines() if line.startswith("training")]
    assert titles == [f"training, {n} classes, {size} pixels" for n, size in (("1,284", "512 x 512"), ("150", "512 x 512"))]
    assert "3.00" in result.stdout and "the loss takes 0% of our step" in result.stdout  # 6 images in 2 seconds
    assert result.stderr.count("not measured, because the 100 seconds of --budget are over") == 2


def test_the_table_also_shows_what_cannot_be_measured(monkeypatch):
    monkeypatch.setattr(steps, "measure", lambda case: TooLarge(2**40) if case.contestant == "dense" else Failed("no engine"))
    result = CliRunner().invoke(main, ["bench", "--classes", "150", "--only", "train", "--repeats", "2", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "needs 1.10 TB" in result.stdout and result.stdout.count("no engine") == 3 and "1.59" in result.stdout


@pytest.mark.parametrize("given", [("--seconds", "nan"), ("--seconds", "inf"), ("--seconds", "-1"), ("--budget", "nan")])
def test_impossible_durations_are_wrong_usage(given):
    result = CliRunner().invoke(main, ["bench", "--classes", "2", *given])
    assert result.exit_code == 2 and f"Invalid value for '{given[0]}'" in result.stderr


def test_a_profile_of_a_step_accounts_for_its_time():
    tiny = ("--device", "cpu", "--encoder", "resnet18", "--crop", "64", "--batch-size", "2", "--classes", "7", "--steps", "1")
    result = CliRunner().invoke(step.main, [*tiny, "--dim", "4", "--loss", "exact", "--loss", "dense", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["steps"]
    assert [(row["loss"], row["dim"]) for row in found] == [("exact", 4), ("dense", 4)]
    for row in found:
        names, spent, calls = zip(*row["kernels"], strict=True)
        assert "aten::convolution_backward" in names and all(number >= 1 for number in calls)
        assert row["ms"] >= row["host_ms"] > 0 and row["launches"] > sum(calls) and row["busy_ms"] >= sum(spent) > 0
        assert sorted(spent, reverse=True) == [*spent] and len(names) == step.SHOWN


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_tiles_need_a_gpu():
    tiles = pytest.importorskip("tiles", reason="no Triton here", exc_type=ImportError)
    result = CliRunner().invoke(tiles.main, [])
    assert result.exit_code == 2 and "tiles are timed on a GPU, and PyTorch finds none here" in result.stderr
