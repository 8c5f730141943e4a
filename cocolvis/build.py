"""The build: runs the plan's shard tasks, keeps what is finished whatever happens, and writes the index at the end."""

import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cocolvis import dataset, executors, reading
from cocolvis.annotations import Fault
from cocolvis.errors import DataError
from cocolvis.files import Unwritable
from cocolvis.merge_task import BuildOptions
from cocolvis.plan import Plan
from cocolvis.report import lossy
from cocolvis.shard_plan import ShardPlan
from cocolvis.shard_task import run_shard
from cocolvis.sources import Sources
from cocolvis.state import BuildState

Progress = Callable[[int, int], None]
"""Called with (images done, images in total) now and then."""

_AHEAD = 2
"""Tasks a worker that are prepared before they are needed: bounds the memory of the planning process."""


def build(sources: Sources, out: Path, options: BuildOptions, **how: Any) -> dict | None:
    """Build COCO+LVIS in ``out``; ``how`` and what is returned are those of :func:`run`."""
    return run(partial(Plan.make, sources, options), out, **how)


def run(
    make_plan: Callable[[], ShardPlan],
    out: Path,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    part: tuple[int, int] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    strict: bool = False,
    allow_missing: bool = False,
    progress: Progress = lambda done, total: None,
    announce: Callable[[str], None] = lambda line: None,
) -> dict | None:
    """Write the data set that a plan describes to ``out`` and return its index, as in dataset.json.

    An existing folder is completed with ``resume``, replaced with ``overwrite``, and otherwise left alone with a DataError,
    before ``make_plan`` is called.
    ``strict`` makes any fault of the input a DataError. Shards that are finished stay finished whatever is raised.
    Input that cannot be read for a reason that is not its own, such as a disk that is gone, and a split that lost too many
    images, are DataErrors; with ``allow_missing`` what cannot be read is left out, however much it is.
    The work is done by ``workers`` processes, or by the dask.distributed cluster at ``scheduler``. ``part`` (i, n) with
    1 <= i <= n builds every n-th shard from the i-th on, resumes by itself, and returns None: :func:`join` completes the data
    set.
    ``announce`` gets lines for the user.
    """
    how = {"workers": workers, "scheduler": scheduler, "part": part, "overwrite": overwrite, "strict": strict}
    out = out.absolute()
    resume = resume or part is not None
    _check_target(out, resume, overwrite)
    try:
        with reading.allowing(allow_missing):
            plan = make_plan()
            if resume and (out / dataset.INDEX).exists():
                return _finished_index(out, plan.description())
            return _run(plan, BuildState(out), **how, progress=progress, announce=announce)
    except MemoryError:
        raise DataError(f"memory does not suffice; take fewer --workers; {executors.KEPT}") from None
    except Unwritable as error:
        raise DataError(f"{error}; {executors.KEPT}") from None


def _run(
    plan: ShardPlan,
    state: BuildState,
    *,
    workers: int,
    scheduler: str | None,
    part: tuple[int, int] | None,
    overwrite: bool,
    strict: bool,
    progress: Progress,
    announce: Callable[[str], None],
) -> dict | None:
    if strict:
        _refuse(plan.faults)
    found = not overwrite and state.check(plan)
    counts = plan.shard_counts()
    names = list(counts)[part[0] - 1 :: part[1]] if part else list(counts)
    reports = {} if overwrite else state.finished(names)
    for name in _to_read_again(plan, state, reports, found, announce):
        del reports[name]
    left = [name for name in names if name not in reports]
    _check_disk(plan, state.out, left, state.replaced() if overwrite else 0, announce)
    done, total = sum(counts[name] for name in reports), sum(counts[name] for name in names)
    runner = executors.cluster(scheduler) if scheduler else executors.processes(workers) if workers > 1 else None
    state.begin(plan, plan.description(), overwrite=overwrite, joined=part is not None)
    with nullcontext() if part else state.swept():
        for name, report in _reports(plan, state, left, runner, lambda images: progress(done + images, total)):
            state.finish(name, report)
            reports[name] = report
            if strict:
                _refuse([Fault(*fault) for fault in report["faults"]])
    if part:
        return None
    _check_losses(state, reports, "--resume reads them again, --resume --allow-missing does without")
    return state.complete(reports, plan.vocabulary)


def join(out: Path, *, allow_missing: bool = False) -> dict:
    """Complete a data set whose shards were built in parts; its index. A DataError that says what is missing.

    A split that lost too many images is a DataError too, unless they are ``allow_missing``.
    """
    out = out.absolute()
    state = BuildState(out)
    if (out / dataset.INDEX).exists():
        return dataset.Dataset.open(out).index
    if not (state.folder / "plan.json").exists():
        raise DataError(f"{out}: holds no shards of `cocolvis build --shard I/N`")
    names = state.plan["shards"]
    reports = state.finished(names)
    missing = [name for name in names if name not in reports]
    if missing:
        first = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        reason = f"{len(missing)} of {len(names)} shards are missing or damaged: {first}"
        raise DataError(f"{out}: {reason}; run the parts again that hold them, with `cocolvis build ... --shard I/N`")
    with reading.allowing(allow_missing), state.swept():
        _check_losses(state, reports, "parts that run again read them again, `join --allow-missing` does without")
        return state.complete(reports, state.vocabulary)


def _to_read_again(
    plan: ShardPlan, state: BuildState, reports: dict, found: bool, announce: Callable[[str], None]
) -> list[str]:
    """Finished shards that lack images, where files were ``found`` again, or no data set could be made of so few images.

    In parts, what the others have finished counts too.
    """
    if reading.allowed():
        return []
    spoilt = lossy(reports)
    if reports and not found and not state.losses(state.noted(plan.shard_counts()) | reports, all_there=False):
        spoilt = [name for name in spoilt if reports[name].get("again")]
    if spoilt:
        announce(f"{len(spoilt)} of the finished shards lack images that could not be read: these are built again")
        state.mark(spoilt, reports)
    if found:
        state.note_files(plan)
    return spoilt


def _check_losses(state: BuildState, reports: dict[str, dict], advice: str) -> None:
    found = [] if reading.allowed() else state.losses(reports, all_there=True)
    if found:
        state.mark(lossy(reports), reports)
        raise DataError(f"{state.out}: {', and '.join(found)}; finished shards are kept: {advice}")


def _check_target(out: Path, resume: bool, overwrite: bool) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file; expected a folder to write the data set to")
    except OSError as error:
        raise DataError(f"{out}: cannot be a folder: {error.strerror}") from None
    if resume or overwrite or not out.exists():
        return
    if (out / dataset.INDEX).exists():
        raise DataError(f"{out}: already holds a data set; replace it with --overwrite")
    if any(out.iterdir()):
        raise DataError(f"{out}: is not empty; complete an interrupted build with --resume, replace it with --overwrite")


def _finished_index(out: Path, description: dict) -> dict:
    index = dataset.Dataset.open(out).index
    shutil.rmtree(BuildState(out).folder, ignore_errors=True)
    if {"options": index["options"], "inputs": index["inputs"], "vocabulary": index["vocabulary"]["digest"]} != description:
        raise DataError(f"{out}: is a finished data set of other inputs or options; replace it with --overwrite")
    return index


def _refuse(faults: list[Fault]) -> None:
    if faults:
        first = faults[0]
        where = f"image {first.image_id}" + (f", annotation {first.annotation_id}" if first.annotation_id is not None else "")
        raise DataError(f"--strict: {len(faults)} faults, the first: {first.kind}: {where}: {first.reason}")


def _check_disk(plan: ShardPlan, out: Path, names: Collection[str], freed: int, announce: Callable[[str], None]) -> None:
    """Refuse before anything is written, or removed, where the disk cannot hold what is to come."""
    there = next(path for path in (out, *out.parents) if path.exists())
    usage, needed = shutil.disk_usage(there), plan.bytes_needed(names)
    free = usage.free + freed
    sizes = f"about {needed / 1e6:,.0f} MB in {out}, where {free / 1e6:,.0f} MB are free"
    if usage.total and needed > free:  # some network file systems say 0
        raise DataError(f"the build needs {sizes}; make room, choose another --out, or store less (--images path)")
    announce(f"needs {sizes}")


def _reports(
    plan: ShardPlan,
    state: BuildState,
    names: Collection[str],
    runner: AbstractContextManager | None,
    progress: Callable[[int], None],
) -> Iterator[tuple[str, dict]]:
    """(shard name, report) as the shards are finished."""
    progress(0)
    if not names:
        return
    with executors.interrupts_deferred():
        plan.warm_up()
    tasks = (replace(task, allow_missing=reading.allowed()) for task in plan.tasks(names))
    if runner is None:
        yield from _reports_here(tasks, state, progress)
        return
    waiting: dict[Future, str] = {}
    done = 0
    with runner as workers:
        while True:
            for task in islice(tasks, max(0, _AHEAD * workers.count - len(waiting))):
                waiting[workers.submit(task, state.shard(task.name))] = task.name
            if not waiting:
                return
            finished = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED).done
            if not finished:
                workers.check()
            for future in finished:
                report = future.result()
                done += report["images"]
                yield waiting.pop(future), report
            progress(workers.images() if workers.images else done)


def _reports_here(tasks, state: BuildState, progress: Callable[[int], None]) -> Iterator[tuple[str, dict]]:
    images = 0

    def tick() -> None:
        nonlocal images
        images += 1
        check()
        progress(images)

    for task in tasks:
        with executors.interrupts_deferred() as check:
            report = run_shard(task, state.shard(task.name), tick)
        yield task.name, report
