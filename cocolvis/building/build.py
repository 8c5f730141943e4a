"""The build: makes a plan, runs the tasks of the shards, keeps finished shards if it fails, and writes the index at the end."""

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from cocolvis.building import executors, index, resume
from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
from cocolvis.building.overwrite import inventory
from cocolvis.building.shard_plan import ShardPlan
from cocolvis.building.state import BuildState
from cocolvis.disk import lock, reading
from cocolvis.disk.files import Unwritable, is_absent, reason
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.progress import Announce, Phase, Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage import dataset
from cocolvis.text import counted, first_few, human_size

_NO_PARTS = "holds no shards of `cocolvis build --shard I/N` or `cocolvis import ... --shard I/N`"


class Mode(Enum):
    """What a build does with a folder that already holds something."""

    FRESH = "refuse to build there"
    RESUME = "complete the unfinished build, and keep its finished shards"
    OVERWRITE = "replace the data set or the unfinished build"


@dataclass(frozen=True)
class Part:
    """One of ``count`` jobs that build a data set together: it builds every ``count``-th shard from the ``number``-th on.

    A part that runs again keeps its finished shards, except those that lack images because of their files. :func:`join`
    completes the data set. 1 <= ``number`` <= ``count``.
    """

    number: int
    count: int

    def __post_init__(self):
        if not 1 <= self.number <= self.count:
            raise DataError(f"part {self.number} of {self.count}: expected parts 1 to N of N")


@dataclass(frozen=True, kw_only=True)
class Build:
    """How to build: what to do with a folder that is not empty, which processes do the work, and which faults end the build.

    ``workers`` is the number of processes, 1 for this process alone, or the address of a dask.distributed scheduler whose
    cluster does the work. With ``strict``, any fault of the input raises DataError. With ``allow_missing``, images that cannot
    be read are left out, for any reason and in any number. ``progress`` is called with numbers of images, ``phase`` while
    finished shards are checked, and ``announce`` with lines for the user.
    """

    mode: Mode | Part = Mode.FRESH
    workers: int | str = 1
    strict: bool = False
    allow_missing: bool = False
    progress: Progress = ignore
    announce: Announce = ignore
    phase: Phase = ignore

    def __post_init__(self):
        if isinstance(self.workers, int) and self.workers < 1:
            raise DataError(f"workers is {self.workers}; expected 1 or more, or the address of a scheduler")

    def run(self, make_plan: Callable[[], ShardPlan], out: Path) -> dict[str, Any] | None:
        """Write the data set of a plan to ``out`` and return its index, as in dataset.json.

        Returns None after a single part, unless ``out`` already holds the whole data set.

        Finished shards are kept if an exception is raised. Raises DataError, before ``make_plan`` is called, if the mode does
        not allow the contents of the folder, or if another build is running there; later if input cannot be read for a reason
        that does not concern a single file, such as a lost disk, or if a split lost too many images without ``allow_missing``.
        """
        out = out.absolute()
        _check_is_folder(out)
        part = (self.mode.number, self.mode.count) if isinstance(self.mode, Part) else None
        with lock.held(out, part, self.announce) as lease, reading.allowing_missing(self.allow_missing), _advising_to_resume():
            self._check_content(out)
            plan, state = make_plan(), BuildState(out, lease)
            if self.mode is not Mode.OVERWRITE and (out / dataset.INDEX).exists():
                found = index.resumed(state, plan.description(), self.announce)
                if self.strict:
                    _refuse_finished(out, found["report"])
                return found
            return self._run(plan, state)

    def _check_content(self, out: Path) -> None:
        """Raise DataError if the mode does not allow the contents of the folder."""
        for folder in (out / ".build", out / "shards"):
            if not is_absent(folder) and not folder.is_dir():
                raise DataError(
                    f"{folder}: is not a folder, but a build needs one there; move it away, or choose another --out"
                )
        if self.mode is Mode.OVERWRITE:
            inventory(out)  # refuses links that lead out of the folder
        if self.mode is not Mode.FRESH:
            return
        if (out / dataset.INDEX).exists():
            raise DataError(f"{out}: already holds a data set; replace it with --overwrite")
        if not all(lock.is_lock(path) for path in out.iterdir()):
            raise DataError(f"{out}: is not empty; complete an interrupted build with --resume, replace it with --overwrite")

    def _run(self, plan: ShardPlan, state: BuildState) -> dict[str, Any] | None:
        self._refuse(plan.faults)
        repaired = self.mode is not Mode.OVERWRITE and resume.check(state, plan)
        names = [*plan.shard_counts()]
        if isinstance(self.mode, Part):
            names = names[self.mode.number - 1 :: self.mode.count]
            with state.swept(names):
                self._build_shards(plan, state, names, repaired)
            return None
        with state.swept():
            reports = self._build_shards(plan, state, names, repaired)
            advice = "--resume reads them again, --resume --allow-missing leaves these images out"
            return index.complete(state, reports, self.announce, advice)

    def _build_shards(self, plan: ShardPlan, state: BuildState, names: list[str], repaired: bool) -> dict[str, dict[str, Any]]:
        """Build the named shards that are not finished, or whose files were ``repaired``; return the reports of all."""
        reports, freed = {}, 0
        if self.mode is Mode.OVERWRITE:
            freed = inventory(state.out).bytes
        else:
            how = {"repaired": repaired, "part": isinstance(self.mode, Part), "strict": self.strict}
            reports = resume.keep_finished(state, plan, names, self.phase, self.announce, **how)
            self._refuse(_faults_of(reports.values()))
        left = [name for name in names if name not in reports]
        if not state.is_this_build:
            state.check_size(plan)
        _check_disk(plan, state.out, left, freed, self.announce)
        if self.mode is Mode.OVERWRITE:
            state.replace(names, self.announce)
        resume.begin(state, plan)
        counts = plan.shard_counts()
        done, total = sum(counts[name] for name in reports), sum(counts[name] for name in names)
        for name, report in self._work(plan, state, left, lambda images: self.progress(done + images, total)):
            plan.check_inputs()  # before the shard counts as finished
            reports[name] = state.finish(name, report)
            self._refuse(_faults_of([report]))
        return reports

    def _refuse(self, faults: Sequence[Fault]) -> None:
        """With ``strict``, raise DataError if there are faults; the message counts them and describes the first."""
        if self.strict and faults:
            raise DataError(f"--strict: {counted(len(faults), 'fault')}, the first: {_described(faults[0])}")

    def _work(
        self, plan: ShardPlan, state: BuildState, names: Collection[str], progress: Callable[[int], None]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (shard name, report) of each named shard when it is written."""
        progress(0)
        if not names:
            return
        with executors.interrupts_deferred():
            plan.warm_up()
        tasks = (replace(task, allow_missing=reading.missing_allowed()) for task in plan.tasks(names))
        try:
            if self.workers == 1:
                yield from executors.run_here(tasks, state.shard, state.lease, progress)
            else:
                yield from executors.run_in(self._workers(), tasks, state.shard, state.lease, progress)
        except Exception:
            plan.check_inputs()  # annotations that were overwritten can cause any error
            raise

    def _workers(self) -> AbstractContextManager[executors.Workers]:
        return executors.cluster(self.workers) if isinstance(self.workers, str) else executors.processes(self.workers)


def build(sources: Sources, out: Path, options: CocoLvisOptions, **how: Any) -> dict[str, Any] | None:
    """Build COCO+LVIS in ``out``; ``how`` are the fields of :class:`Build`, and the result is that of :meth:`Build.run`."""
    return Build(**how).run(partial(CocoLvisPlan.make, sources, options), out)


def join(out: Path, announce: Announce = ignore, phase: Phase = ignore, *, allow_missing: bool = False) -> dict[str, Any]:
    """Complete a data set whose shards were built in parts, and return its index.

    Raises DataError if shards are missing, or if a split lost too many images without ``allow_missing``.
    """
    out = out.absolute()
    if not os.path.isdir(out):
        raise DataError(f"{out}: {_NO_PARTS}")
    with lock.held(out, None, announce, "a join") as lease, reading.allowing_missing(allow_missing):
        state = BuildState(out, lease)
        if (out / dataset.INDEX).exists():
            return index.opened(out)
        if not state.is_begun():
            raise DataError(f"{out}: {_NO_PARTS}")
        with state.swept():
            state.check_maker()
            names = state.record["shards"]
            reports = resume.finished(state, names, phase)
            missing = [name for name in names if name not in reports]
            if missing:
                reason = f"{len(missing)} of {len(names)} shards are missing or damaged: {first_few(missing, resume.SHOWN)}"
                raise DataError(f"{out}: {reason}; run their parts again, with the same command and `--shard I/N`")
            advice = "parts that run again read them again, `join --allow-missing` leaves these images out"
            return index.complete(state, reports, announce, advice)


@contextmanager
def _advising_to_resume() -> Iterator[None]:
    """Turn failures of the machine into DataErrors whose messages say how to continue."""
    try:
        yield
    except MemoryError:
        raise DataError(f"memory ran out; try fewer --workers; {executors.KEPT}") from None
    except Unwritable as error:
        raise DataError(f"{error}; {executors.KEPT}") from None
    except reading.UnreadableInput as error:
        advice = "when it can be read again, or with --resume --allow-missing to leave out what cannot be read"
        raise reading.UnreadableInput(f"{error}; {executors.KEPT} {advice}") from None


def _check_is_folder(out: Path) -> None:
    try:
        if out.exists() and not out.is_dir():
            raise DataError(f"{out}: is a file; expected a folder to write the data set to")
    except OSError as error:
        raise DataError(f"{out}: cannot be a folder: {reason(error)}") from None


def _refuse_finished(out: Path, report: Mapping[str, Any]) -> None:
    """Raise DataError if the report of a finished data set counts faults."""
    if report["counts"]:
        faults, first = counted(sum(report["counts"].values()), "fault"), _described(Fault(**report["faults"][0]))
        raise DataError(f"{out}: is a finished data set with {faults}, the first: {first}; --overwrite builds it again")


def _faults_of(reports: Iterable[Mapping[str, Any]]) -> list[Fault]:
    """The faults that reports of shards list."""
    return [Fault(*fault) for report in reports for fault in report["faults"]]


def _described(fault: Fault) -> str:
    """The kind, place and reason of a fault."""
    ids = (("image", fault.image_id), ("annotation", fault.annotation_id))
    where = ", ".join(f"{what} {number}" for what, number in ids if number is not None) or fault.source
    return f"{fault.kind}: {where}: {fault.reason}"


def _check_disk(plan: ShardPlan, out: Path, names: Collection[str], freed: int, announce: Announce) -> None:
    """Raise DataError if the disk cannot hold the named shards; ``freed`` bytes are added to its free space."""
    shards = out / "shards"  # may be a link to a larger disk
    place = shards if shards.exists() else out
    existing = next(path for path in (place, *place.parents) if path.exists())
    usage, needed = shutil.disk_usage(existing), plan.bytes_needed(names)
    free = usage.free + freed
    sizes = f"about {human_size(needed)} in {place}, where {human_size(free)} are free"
    if usage.total and needed > free:  # some network file systems report a total of 0
        raise DataError(f"the build needs {sizes}; make room, choose another --out, or store less (--images path)")
    announce(f"needs {sizes}")
