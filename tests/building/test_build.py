"""Builds that are interrupted, killed and resumed, in any number of processes."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import nullcontext
from pkgutil import resolve_name
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from trees import five_images

from cli.cocolvis import main
from cocolvis.building import executors
from cocolvis.building.build import Build, Mode, Part, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def contents(folder):
    """Relative path -> bytes of every file."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_are_byte_identical_for_any_number_of_workers(sample, tmp_path):
    sample.rebuild(tmp_path / "two", workers=2, shard_size=15)
    assert contents(tmp_path / "two") == contents(sample.data)


def test_shard_size_limit_and_split(sample, tmp_path):
    whole = Dataset.open(sample.data)
    data = sample.rebuild(tmp_path / "data", splits=("train",), limit=17, shard_size=5)
    assert [s["file"] for s in data.index["shards"]] == [f"shards/train-0000{number}.h5" for number in range(4)]
    assert [s["images"] for s in data.index["shards"]] == [5, 5, 5, 2]
    assert data.splits == {"train": 17}
    assert data.split("train").image_ids().tolist() == whole.split("train").image_ids()[:17].tolist()
    assert all(np.array_equal(data.split("train").mask(i), whole.split("train").mask(i)) for i in range(17))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_build_resumes_where_it_was(sample, tmp_path, workers):
    out = tmp_path / "data"

    def interrupt(done, total):
        if len(list((out / ".build").glob("*-*.json"))) >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.rebuild(out, workers=workers, progress=interrupt, shard_size=3)
    with pytest.raises(DataError, match=r"holds no dataset\.json yet: complete it with .* --resume"):
        Dataset.open(out)
    with pytest.raises(DataError, match="begun with other inputs or options"):
        sample.rebuild(out, mode=Mode.RESUME, shard_size=4)
    with pytest.raises(DataError, match="is not empty; complete an interrupted build with --resume"):
        sample.rebuild(out, shard_size=3)
    names = [report.stem for report in (out / ".build").glob("*-*.json")]
    finished = {name: (out / "shards" / f"{name}.h5").stat().st_ino for name in names}
    data = sample.rebuild(out, mode=Mode.RESUME, shard_size=3)
    assert len(finished) >= 2
    assert {name: (out / "shards" / f"{name}.h5").stat().st_ino for name in finished} == finished
    sample.rebuild(tmp_path / "whole", shard_size=3)
    assert contents(out) == contents(tmp_path / "whole")
    assert sum(data.splits.values()) == 40


def killed_build(sample, out, ready, workers, codes=(-signal.SIGKILL,)):
    """Start a build in another process, kill -9 it when ``ready()`` says so, and complete it in this one.

    It must end with one of the exit ``codes``.
    """
    command = [sys.executable, "-m", "cli.cocolvis", "build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", out]
    process = subprocess.Popen([*command, "--shard-size", "1", "--workers", str(workers)], stderr=subprocess.DEVNULL)
    while not ready() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.wait() in codes
    sample.rebuild(out, mode=Mode.RESUME, shard_size=1)


def test_a_killed_build_resumes(sample, tmp_path):
    sample.rebuild(tmp_path / "whole", shard_size=1)
    out = tmp_path / "data"
    killed_build(sample, out, lambda: len(list((out / ".build").glob("train-*.json"))) >= 3, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("delay", np.linspace(0.5, 4, 12).tolist())
def test_a_build_killed_at_any_time_resumes(sample, tmp_path, delay):
    sample.rebuild(tmp_path / "whole", shard_size=1)
    end = time.monotonic() + delay
    killed_build(sample, tmp_path / "data", lambda: time.monotonic() > end, workers=2, codes=(-signal.SIGKILL, 0))
    time.sleep(2)  # a worker whose parent is gone ends within a second
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_keeps_finished_work_and_says_how_to_continue(sample, tmp_path, workers):
    out = tmp_path / "data"
    command = [sys.executable, "-m", "cli.cocolvis", "build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", out]
    process = subprocess.Popen([*command, "--shard-size", "1", "--workers", str(workers)], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list((out / ".build").glob("train-*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=20)[1]
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "interrupted; finished shards are kept: continue with --resume"


def test_a_damaged_shard_is_built_again_on_resume(sample, tmp_path):
    out = tmp_path / "data"

    def stop(done, total):
        if done >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample.rebuild(out, progress=stop, shard_size=5)
    for name, column in (("train-00001", "image/bytes"), ("train-00002", "present/instances")):
        with h5py.File(out / "shards" / f"{name}.h5", "r+") as shard:
            shard[column][-1] ^= 1
    sample.rebuild(out, mode=Mode.RESUME, shard_size=5)
    sample.rebuild(tmp_path / "whole", shard_size=5)
    assert contents(out) == contents(tmp_path / "whole")


def test_existing_folders_are_left_alone_without_overwrite(tree, tmp_path):
    five_images(tree).build("data")
    before = contents(tmp_path / "data")
    with pytest.raises(DataError, match="already holds a data set; replace it with --overwrite"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions())
    assert build(tree.sources(), tmp_path / "data", CocoLvisOptions(), mode=Mode.RESUME)["splits"]["train"]["images"] == 5
    with pytest.raises(DataError, match="finished data set of other inputs or options"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions(limit=2), mode=Mode.RESUME)
    assert contents(tmp_path / "data") == before
    build(tree.sources(), tmp_path / "data", CocoLvisOptions(limit=2, shard_size=1), mode=Mode.OVERWRITE)
    assert sorted(contents(tmp_path / "data")) == ["dataset.json", "shards/train-00000.h5", "shards/train-00001.h5"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        build(tree.sources(), tmp_path / "other", CocoLvisOptions())
    with pytest.raises(DataError, match="is a file"):
        build(tree.sources(), tmp_path / "other" / "notes.txt", CocoLvisOptions())


def test_a_full_disk_or_unwritable_folder_is_reported_in_one_line(tree, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    five_images(tree).write()
    monkeypatch.setattr("cocolvis.disk.files.os.replace", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions())
    assert not list((tmp_path / "data").rglob("*.tmp"))


def test_a_dead_worker_is_reported_in_one_line(tree, tmp_path, monkeypatch):
    five_images(tree).write()
    monkeypatch.setattr(executors, "_work", die)
    with pytest.raises(DataError, match=r"a worker process died .* continue with --resume"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions(), workers=2)


@pytest.mark.parametrize(
    ("place", "allowed"),
    [("synchronize.SemLock.__init__", 0), ("context.SpawnProcess._Popen", 0), ("context.SpawnProcess._Popen", 1)],
)
def test_workers_that_cannot_start_are_reported_in_one_line(tree, tmp_path, monkeypatch, place, allowed):
    start, left = resolve_name(f"multiprocessing.{place}"), [True] * allowed

    def refuse(*arguments, **named):
        if left:
            left.pop()
            return start(*arguments, **named)
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    five_images(tree).write()
    monkeypatch.setattr(f"multiprocessing.{place}", staticmethod(refuse))
    with pytest.raises(DataError, match="cannot start a worker process: Resource temporarily unavailable; try fewer --workers"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions(shard_size=1), workers=2)


def test_shards_that_are_finished_at_the_same_moment_as_one_fails_are_kept(tmp_path):
    def submit(task, shard, lease):
        future = Future()
        future.set_exception(DataError(task.name)) if task.name.startswith("bad") else future.set_result({"images": 1})
        return future

    tasks = [SimpleNamespace(name=f"{kind}-{number}") for number in range(8) for kind in ("bad", "good")]
    workers = nullcontext(executors.Workers(submit, lambda: len(tasks)))
    kept = []
    with pytest.raises(DataError, match="bad"):
        for name, _ in executors.run_in(workers, iter(tasks), tmp_path.joinpath, None, lambda images: None):
            kept.append(name)
    assert sorted(kept) == sorted(task.name for task in tasks if task.name.startswith("good"))


def test_workers_that_come_later_get_tasks_too_and_a_cluster_without_any_is_waited_for(tmp_path):
    threads, started, begun = {}, [], []

    def submit(*_):
        started.append(Future())
        started[-1].set_result({"images": 1})
        return started[-1]

    client = SimpleNamespace(wait_for_workers=lambda *_, **__: None, nthreads=lambda: threads)
    workers = executors._cluster_workers(client, SimpleNamespace(submit=submit), "tcp://scheduler:8786")
    tasks = (SimpleNamespace(name=f"train-{number:05d}") for number in range(100))
    for _ in executors.run_in(nullcontext(workers), tasks, tmp_path.joinpath, None, lambda images: None):
        begun.append(len(started))
        threads.update(first=1, second=31)
    assert len(begun) == 100 and begun[:3] == [2, 2, 2 + 64]


def test_a_process_that_ignores_ctrl_c_continues_to_do_so(monkeypatch):
    """As one in the background of a script, which gets the Ctrl-C of every command in the foreground."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with executors.interrupts_deferred() as check:
            os.kill(os.getpid(), signal.SIGINT)
            check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        monkeypatch.setattr(executors.signal, "getsignal", lambda number: None)  # the handler is not one of Python
        with executors.interrupts_deferred() as check:
            check()
    except KeyboardInterrupt:
        pytest.fail("it was interrupted")
    finally:
        signal.signal(signal.SIGINT, before)


def die(task, shard, lease):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Part(0, 2), "part 0 of 2: expected parts 1 to N of N"),
        (lambda: Part(3, 2), "part 3 of 2: expected parts 1 to N of N"),
        (lambda: Build(workers=0), "workers is 0; expected 1 or more, or the address of a scheduler"),
        (lambda: CocoLvisOptions(limit=10**20), f"limit is {10**20}; expected 0 to {2**53}"),
        (lambda: CocoLvisOptions(shard_size=0), f"shard size is 0; expected 1 to {2**53}"),
    ],
)
def test_impossible_values_are_refused(make, reason):
    with pytest.raises(DataError, match=f"^{reason}$"):
        make()


@pytest.mark.parametrize("options", [("--resume", "--overwrite"), ("--overwrite", "--shard", "1/2")])
def test_modes_exclude_each_other(sample, tmp_path, options):
    command = ["build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", tmp_path / "data", *options]
    done = CliRunner().invoke(main, list(map(str, command)))
    assert done.exit_code == 2 and not (tmp_path / "data").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_ends_at_the_total(sample, tmp_path, workers):
    calls = []
    sample.rebuild(tmp_path / "data", workers=workers, progress=lambda *call: calls.append(call))
    assert calls[-1] == (40, 40) and {total for _, total in calls} == {40}
    assert calls == sorted(calls)


def test_the_index_names_its_inputs(sample):
    index = json.loads((sample.data / "dataset.json").read_text())
    assert set(index["inputs"]) == {"stuff_train2017.json", "stuff_val2017.json", "lvis_v1_train.json", "lvis_v1_val.json"}
    assert index["vocabulary"]["digest"] == coco_lvis().digest
    assert sum(shard["images"] for shard in index["shards"]) == 40
