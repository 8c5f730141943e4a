"""The identity of a process (host, boot, pid namespace, pid, start time), so that others can tell whether it still runs."""

import os
import socket
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

_SECONDS = 10
"""Timeout of the system commands that identify a process."""

Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """A process: ``system`` is the boot and pid namespace in which ``pid`` and ``started`` are valid, None if unknown."""

    host: Annotated[str, Meta(max_length=1000)]
    system: Text | None
    pid: Annotated[int, Meta(ge=1, lt=2**31)]
    started: Text | None

    @classmethod
    def current(cls) -> "Owner":
        """This process."""
        return cls(host=socket.gethostname(), system=_system(), pid=os.getpid(), started=_started(os.getpid()))

    def is_alive(self) -> bool | None:
        """Whether the process still exists, running or stopped; None if this machine cannot tell."""
        here = Owner.current()
        if here.system is None or (self.host, self.system) != (here.host, here.system):
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # it exists and belongs to another user
        started = _started(self.pid)
        return None if None in (started, self.started) else started == self.started


@lru_cache(maxsize=1)
def _system() -> str | None:
    """Boot id and pid namespace; None if unknown. Containers share the boot with their host but have their own pids."""
    if sys.platform != "linux":
        return _output("sysctl", "-n", "kern.bootsessionuuid")
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except (OSError, ValueError):
        return None


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the boot or as printed by ``ps``; None if unknown."""
    if sys.platform != "linux":
        return _output("ps", "-o", "lstart=", "-p", str(pid))
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "has ended" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return None


def _output(*command: str) -> str | None:
    """The output of a command; None if it fails or prints nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None
