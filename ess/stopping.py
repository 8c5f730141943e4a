"""Requests to end a training: Ctrl-C and signals are noted when they come, and answered where nothing is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What batch systems, service managers, launchers and a closed terminal send, often more than once."""


class Stop:
    """Whether the training was asked to end: this process, or any of the team."""

    def __init__(self, team: Accelerator):
        self.requested = False
        self._team = team

    def agreed(self) -> bool:
        """Whether any process of the team was asked; all of them must call this equally often, and get the same answer."""
        if self._team.num_processes == 1:
            return self.requested
        return bool(self._team.reduce(torch.tensor(float(self.requested), device=self._team.device), "sum"))

    def check(self) -> None:
        """As :meth:`agreed`, and then a KeyboardInterrupt."""
        if self.agreed():
            raise KeyboardInterrupt


@contextmanager
def stop_requests(team: Accelerator) -> Iterator[Stop]:
    """What Ctrl-C and the signals of ``ENDING`` set from now on, as often as they come. A second Ctrl-C interrupts at once.

    A SIGHUP that is ignored, as nohup has it, stays so. Outside the main thread signals are left alone.
    """
    stop, interrupts = Stop(team), 0

    def request(number, frame) -> None:
        nonlocal interrupts
        stop.requested = True
        interrupts += number == signal.SIGINT
        if interrupts > 1:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    noted = [signal.SIGINT, signal.SIGTERM, *(n for n in ENDING[1:] if signal.getsignal(n) is not signal.SIG_IGN)]
    before = {number: signal.signal(number, request) for number in noted}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def requests_held() -> Iterator[None]:
    """Let requests wait while processes are started, which inherit that: until :func:`ignore_requests`, none can end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *ENDING))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_requests() -> None:
    """For a process that works for the training process: when to end is the latter's to decide."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, *ENDING))
