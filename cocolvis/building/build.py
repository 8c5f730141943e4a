"""The build: runs the plan's shard tasks, keeps what is finished whatever happens, and writes the index at the end."""

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from cocolvis.building import executors
from cocolvis.building.base import ShardPlan, run_shard
from cocolvis.building.completeness import refuse, to_read_again
from cocolvis.building.merged import BuildOptions, Plan
from cocolvis.building.numbering import advice
from cocolvis.building.overwrite import forget, inventory
from cocolvis.building.state import BuildState, first
from cocolvis.disk import lock, reading
from cocolvis.disk.files import Unwritable, is_absent
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.pictures import remarks
from cocolvis.progress import Announce, Phase, Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage import dataset
from cocolvis.text import human_size

_NO_PARTS = "holds no shards of `cocolvis build --shard I/N`"

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
    progress: Progress = ignore,
    announce: Announce = ignore,
    phase: Phase = ignore,
) -> dict | None:
    """Write the data set that a plan describes to ``out`` and return its index, as in dataset.json.

    An existing folder is completed with ``resume``, replaced with ``overwrite``, and otherwise left alone with a DataError,
    before ``make_plan`` is called. So is a folder in which another build is at work.
    ``strict`` makes any fault of the input a DataError. Shards that are finished stay finished whatever is raised.
    Input that cannot be read for a reason that is not its own, such as a disk that is gone, and a split that lost too many
    images, are DataErrors; with ``allow_missing`` what cannot be read is left out, however much it is.
    The work is done by ``workers`` processes, or by the dask.distributed cluster at ``scheduler``. ``part`` (i, n) with
    1 <= i <= n builds every n-th shard from the i-th on, resumes by itself, and returns None: :func:`join` completes the data
    set.
    ``progress`` counts images, ``phase`` is told how much of the finished shards was read, and ``announce`` gets lines for the
    user.
    """
    out = out.absolute()
    _check_folder(out)
    with lock.held(out, part, announce) as lease, reading.allowing_missing(allow_missing), _told_what_is_kept():
        resume = resume or part is not None
        _check_target(out, resume, overwrite)
        plan = make_plan()
        state = BuildState(out, lease)
        if resume and (out / dataset.INDEX).exists():
            return _finished_index(state, plan.description())
        if strict:
            _refuse(plan.faults)
        found = not overwrite and state.check(plan)
        names = list(plan.shard_counts())[part[0] - 1 :: part[1]] if part else list(plan.shard_counts())
        work = _Work(plan, state, scheduler, workers, strict, progress, announce, phase)
        with state.swept(names if part else None):
            reports = work.run(names, overwrite, found)
            if part:
                return None
            refuse(state, reports, "--resume reads them again, --resume --allow-missing does without")
            return _complete(state, reports, announce)


@contextmanager
def _told_what_is_kept() -> Iterator[None]:
    """Faults of the machine end a build in a DataError that says how to go on."""
    try:
        yield
    except MemoryError:
        raise DataError(f"memory does not suffice; take fewer --workers; {executors.KEPT}") from None
    except Unwritable as error:
        raise DataError(f"{error}; {executors.KEPT}") from None


@dataclass(frozen=True)
class _Work:
    """What is to be done, and how."""

    plan: ShardPlan
    state: BuildState
    scheduler: str | None
    workers: int
    strict: bool
    progress: Progress
    announce: Announce
    phase: Phase

    def run(self, names: list[str], overwrite: bool, found: bool) -> dict[str, dict]:
        """Build the named shards that are not finished, or lack files that were ``found`` again; the reports of all."""
        plan, state = self.plan, self.state
        reports = {} if overwrite else state.finished(names, self.phase)
        for name in to_read_again(plan, state, reports, found, self.announce):
            del reports[name]
        left = [name for name in names if name not in reports]
        _check_disk(plan, state.out, left, inventory(state.out).bytes if overwrite else 0, self.announce)
        if overwrite:
            state.replace(names, self.announce)
        state.begin(plan)
        counts = plan.shard_counts()
        done, total = sum(counts[name] for name in reports), sum(counts[name] for name in names)
        for name, report in _reports(plan, state, left, self._runner(), lambda images: self.progress(done + images, total)):
            reports[name] = state.finish(name, report)
            if self.strict:
                _refuse([Fault(*fault) for fault in report["faults"]])
        return reports

    def _runner(self) -> AbstractContextManager | None:
        if self.scheduler:
            return executors.cluster(self.scheduler)
        return executors.processes(self.workers) if self.workers > 1 else None


def join(out: Path, announce: Announce = ignore, phase: Phase = ignore, *, allow_missing: bool = False) -> dict:
    """Complete a data set whose shards were built in parts; its index. A DataError that says what is missing.

    A split that lost too many images is a DataError too, unless they are ``allow_missing``.
    """
    out = out.absolute()
    if not out.is_dir():
        raise DataError(f"{out}: {_NO_PARTS}")
    with lock.held(out, None, announce, "a join") as lease, reading.allowing_missing(allow_missing):
        state = BuildState(out, lease)
        if (out / dataset.INDEX).exists():
            return _opened(out)
        if is_absent(state.folder / "plan.json"):
            raise DataError(f"{out}: {_NO_PARTS}")
        with state.swept():
            state.check_maker()
            names = state.plan["shards"]
            reports = state.finished(names, phase)
            missing = [name for name in names if name not in reports]
            if missing:
                reason = f"{len(missing)} of {len(names)} shards are missing or damaged: {first(missing)}"
                raise DataError(f"{out}: {reason}; run the parts again that hold them, with `cocolvis build ... --shard I/N`")
            refuse(state, reports, "parts that run again read them again, `join --allow-missing` does without")
            return _complete(state, reports, announce)


def _complete(state: BuildState, reports: dict[str, dict], announce: Announce) -> dict:
    """Write the index; say what is worth a word, and where different versions of HDF5 wrote the shards."""
    vocabulary = state.vocabulary
    index = state.complete(reports, vocabulary)
    seen = sum((Counter(report.get("seen", {})) for report in reports.values()), Counter())
    for line in (*remarks.lines(seen), *advice(seen, vocabulary)):
        announce(line)
    found = Counter(entry["hdf5"] for entry in index["shards"])
    if len(found) > 1:
        said = ", ".join(f"{version} ({count} shards)" for version, count in sorted(found.items()))
        announce(f"different versions of HDF5 wrote the shards: {said}; their bytes may differ from those of another build")
    return index


def _check_folder(out: Path) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file; expected a folder to write the data set to")
    except OSError as error:
        raise DataError(f"{out}: cannot be a folder: {error.strerror}") from None


def _check_target(out: Path, resume: bool, overwrite: bool) -> None:
    if overwrite:
        inventory(out)  # refuses folders that lead elsewhere
    if resume or overwrite:
        return
    if (out / dataset.INDEX).exists():
        raise DataError(f"{out}: already holds a data set; replace it with --overwrite")
    if not all(lock.is_lock(path) for path in out.iterdir()):
        raise DataError(f"{out}: is not empty; complete an interrupted build with --resume, replace it with --overwrite")


def _opened(out: Path) -> dict:
    """The index of a finished data set; a DataError that says how to go on where it is damaged."""
    try:
        return dataset.Dataset.open(out).index
    except DataError as error:
        raise DataError(f"{error}; build it anew with `cocolvis build --overwrite`, or `import`") from None


def _finished_index(state: BuildState, description: dict) -> dict:
    index, out = _opened(state.out), state.out
    rule = index.get("mask_rule", "not recorded")
    if rule != description["mask_rule"]:
        found = f"its {len(index['shards'])} shards have mask rule {rule}, this cocolvis has {description['mask_rule']}"
        raise DataError(f"{out}: is a finished data set, but {found}; make it anew with `cocolvis build --overwrite`")
    forget(out)
    if any(index[key] != description[key] for key in ("options", "inputs")) or (
        index["vocabulary"]["digest"] != description["vocabulary"]
    ):
        raise DataError(f"{out}: is a finished data set of other inputs or options; replace it with --overwrite")
    return index


def _refuse(faults: list[Fault]) -> None:
    if faults:
        first = faults[0]
        named = (("image", first.image_id), ("annotation", first.annotation_id))
        where = ", ".join(f"{what} {number}" for what, number in named if number is not None) or first.source
        raise DataError(f"--strict: {len(faults)} faults, the first: {first.kind}: {where}: {first.reason}")


def _check_disk(plan: ShardPlan, out: Path, names: Collection[str], freed: int, announce: Announce) -> None:
    """Refuse before anything is written, or removed, where the disk cannot hold what is to come."""
    there = next(path for path in (out, *out.parents) if path.exists())
    usage, needed = shutil.disk_usage(there), plan.bytes_needed(names)
    free = usage.free + freed
    sizes = f"about {human_size(needed)} in {out}, where {human_size(free)} are free"
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
    tasks = (replace(task, allow_missing=reading.missing_allowed()) for task in plan.tasks(names))
    if runner is None:
        yield from _reports_here(tasks, state, progress)
        return
    waiting: dict[Future, str] = {}
    done = 0
    with runner as workers:
        while True:
            for task in islice(tasks, max(0, _AHEAD * workers.count - len(waiting))):
                waiting[workers.submit(task, state.shard(task.name), state.lease)] = task.name
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
            report = run_shard(task, state.shard(task.name), state.lease, tick)
        yield task.name, report
