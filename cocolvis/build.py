"""The build: runs the plan's shard tasks, keeps what is finished whatever happens, and writes the index at the end."""

import os
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import h5py

from cocolvis import dataset
from cocolvis.annotations import Fault
from cocolvis.errors import DataError
from cocolvis.files import read_json, sha256, write_json
from cocolvis.plan import BuildOptions, Plan, ShardTask
from cocolvis.shard_task import run_shard
from cocolvis.sources import Sources
from cocolvis.vocabulary import coco_lvis

Progress = Callable[[int, int], None]
"""Called with (images done, images in total) now and then."""

_AHEAD = 2
"""Tasks a worker that are prepared before they are needed: bounds the memory of the planning process."""


class _State:
    """The folder ``.build`` of an unfinished build: what is being built, and a report for each finished shard."""

    def __init__(self, out: Path):
        self.folder = out / ".build"
        self.shards = out / "shards"

    def shard(self, name: str) -> Path:
        return self.shards / f"{name}.h5"

    def finished(self, names: list[str]) -> dict[str, dict]:
        """Shard name -> report, for the shards that are whole; a shard without a report, or of another size, is built again."""
        reports = {}
        for name in names:
            shard, report = self.shard(name), self.folder / f"{name}.json"
            if shard.exists() and report.exists():
                found = read_json(report)
                if found["bytes"] == shard.stat().st_size and found["sha256"] == sha256(shard):
                    reports[name] = found
        return reports


def build(
    sources: Sources,
    out: Path,
    options: BuildOptions,
    *,
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    progress: Progress = lambda done, total: None,
) -> dict:
    """Build the data set in ``out`` and return its index, as in dataset.json.

    An existing folder is completed with ``resume``, replaced with ``overwrite``, and otherwise left alone with a DataError.
    ``strict`` makes any fault of the input a DataError. Shards that are finished stay finished whatever is raised.
    """
    _check_target(out, resume, overwrite)
    plan = Plan.make(sources, options)
    inputs = sources.digests()
    description = {"options": _described(options, sources), "inputs": inputs, "vocabulary": coco_lvis().digest}
    if resume and (out / dataset.INDEX).exists():
        return _finished_index(out, description)
    state = _prepare(out, description, overwrite)
    if strict:
        _refuse(plan.faults)
    counts = plan.shard_counts()
    reports = state.finished(list(counts))
    done = sum(counts[name] for name in reports)
    run = _run_here if workers == 1 else _run_in_pool
    for name, report in run(plan, state, set(reports), workers, lambda n: progress(done + n, sum(counts.values()))):
        write_json(state.folder / f"{name}.json", report)
        reports[name] = report
        if strict:
            _refuse([Fault(*fault) for fault in report["faults"]])
    index = _index(plan, description, {name: reports[name] for name in counts})
    write_json(out / dataset.INDEX, index)
    shutil.rmtree(state.folder)
    return index


def _check_target(out: Path, resume: bool, overwrite: bool) -> None:
    if resume or overwrite or not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out}: is a file; expected a folder to write the data set to")
    if (out / dataset.INDEX).exists():
        raise DataError(f"{out}: already holds a data set; replace it with --overwrite")
    if any(out.iterdir()):
        raise DataError(f"{out}: is not empty; complete an interrupted build with --resume, replace it with --overwrite")


def _described(options: BuildOptions, sources: Sources) -> dict:
    return asdict(options) | {
        "splits": list(options.splits),
        "image_root": str(sources.coco.resolve()) if options.images == "path" else None,
    }


def _finished_index(out: Path, description: dict) -> dict:
    index = dataset.Dataset.open(out).index
    shutil.rmtree(_State(out).folder, ignore_errors=True)
    if {"options": index["options"], "inputs": index["inputs"], "vocabulary": index["vocabulary"]["digest"]} != description:
        raise DataError(f"{out}: is a finished data set of other inputs or options; replace it with --overwrite")
    return index


def _prepare(out: Path, description: dict, overwrite: bool) -> _State:
    """Make the folders; drop what --overwrite replaces; refuse to mix two builds in one folder."""
    state = _State(out)
    recorded = state.folder / "plan.json"
    if overwrite:
        (out / dataset.INDEX).unlink(missing_ok=True)
        for folder in (state.folder, state.shards):
            shutil.rmtree(folder, ignore_errors=True)
    elif recorded.exists() and read_json(recorded) != description:
        raise DataError(f"{out}: was begun with other inputs or options; resume with the same, or replace it with --overwrite")
    elif not recorded.exists() and state.shards.exists() and any(state.shards.glob("*.h5")):
        raise DataError(f"{out}: holds shards of an unknown build; choose another folder, or replace it with --overwrite")
    try:
        state.shards.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{state.shards}: cannot be made: {error.strerror}") from None
    if not recorded.exists():
        write_json(recorded, description)
    for left in state.shards.glob(".*.tmp"):
        left.unlink(missing_ok=True)
    return state


def _refuse(faults: list[Fault]) -> None:
    if faults:
        first = faults[0]
        where = f"image {first.image_id}" + (f", annotation {first.annotation_id}" if first.annotation_id is not None else "")
        raise DataError(f"--strict: {len(faults)} faults, the first: {first.kind}: {where}: {first.reason}")


def _run_here(plan: Plan, state: _State, finished: set[str], workers: int, progress: Callable[[int], None]):
    images = 0

    def tick() -> None:
        nonlocal images
        images += 1
        progress(images)

    progress(0)
    for task in plan.tasks(finished):
        yield task.name, run_shard(task, state.shard(task.name), tick)


def _run_in_pool(plan: Plan, state: _State, finished: set[str], workers: int, progress: Callable[[int], None]):
    context = get_context("spawn")
    ticks, stop = context.Value("q", 0), context.Event()
    tasks = plan.tasks(finished)
    waiting: dict[Future, str] = {}
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(ticks, stop, os.getpid()))
    try:
        while True:
            for task in islice(tasks, max(0, _AHEAD * workers - len(waiting))):
                with _interrupts_held():
                    waiting[pool.submit(_work, task, state.shard(task.name))] = task.name
            if not waiting:
                return
            for future in wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
            progress(ticks.value)
    except BrokenProcessPool:
        raise DataError("a worker process died (out of memory?); finished shards are kept: go on with --resume") from None
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that are started meanwhile never see Ctrl-C; here it waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_ticks = None


def _start_worker(ticks, stop, parent: int) -> None:
    """Count images for the parent, and end at once when it says so or is gone."""
    global _ticks
    _ticks = ticks

    def watch() -> None:
        while not stop.wait(timeout=1) and os.getppid() == parent:
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: ShardTask, shard: Path) -> dict:
    def tick() -> None:
        with _ticks.get_lock():
            _ticks.value += 1

    return run_shard(task, shard, tick)


def _index(plan: Plan, description: dict, reports: dict[str, dict]) -> dict:
    """The content of dataset.json."""
    entries = [
        {"file": f"shards/{name}.h5", "split": name.rsplit("-", 1)[0], **{k: v for k, v in report.items() if k != "faults"}}
        for name, report in reports.items()
    ]
    splits = {
        split: {
            "images": sum(e["images"] for e in entries if e["split"] == split),
            "shards": sum(e["split"] == split for e in entries),
        }
        for split in plan.images
    }
    faults = [*plan.faults, *(Fault(*fault) for report in reports.values() for fault in report["faults"])]
    return {
        "format": dataset.FORMAT,
        "version": dataset.VERSION,
        "splits": splits,
        "shards": entries,
        "options": description["options"],
        "inputs": description["inputs"],
        "hdf5": h5py.version.hdf5_version,
        "report": {"counts": dict(sorted(Counter(f.kind for f in faults).items())), "faults": [f._asdict() for f in faults]},
        "vocabulary": coco_lvis().to_json(),
    }
