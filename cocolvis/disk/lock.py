"""One build at a time in a folder: who is at work there, and what somebody may no longer do whose work was taken over.

Each process at work has a file of its own in the folder, ``.build-TOKEN.lock``, of a name that never comes again. To begin, it
announces itself with a *claim*, and then looks who else is there:

- a build that is held: it withdraws;
- a claim with a lower token: it withdraws; with a higher one: it waits until that has withdrawn, or is held;
- nobody: its own claim becomes held.

Of two that begin at the same time each sees the other, or one is held before the other looks: exactly one goes on. A file whose
process has ended is removed, and with it the right of that process to write: it looks for its file before anything takes its
name. Nothing is ever put in the place of another file, so that whoever removes one cannot hit another that has just come.

On one machine the system says whether a process lives (owners.py). Of other machines only signs of life tell: each process
counts upward in its file every ``BEAT`` seconds, and another one takes over after ``PATIENCE`` seconds, on its own clock, in
which it saw nothing change. An owner that was only stopped finds its file gone. What it had already written aside is swept away
before its successor looks at anything, so that even a rename that was about to happen fails.
"""

import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
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

BEAT = 10.0
"""Seconds between two signs of life."""

PATIENCE = 120.0
"""Seconds without one after which a process on another machine is taken to be dead."""

_LOOK = 0.5
"""Seconds between two looks at who else is there."""

_LARGEST = 2**14
"""Bytes of a lock file that are read."""

_NAME = re.compile(r"\.build-[0-9a-f]{32}\.lock")
_HALF = re.compile(r"\.(.*)\.[0-9a-f]{12}\.tmp")
_PROBE = "build-look"

Announce = Callable[[str], None]
"""Called with a line for the user."""

_released: set[str] = set()
"""Tokens of this process that it gave up, in case their files cannot be removed: it may build again, and lives."""

_Number = Annotated[int, Meta(ge=1)]


class Lost(DataError):
    """The folder was taken over by somebody else: nothing more may be written."""


@dataclass(frozen=True)
class Lease:
    """The right to write into a folder; pickles, so that any process may ask whether it still holds."""

    path: Path
    token: str

    def check(self) -> None:
        """A Lost unless the folder is still ours, a DataError where that cannot be told."""
        content = _read(self.path)
        if content is None or self.token.encode() not in content:
            found = "another one took it over when it was silent, or the lock file was removed"
            raise Lost(f"{self.path.parent}: this build has lost the folder: {found}; it stops and writes nothing more")

    def lost(self) -> bool:
        """Whether :meth:`check` would raise."""
        try:
            self.check()
        except DataError:
            return True
        return False


class _Entry(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a lock file; ``part`` is (i, n) of `--shard i/n`."""

    token: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    what: Annotated[str, Meta(pattern=r"^[a-z0-9 ]{1,100}\Z")]
    part: tuple[_Number, _Number] | None
    owner: Owner

    def excludes(self, other: "_Entry | None") -> bool:
        """Whether both may not be at work at the same time; parts may, that have no shard in common."""
        mine, theirs = self.part, other.part if other else None
        return mine is None or theirs is None or mine[1] != theirs[1] or mine[0] == theirs[0]

    def lives(self) -> bool | None:
        """Whether the owner is still at work, as :meth:`Owner.lives`."""
        return False if self.token in _released else self.owner.lives()


@contextmanager
def held(out: Path, part: tuple[int, int] | None, announce: Announce, what: str = "a build") -> Iterator[Lease]:
    """Be the one who builds in a folder, which is made where it is absent, and removed again where it stays empty.

    Parts of the same number of parts go together; all else excludes each other. A DataError that names who is at work. Waits
    for a silent owner on another machine, and says so.
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
    """Whether a path has the name of a lock file, or of what may be half-written of one."""
    half = _HALF.fullmatch(path.name)
    return is_of_lock(half[1] if half else path.name)


def is_of_lock(name: str) -> bool:
    """Whether a file of this name is made for a lock: what is left half-written of it may be swept away at any time."""
    return name == _PROBE or _NAME.fullmatch(name) is not None


class _Pulse:
    """A lock file, and the thread that counts upward in it; the thread ends with the process, and survives a failing disk."""

    def __init__(self, path: Path, head: bytes):
        self._path, self._head = path, head
        self._state, self._count = b"claim", 0
        self._one, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Announce a claim; a DataError where nothing can be written."""
        for _ in range(10):  # one that gives up may remove the empty folder in this moment
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
        if refused and not os.path.lexists(self._path):
            raise DataError(f"{self._path.parent}: cannot be written: {reason(refused)}") from None
        self._thread.start()

    def hold(self) -> None:
        """Say that the claim is held now; a DataError where that cannot be written."""
        self._state = b"held "
        try:
            self._beat()
        except FileNotFoundError:
            pass  # the next check says so
        except OSError as error:
            raise DataError(f"{self._path.parent}: cannot be written: {reason(error)}") from None

    def end(self) -> None:
        """No further sign of life."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=_LOOK)  # not for ever: a network file system may hang

    def _tail(self) -> bytes:
        return self._state + b" %012d\n" % self._count

    def _run(self) -> None:
        while not self._over.wait(BEAT):
            with suppress(OSError):  # the next sign may get through
                self._beat()

    def _beat(self) -> None:
        with self._one, self._path.open("r+b", buffering=0) as file:
            self._count += 1
            file.seek(len(self._head))
            file.write(self._tail())
            os.fsync(file)


@dataclass
class _Rivals:
    """Who else is in a folder, for the one who wants to work there."""

    out: Path
    entry: _Entry
    lease: Lease
    announce: Announce
    _seen: dict[Path, tuple[bytes, float]] = field(default_factory=dict)
    _said: set[Path] = field(default_factory=set)

    def settle(self) -> None:
        """Return when nobody is in the way any more; a DataError when somebody is who lives."""
        while any([self._in_the_way(path) for path in self._others()]):
            time.sleep(min(_LOOK, PATIENCE / 10))
            self.lease.check()

    def _others(self) -> list[Path]:
        """The lock files of others. A change of our own makes a network file system read the folder anew."""
        probe = self.out / f".{_PROBE}.{uuid.uuid4().hex[:12]}.tmp"
        with suppress(OSError):
            probe.touch()
            probe.unlink()
        try:
            return [path for path in self.out.iterdir() if _NAME.fullmatch(path.name) and path != self.lease.path]
        except OSError as error:
            raise DataError(f"{self.out}: cannot be read: {reason(error)}") from None

    def _in_the_way(self, path: Path) -> bool:
        """Whether to wait for the owner of a lock file; removes that of a dead one."""
        now = time.monotonic()
        content = _read(path)
        if content is None:
            return False
        other, held = _parse(content)
        if other is not None and not self.entry.excludes(other):
            return False
        lives = other.lives() if other else None
        if lives is None:
            before, since = self._seen.setdefault(path, (content, now))
            if content != before:
                self._seen[path] = content, now
                lives = True
            elif now - since >= PATIENCE:
                lives = False
        if lives is None:
            self._say(path, f"{_words(other)} may be at work in {self.out}; waits up to {PATIENCE:.0f} s for a sign of life")
            return True
        if not lives:
            if path in self._said:
                self.announce(f"heard nothing of {_words(other)} for {PATIENCE:.0f} s and takes over")
            _remove(path)
            return False
        if held or other is None or other.token < self.entry.token:
            raise DataError(f"{self.out}: {_words(other)} is at work there; wait for its end, or choose another folder")
        return True  # it sees our claim and withdraws, or is held soon

    def _say(self, path: Path, line: str) -> None:
        if path not in self._said:
            self._said.add(path)
            self.announce(line)


def _words(entry: _Entry | None) -> str:
    """Who it is."""
    return f"{entry.what} (process {entry.owner.pid} on {entry.owner.host})" if entry else "somebody whose lock file is damaged"


def _parse(content: bytes) -> tuple[_Entry | None, bool]:
    """What a lock file says, and whether its claim is held; None where it is damaged."""
    head, _, tail = content.partition(b"\n")
    try:
        return msgspec.json.decode(head, type=_Entry), not tail.startswith(b"claim")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None, True


def _read(path: Path) -> bytes | None:
    """The content of a lock file, None when it is gone; asks the server anew where it lies on a network file system."""
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
        raise DataError(f"{path}: cannot be read: {reason(error)}; remove it if no build is running") from None


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: is a dead build's and cannot be removed: {reason(error)}") from None
