"""Requests to stop a training: Ctrl-C and signals are noted when they arrive, and obeyed at points where no work is lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

from cocolvis.signals import signals_held

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals of batch systems, service managers, launchers and closed terminals, which often come more than once."""


class Stop:
    """Whether this process, or any process of the team, was asked to end the training."""

    def __init__(self, team: Accelerator) -> None:
        self.requested = False
        self._team = team

    def agreed(self) -> bool:
        """Whether any process of the team was asked; all of them get the same answer and must call this equally often."""
        if self._team.num_processes == 1:
            return self.requested
        return bool(self._team.reduce(torch.tensor(float(self.requested), device=self._team.device), "sum"))

    def check(self) -> None:
        """Raise KeyboardInterrupt if :meth:`agreed`; the same rule for calls applies."""
        if self.agreed():
            raise KeyboardInterrupt


@contextmanager
def stop_requests(team: Accelerator) -> Iterator[Stop]:
    """Note Ctrl-C and the signals of ``ENDING`` in the yielded Stop. A second Ctrl-C raises KeyboardInterrupt at once.

    A SIGHUP that is ignored, as under nohup, stays ignored. Outside the main thread no handlers are installed.
    """
    stop, interrupts = Stop(team), 0

    def request(number: int, frame: FrameType | None) -> None:
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


def requests_held() -> AbstractContextManager[None]:
    """Block requests while child processes start: they inherit the block, so none ends before :func:`ignore_requests`."""
    return signals_held(signal.SIGINT, *ENDING)


def ignore_requests() -> None:
    """Ignore requests in a process that works for the training process, which alone decides when it ends."""
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, *ENDING))
