"""The lock of a folder: it allows one build at a time, across machines, and tells a process when it has lost the lock.

Every running process owns a file ``.build-TOKEN.lock`` in the folder, whose name is never used again. To start, it writes that
file with the state *claim*, and then looks at the files of others:

- another build holds the folder: it withdraws;
- another claim has a lower token: it withdraws; a higher one: it waits until that claim is withdrawn or held;
- there is no other file: its own claim becomes *held*.

When two start at the same time, either each sees the other or one is held before the other looks, so exactly one continues.
The file of a process that has ended is removed, and with it that process's right to write: every process checks that its file
exists before it gives an output file its final name. No file ever replaces another, so a removal cannot hit a newer lock.

On one machine the system says whether a process is alive (owners.py). Across machines only signs of life do: each process
increments a counter in its file every ``HEARTBEAT`` seconds, and another one takes the folder over after it has seen no change
for ``TAKEOVER_AFTER`` seconds of its own clock. An owner that was merely suspended then finds its file gone. Its temporary
files are removed before the successor decides which files stay, so that even a rename that was about to happen fails.
"""

import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from errno import ESTALE
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cocolvis.disk.files import reason, write_aside
from cocolvis.disk.owners import Owner
from cocolvis.errors import DataError
from cocolvis.progress import Announce

HEARTBEAT = 10.0
"""Seconds between two updates of the counter."""

TAKEOVER_AFTER = 120.0
"""Seconds without a sign of life after which a process on another machine is considered dead."""

_LOOK = 0.5
"""Seconds between two checks for other processes."""

_LARGEST = 2**14
"""The most bytes of a lock file that are read."""

_NAME = re.compile(r"\.build-[0-9a-f]{32}\.lock")
_HALF = re.compile(r"\.(.*)\.[0-9a-f]{12}\.tmp")
_PROBE = "build-look"

_released: set[str] = set()
"""Tokens that this process, which is still alive, has released; files with these that could not be removed are ignored."""

_Number = Annotated[int, Meta(ge=1)]


class LockLost(DataError):
    """The lock was lost, for example because another process took the folder over: nothing more may be written."""


@dataclass(frozen=True)
class Lease:
    """The right to write into a folder; can be pickled, so that any worker can check whether it is still valid."""

    path: Path
    token: str

    def check(self) -> None:
        """Raise LockLost if the lock was lost, or if its folder does not exist here, DataError if its file cannot be read."""
        content = _read(self.path)
        if content is not None and self.token.encode() in content:
            return
        folder = self.path.parent
        if not os.path.isdir(folder):
            needs = "all workers need it at the same path, until the end"
            raise LockLost(f"{folder}: does not exist on {socket.gethostname()}; {needs}")
        cause = "another process took it over after a silence, or the lock file was removed"
        raise LockLost(f"{folder}: this process has lost the folder: {cause}; it stops and writes nothing more")

    def lost(self) -> bool:
        """Whether :meth:`check` would raise."""
        try:
            self.check()
        except DataError:
            return True
        return False


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a lock file; ``part`` is (i, n) for `--shard i/n`."""

    token: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    what: Annotated[str, Meta(pattern=r"^[a-z0-9 ]{1,100}\Z")]
    part: tuple[_Number, _Number] | None
    owner: Owner

    def excludes(self, other: "_Entry | None") -> bool:
        """Whether the two may not run at the same time; different parts of the same number of parts may."""
        mine, theirs = self.part, other.part if other else None
        return mine is None or theirs is None or mine[1] != theirs[1] or mine[0] == theirs[0]

    def is_alive(self) -> bool | None:
        """Whether the owner still runs; see :meth:`Owner.is_alive`."""
        return False if self.token in _released else self.owner.is_alive()


@contextmanager
def held(out: Path, part: tuple[int, int] | None, announce: Announce, what: str = "a build") -> Iterator[Lease]:
    """Hold the lock of the folder ``out`` inside this context; ``what`` names the process to others.

    The folder is created if necessary, and removed afterwards if it is empty. Different parts (i, n) of the same n may run
    together; everything else is exclusive. If the owner of the lock is on another machine and shows no sign of life, this
    waits, and says so through ``announce``. Raises DataError if another process holds the folder.
    """
    what = f"part {part[0]} of {part[1]}" if part else what
    entry = _Entry(token=uuid.uuid4().hex, what=what, part=part, owner=Owner.current())
    lease = Lease(out / f".build-{entry.token}.lock", entry.token)
    made = [folder for folder in (out, *out.parents) if not os.path.lexists(folder)]
    pulse = _Pulse(lease.path, msgspec.json.encode(entry) + b"\n")
    try:
        pulse.start()
        _Rivals(out, entry, lease, announce).settle()
        pulse.hold()
        lease.check()
        yield lease
    finally:
        pulse.end()
        _released.add(entry.token)
        with suppress(OSError):
            lease.path.unlink()
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def is_lock(path: Path) -> bool:
    """Whether a path has the name of a lock file or of a temporary file that belongs to one."""
    half = _HALF.fullmatch(path.name)
    return is_of_lock(half[1] if half else path.name)


def is_of_lock(name: str) -> bool:
    """Whether a file of this name belongs to a lock, so that its temporary files may be removed at any time."""
    return name == _PROBE or _NAME.fullmatch(name) is not None


class _Pulse:
    """A lock file and the daemon thread that increments the counter in it, which tolerates disk errors."""

    def __init__(self, path: Path, head: bytes):
        self._path, self._head = path, head
        self._state, self._count = b"claim", 0
        self._one, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Write the claim; raises DataError if that fails."""
        refused: BaseException | None = None
        for _ in range(10):  # a process that withdraws may be removing the empty folder
            refused = None
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with write_aside(self._path) as aside:
                    aside.write_bytes(self._head + self._tail())
            except OSError as error:
                refused = error
            except DataError as error:
                refused = error.__cause__
            if not isinstance(refused, FileNotFoundError):
                break
        if isinstance(refused, OSError) and not os.path.lexists(self._path):
            raise DataError(f"{self._path.parent}: cannot be written: {reason(refused)}") from None
        self._thread.start()

    def hold(self) -> None:
        """Mark the claim as held; raises DataError if that cannot be written."""
        self._state = b"held "
        try:
            self._beat()
        except FileNotFoundError:
            pass  # the lock was removed: the next check reports that
        except OSError as error:
            raise DataError(f"{self._path.parent}: cannot be written: {reason(error)}") from None

    def end(self) -> None:
        """Stop updating the counter."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=_LOOK)  # not forever: a network file system may hang

    def _tail(self) -> bytes:
        return self._state + b" %012d\n" % self._count

    def _run(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with suppress(OSError):  # the next sign of life may succeed
                self._beat()

    def _beat(self) -> None:
        with self._one, self._path.open("r+b", buffering=0) as file:
            self._count += 1
            file.seek(len(self._head))
            file.write(self._tail())
            os.fsync(file)


@dataclass
class _Rivals:
    """The other processes in a folder, seen from one that wants to hold it."""

    out: Path
    entry: _Entry
    lease: Lease
    announce: Announce
    _seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)
    _said: set[Path] = field(default_factory=set)

    def settle(self) -> None:
        """Wait until no other process is in the way; raises DataError if a running one holds the folder."""
        while any([self._in_the_way(path) for path in self._others()]):
            time.sleep(min(_LOOK, TAKEOVER_AFTER / 10))
            self.lease.check()

    def _others(self) -> list[Path]:
        """The lock files of others; the folder is changed first, so that a network file system lists it again."""
        probe = self.out / f".{_PROBE}.{uuid.uuid4().hex[:12]}.tmp"
        with suppress(OSError):
            probe.touch()
            probe.unlink()
        try:
            return [path for path in self.out.iterdir() if _NAME.fullmatch(path.name) and path != self.lease.path]
        except OSError as error:
            raise DataError(f"{self.out}: cannot be read: {reason(error)}") from None

    def _in_the_way(self, path: Path) -> bool:
        """Whether to wait for the owner of a lock file; removes the file of a dead owner."""
        now = time.monotonic()
        content = _read(path)
        if content is None:
            return False
        other, held = _parse(content)
        if other is not None and not self.entry.excludes(other):
            return False
        alive = other.is_alive() if other else None
        if alive is None:
            before, since = self._seen.setdefault(path, (content, now))
            if content != before:
                self._seen[path] = content, now
                alive = True
            elif now - since >= TAKEOVER_AFTER:
                alive = False
        if alive is None:
            line = f"{_words(other)} may be running in {self.out}; waiting up to {TAKEOVER_AFTER:.0f} s for a sign of life"
            self._say(path, line)
            return True
        if not alive:
            if path in self._said:
                self.announce(f"no sign of life from {_words(other)} for {TAKEOVER_AFTER:.0f} s; taking over")
            _remove(path)
            return False
        if held or other is None or other.token < self.entry.token:
            raise DataError(f"{self.out}: {_words(other)} is running there; wait until it ends, or choose another folder")
        return True  # it will see our claim and withdraw, or become held

    def _say(self, path: Path, line: str) -> None:
        if path not in self._said:
            self._said.add(path)
            self.announce(line)


def _words(entry: _Entry | None) -> str:
    """How messages name a process."""
    return f"{entry.what} (process {entry.owner.pid} on {entry.owner.host})" if entry else "a process with a damaged lock file"


def _parse(content: bytes) -> tuple[_Entry | None, bool]:
    """The entry of a lock file, None if it is damaged, and whether the claim is held."""
    head, _, tail = content.partition(b"\n")
    try:
        return msgspec.json.decode(head, type=_Entry), not tail.startswith(b"claim")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True


def _read(path: Path) -> bytes | None:
    """The content of a lock file, None if it is gone; opening it makes a network file system ask its server again."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(file, _LARGEST)
        finally:
            os.close(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno == ESTALE:
            return None
        raise DataError(f"{path}: cannot be read: {reason(error)}; remove it if no process works there") from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: belongs to a process that has ended, and cannot be removed: {reason(error)}") from None
