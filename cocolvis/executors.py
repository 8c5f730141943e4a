"""Who does the work of a build: this process, processes of this machine, or the workers of a dask.distributed cluster."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from cocolvis.errors import DataError
from cocolvis.plan import ShardTask
from cocolvis.shard_task import run_shard

_PATIENCE = 30
"""Seconds to wait for a scheduler to answer, and for it to have a worker."""

_LOST = "finished shards are kept: go on with --resume"


@dataclass(frozen=True)
class Workers:
    """``submit`` starts a shard task and returns a future of its report; ``count`` tasks run at a time.

    ``images`` is the number of images done so far, also in tasks that still run; None where workers cannot tell.
    """

    submit: Callable[[ShardTask, Path], Future]
    count: int
    images: Callable[[], int] | None = None


@contextmanager
def processes(count: int) -> Iterator[Workers]:
    """Processes of this machine, started afresh (spawned). After an exception they end at once; a dead one is a DataError."""
    context = get_context("spawn")
    ticks, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(ticks, stop, os.getpid()))

    def submit(task: ShardTask, shard: Path) -> Future:
        with _interrupts_held():
            return pool.submit(_work, task, shard)

    try:
        yield Workers(submit, count, lambda: ticks.value)
    except BrokenProcessPool:
        raise DataError(f"a worker process died (out of memory?); {_LOST}") from None
    except BaseException:
        stop.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def interrupts_deferred() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for the next call of the function that this yields: in the midst of compiled code it would get lost."""
    came = threading.Event()

    def check() -> None:
        if came.is_set():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, lambda *_: came.set())
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
    check()


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


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a dask.distributed scheduler, which see the same folders; the scheduler replaces those that die."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise DataError("--scheduler needs dask.distributed: pip install 'cocolvis-ess[cluster]'") from None
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"--scheduler {address}: no scheduler answers ({reason}); start one with `dask scheduler`") from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_PATIENCE)
        except TimeoutError:
            raise DataError(f"--scheduler {address}: has no workers; start some with `dask worker {address}`") from None
        executor = client.get_executor(pure=False)
        try:
            yield Workers(partial(executor.submit, run_shard), sum(client.nthreads().values()))
        except (KilledWorker, CancelledError, OSError) as error:
            raise DataError(f"--scheduler {address}: lost its workers or its connection ({error}); {_LOST}") from None
        finally:
            executor.shutdown(wait=False)
