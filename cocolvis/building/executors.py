"""Runs shard tasks: in this process, in processes of this machine, or on the workers of a dask.distributed cluster."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from cocolvis.building.shard_task import ShardTask, run_shard
from cocolvis.disk.lock import Lease
from cocolvis.errors import DataError
from cocolvis.memory import keep_freed_memory
from cocolvis.signals import starting_workers
from cocolvis.text import one_line

_PATIENCE = 30
"""Seconds to wait until a scheduler answers, and until it has a worker, at the start and when it has lost all of them."""

_AHEAD = 2
"""How many tasks are prepared for each worker; this bounds the memory of the planning process."""

KEPT = "finished shards are kept: continue with --resume"

Report = dict[str, Any]
"""The result of :func:`cocolvis.building.shard_task.run_shard`."""


@dataclass(frozen=True)
class Workers:
    """``submit`` starts a shard task and returns a future of its report; ``count`` returns how many run at a time, at least 1.

    ``images`` returns the number of images done so far, including those of tasks that still run; it is None if the workers
    cannot count them. ``check`` raises TimeoutError if no workers are left.
    """

    submit: Callable[[ShardTask, Path, Lease], Future[Report]]
    count: Callable[[], int]
    images: Callable[[], int] | None = None
    check: Callable[[], None] = lambda: None


def run_here(
    tasks: Iterator[ShardTask], path: Callable[[str], Path], lease: Lease, progress: Callable[[int], None]
) -> Iterator[tuple[str, Report]]:
    """Run the tasks one after another in this process and yield (shard name, report) of each.

    ``path`` maps the name of a shard to its file. ``progress`` is called with the number of images done so far.
    """
    images = 0

    def tick() -> None:
        nonlocal images
        images += 1
        check()
        progress(images)

    for task in tasks:
        with interrupts_deferred() as check:
            report = run_shard(task, path(task.name), lease, tick)
        yield task.name, report


def run_in(
    starting: AbstractContextManager[Workers],
    tasks: Iterator[ShardTask],
    path: Callable[[str], Path],
    lease: Lease,
    progress: Callable[[int], None],
) -> Iterator[tuple[str, Report]]:
    """Start the workers, run the tasks on them, and yield (shard name, report) of each when it is finished.

    ``path`` and ``progress`` are those of :func:`run_here`.
    """
    names: dict[Future[Report], str] = {}
    done = 0
    with starting as workers:
        while True:
            for task in islice(tasks, max(0, _AHEAD * workers.count() - len(names))):
                names[workers.submit(task, path(task.name), lease)] = task.name
            if not names:
                return
            finished = wait(names, timeout=0.2, return_when=FIRST_COMPLETED).done
            if not finished:
                workers.check()
            for future in sorted(finished, key=_failed):  # what is finished is kept before a failure ends the build
                report = future.result()
                done += report["images"]
                yield names.pop(future), report
            progress(workers.images() if workers.images else done)


def _failed(future: Future[Report]) -> bool:
    return future.cancelled() or future.exception() is not None


@contextmanager
def processes(count: int) -> Iterator[Workers]:
    """Spawn processes on this machine, which end at once after an exception; raises DataError if one dies or cannot start."""
    context = get_context("spawn")
    with starting_workers():
        ticks, stop = context.Value("q", 0), context.Event()
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(ticks, stop))

    def submit(task: ShardTask, shard: Path, lease: Lease) -> Future[Report]:
        with starting_workers():
            return pool.submit(_work, task, shard, lease)

    try:
        yield Workers(submit, lambda: count, lambda: ticks.value)
    except BrokenProcessPool:
        raise DataError(f"a worker process died (out of memory?); {KEPT}") from None
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Delay Ctrl-C until the yielded function is called, or until the end: compiled code would lose it.

    A process that ignores Ctrl-C, as in the background of a script, continues to do so.
    """
    interrupted = threading.Event()

    def check() -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)  # None if it cannot be restored, because it was not set by Python
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield check
        return
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


_ticks: Any = None
"""In a worker process: the number of images that all workers have done, shared with the parent."""


def _start_worker(ticks: Any, stop: Any) -> None:
    """Prepare a worker process: it counts images for the parent, and ends at once when ``stop`` is set or the parent ends."""
    global _ticks
    _ticks = ticks
    keep_freed_memory()
    parent = parent_process()

    def watch() -> None:
        while parent and parent.is_alive() and not stop.is_set():
            parent.join(timeout=0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: ShardTask, shard: Path, lease: Lease) -> Report:
    def tick() -> None:
        with _ticks.get_lock():
            _ticks.value += 1

    return run_shard(task, shard, lease, tick)


_CHATTY = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio", "concurrent.futures")
"""Loggers that report every lost connection and every cancelled task."""


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """Connect to the workers of a dask.distributed scheduler; they must see the same folders, and continue if one dies."""
    try:
        import dask
        from distributed import Client, KilledWorker
        from distributed.comm import get_address_host_port
    except ImportError:
        raise DataError("--scheduler needs dask.distributed: pip install 'cocolvis-ess[cluster]'") from None
    large = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}  # a task holds its annotations, several MB
    with _silenced(*_CHATTY), dask.config.set(large):
        try:
            get_address_host_port(address)
            client = _within(2 * _PATIENCE, partial(Client, address, timeout=_PATIENCE, set_as_default=False))
        except (OSError, ValueError, OverflowError, TypeError) as error:  # the last one for tls:// without certificates
            advice = "start one with `dask scheduler`"
            raise DataError(f"--scheduler {address}: no scheduler answers ({_reason(error)}); {advice}") from None
        with client:
            executor = client.get_executor(pure=False)
            try:
                yield _cluster_workers(client, executor, address)
            except (KilledWorker, CancelledError, OSError) as error:
                reason = str(error) or "the scheduler is gone"
                raise DataError(f"--scheduler {address}: lost its workers or its connection ({reason}); {KEPT}") from None
            except Exception as error:
                if not _is_of_another_version(error):
                    raise
                advice = "scheduler and workers need the same version of cocolvis-ess"
                raise DataError(f"--scheduler {address}: cannot read a task ({_reason(error)}); {advice}") from None
            finally:
                executor.shutdown(wait=False)


def _is_of_another_version(error: Exception) -> bool:
    """Whether a scheduler or a worker could not unpickle a task, because it has another version of this package, or none."""
    starts = ("Error during deserialization", "Can't get attribute")
    return isinstance(error, ImportError) or str(error).strip().startswith(starts)


def _reason(error: Exception) -> str:
    """The first line of a message, or the type of an error without one."""
    return one_line(str(error).strip() or type(error).__name__)


def _within(seconds: float, call: Callable) -> Any:
    """The result of ``call``.

    Raises TimeoutError if it takes longer, because a client waits forever for a service that is not a scheduler.
    """
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(call())
        except BaseException as error:
            result.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not result.done():
        raise TimeoutError(f"no greeting for {seconds} s")
    return result.result()


def _cluster_workers(client: Any, executor: Executor, address: str) -> Workers:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        raise DataError(f"--scheduler {address}: has no workers; start some with `dask worker {address}`") from None

    def submit(task: ShardTask, shard: Path, lease: Lease) -> Future[Report]:
        return executor.submit(run_shard, task, shard, lease)

    def count() -> int:
        return max(1, sum(client.nthreads().values()))  # workers come and go while tasks run

    return Workers(submit, count, check=partial(_check_workers, client, [time.monotonic()]))


def _check_workers(client: Any, last_seen: list[float]) -> None:
    """Raise TimeoutError if there have been no workers for some time: the scheduler would wait for new ones forever."""
    if client.nthreads():
        last_seen[0] = time.monotonic()
    elif time.monotonic() - last_seen[0] > _PATIENCE:
        raise TimeoutError(f"no worker for {_PATIENCE} s; one without this version of cocolvis-ess stops at its first task")


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Silence these loggers, so that the one-line error is not buried under messages about lost connections."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
