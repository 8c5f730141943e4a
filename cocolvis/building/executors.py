"""Who does the work of a build: this process, processes of this machine, or the workers of a dask.distributed cluster."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from cocolvis.building.base import ShardTask, run_shard
from cocolvis.disk.lock import Lease
from cocolvis.errors import DataError
from cocolvis.memory import keep_freed_memory

_PATIENCE = 30
"""Seconds to wait for a scheduler to answer, and for it to have a worker, also when it has lost them all."""

KEPT = "finished shards are kept: go on with --resume"


@dataclass(frozen=True)
class Workers:
    """``submit`` starts a shard task and returns a future of its report; ``count`` tasks run at a time.

    ``images`` is the number of images done so far, also in tasks that still run; None where workers cannot tell.
    ``check`` raises when nobody is left to do what was submitted.
    """

    submit: Callable[[ShardTask, Path, Lease], Future]
    count: int
    images: Callable[[], int] | None = None
    check: Callable[[], None] = lambda: None


@contextmanager
def processes(count: int) -> Iterator[Workers]:
    """Processes of this machine, started afresh (spawned). After an exception they end at once; a dead one is a DataError."""
    context = get_context("spawn")
    ticks, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(ticks, stop))

    def submit(task: ShardTask, shard: Path, lease: Lease) -> Future:
        with _interrupts_held():
            return pool.submit(_work, task, shard, lease)

    try:
        yield Workers(submit, count, lambda: ticks.value)
    except BrokenProcessPool:
        raise DataError(f"a worker process died (out of memory?); {KEPT}") from None
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


def _start_worker(ticks, stop) -> None:
    """Count images for the parent, and end at once when it says so or is gone."""
    global _ticks
    _ticks = ticks
    keep_freed_memory()
    parent = parent_process()

    def watch() -> None:
        while parent.is_alive() and not stop.is_set():
            parent.join(timeout=0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(task: ShardTask, shard: Path, lease: Lease) -> dict:
    def tick() -> None:
        with _ticks.get_lock():
            _ticks.value += 1

    return run_shard(task, shard, lease, tick)


_CHATTY = ("distributed", "distributed.client", "tornado", "tornado.application", "asyncio", "concurrent.futures")
"""Loggers that report every lost connection and cancelled task."""


@contextmanager
def cluster(address: str) -> Iterator[Workers]:
    """The workers of a dask.distributed scheduler, which see the same folders; the scheduler replaces those that die."""
    try:
        import dask
        from distributed import Client, KilledWorker
        from distributed.comm import get_address_host_port
    except ImportError:
        raise DataError("--scheduler needs dask.distributed: pip install 'cocolvis-ess[cluster]'") from None
    large = {"distributed.admin.large-graph-warning-threshold": "1 TiB"}  # a task holds its annotations: some MB
    with _silenced(*_CHATTY), dask.config.set(large):
        try:
            get_address_host_port(address)
            client = _within(2 * _PATIENCE, partial(Client, address, timeout=_PATIENCE, set_as_default=False))
        except (OSError, ValueError, OverflowError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            advice = "start one with `dask scheduler`"
            raise DataError(f"--scheduler {address}: no scheduler answers ({reason}); {advice}") from None
        with client:
            executor = client.get_executor(pure=False)
            try:
                yield _cluster_workers(client, executor, address)
            except (KilledWorker, CancelledError, OSError) as error:
                reason = str(error) or "the scheduler is gone"
                raise DataError(f"--scheduler {address}: lost its workers or its connection ({reason}); {KEPT}") from None
            finally:
                executor.shutdown(wait=False)


def _within(seconds: float, call: Callable) -> Any:
    """What ``call`` returns; a TimeoutError when it takes longer: a client waits for ever where another service listens."""
    result = Future()

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


def _cluster_workers(client, executor: Executor, address: str) -> Workers:
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        raise DataError(f"--scheduler {address}: has no workers; start some with `dask worker {address}`") from None
    check = partial(_check_workers, client, [time.monotonic()])
    return Workers(partial(executor.submit, run_shard), sum(client.nthreads().values()), check=check)


def _check_workers(client, seen: list[float]) -> None:
    """A TimeoutError once there have been no workers for long: the scheduler would wait for new ones for ever."""
    if client.nthreads():
        seen[0] = time.monotonic()
    elif time.monotonic() - seen[0] > _PATIENCE:
        raise TimeoutError(f"no worker for {_PATIENCE} s")


@contextmanager
def _silenced(*names: str) -> Iterator[None]:
    """Keep what these loggers report of lost connections from burying the one line that says what to do."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
