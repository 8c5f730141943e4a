"""Everything that the command lines show: tables and JSON on stdout, messages and progress on stderr.

All text passes through the functions here, which escape control characters: names, paths and reasons come from files and could
otherwise control the terminal.
"""

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from errno import EPIPE
from typing import Any, Protocol

import click

from cocolvis.errors import DataError
from cocolvis.text import escaped, human_size

_PLAIN_INTERVAL = 5.0
"""Seconds between two progress lines if stderr is not a terminal."""

_LARGE = 2**26
"""Bytes from which reading a file is announced at once, because parsing it reports no progress."""

BYTES = "bytes"
"""The unit of progress that is shown as a file size."""


class Size(int):
    """A number of bytes in a table."""

    def __str__(self) -> str:
        return human_size(self)


def say(line: object = "", *, err: bool = False) -> None:
    """Print one line to stdout or stderr, with control characters and line ends escaped."""
    _echo(escaped(str(line)), err=err)


def say_fields(*fields: object) -> None:
    """Print one line of fields separated by tabs, for programs such as cut; each field is escaped as in :func:`say`."""
    _echo("\t".join(escaped(str(field)) for field in fields))


def print_json(content: Any) -> None:
    """Print one JSON object to stdout, with control characters as JSON escapes."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if _fitting(text) != text:
        text = json.dumps(content, indent=1)
    if not text.replace("\n", "").isprintable():
        text = "".join(c if c == "\n" or c.isprintable() else _json_escape(c) for c in text)
    _echo(text)


def _echo(text: str, *, err: bool = False) -> None:
    """Print to stdout or stderr; raises DataError if stdout cannot be written.

    The progress of work is not worth its end, so a stderr that cannot be written is ignored.
    """
    if err:
        with suppress(OSError):
            click.echo(text, err=True)
    else:
        with printing():
            click.echo(_fitting(text))


@contextmanager
def printing() -> Iterator[None]:
    """Turn the OSError of a stdout that cannot be written into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno == EPIPE:  # the reader has seen enough, which click handles
            raise
        with suppress(OSError):
            sys.stdout.close()  # otherwise Python would try again when it exits
        raise DataError(f"stdout: cannot be written: {error.strerror or error}") from None


class _Log(logging.Handler):
    """Prints each message as one line to stderr, with control characters escaped; the bar of :func:`progress` stays below."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(escaped(self.format(record)), file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Print the log to stderr: the warnings of all packages, and of ``ess`` also what the level of its logger lets through."""
    handler = _Log()
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name == "ess")
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _fitting(text: str) -> str:
    """The text with escapes for the characters that the encoding of stdout lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text if encoding.lower() == "utf-8" else text.encode(encoding, "backslashreplace").decode(encoding)


def _json_escape(character: str) -> str:
    return re.sub("....", r"\\u\g<0>", character.encode("utf-16-be", "surrogatepass").hex())


def shell(*words: object) -> str:
    """A command that the user may copy: its words, quoted for a shell where necessary, in backquotes."""
    return f"`{shlex.join(map(str, words))}`"


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, err: bool = False) -> None:
    """Print a table to stdout or stderr: numbers right-aligned with thousands separators, everything else left-aligned."""

    def text(cell: Any) -> str:
        if cell is None:
            return ""
        if isinstance(cell, int) and not isinstance(cell, Size):
            return f"{cell:,}"
        return f"{cell:,.2f}" if isinstance(cell, float) else escaped(str(cell))

    columns = list(zip(header, *rows, strict=True))
    right = [any(isinstance(cell, int | float) for cell in column[1:]) for column in columns]
    widths = [max(len(text(cell)) for cell in column) for column in columns]
    for row in (header, *rows):
        cells = zip(row, widths, right, strict=True)
        say("  ".join(f"{text(c):>{w}}" if r else f"{text(c):<{w}}" for c, w, r in cells).rstrip(), err=err)


class Progress(Protocol):
    """The progress display of a command. Call it repeatedly with (done, total), in the command's unit."""

    def __call__(self, done: int, total: int) -> None: ...

    def phase(self, what: str, done: int, total: int) -> None:
        """Report other work, such as reading a file: its description, the bytes done and the bytes in total (0 if unknown)."""

    def line(self, text: str) -> None:
        """Print a line for the user."""


@contextmanager
def progress(label: str, unit: str = "images") -> Iterator[Progress]:
    """Show progress, rate and time left on stderr: as a bar in a terminal, otherwise as a line every few seconds.

    The total time counts from the start. Rate and time left count from the first image (or other unit), so that planning, and
    images that an earlier run finished, do not distort them.
    """
    with _bar(label) if sys.stderr.isatty() else _lines() as shown:
        yield (show := _Shown(label, unit, *shown))
        show.end()


_Draw = Callable[[str, str, int, int], None]
"""Called with (description of the work, state in words, done, total)."""


@contextmanager
def _bar(label: str) -> Iterator[tuple[_Draw, Callable[[str], None]]]:
    from rich import progress as rich
    from rich.console import Console
    from rich.text import Text

    words = [rich.TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[state]")]
    columns = (words[0], rich.BarColumn(), words[1], rich.TimeElapsedColumn())
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task, drawn = bar.add_task(label, total=None, state=""), [label]

        def draw(what: str, state: str, done: int, total: int) -> None:
            begins, drawn[0] = drawn[0] != what, what
            bar.update(task, description=what, completed=done, total=total or None, state=state, refresh=begins)

        yield draw, lambda text: bar.console.print(Text(escaped(text)), soft_wrap=True)


@contextmanager
def _lines() -> Iterator[tuple[_Draw, Callable[[str], None]]]:
    since, announced = time.monotonic(), ""

    def draw(what: str, state: str, done: int, total: int) -> None:
        nonlocal since, announced
        now, begins = time.monotonic(), done == 0 and total >= _LARGE and announced != what
        if begins or now - since >= _PLAIN_INTERVAL:
            since, announced = now, what if begins else announced
            say(f"{what}: {state}" if state else what, err=True)

    yield draw, lambda text: say(text, err=True)


class _Shown:
    """The progress of one command; see :class:`Progress`."""

    def __init__(self, label: str, unit: str, draw: _Draw, line: Callable[[str], None]):
        self._label, self._unit, self._draw, self.line = label, unit, draw, line
        self._begun = time.monotonic()
        self._work, self._phase, self._what = _Meter(unit), _Meter(BYTES), ""
        self._last: tuple[int, int] | None = None

    def __call__(self, done: int, total: int) -> None:
        self._last, self._what = (done, total), ""
        self._draw(self._label, self._work.state(done, total), done, total)

    def phase(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self._what, self._phase = what, _Meter(BYTES)
        state = self._phase.state(done, total) if done else human_size(total) if total else ""
        self._draw(escaped(f"{self._label}: {what}"), state, done, total)

    def end(self) -> None:
        """Print the total of the work done and the time that it took."""
        if self._last is not None:
            taken = _duration(time.monotonic() - self._begun, 1)
            self.line(f"{self._label}: {_count(*self._last, self._unit)} in {taken}")


class _Meter:
    """The rate of progress, counted from the first image that this run finishes, or for bytes, from the first report."""

    def __init__(self, unit: str):
        self._unit = unit
        self._before: int | None = None
        self._since: float | None = None

    def rate(self, done: int) -> float | None:
        """The amount done per second; None as long as it is unknown."""
        now = time.monotonic()
        if self._before is None:
            self._before, self._since = done, now if self._unit == BYTES else None
        elif self._since is None and done > self._before:
            self._before, self._since = done, now
        elif self._since is not None and done > self._before:
            return (done - self._before) / max(now - self._since, 1e-9)
        return None

    def state(self, done: int, total: int) -> str:
        """The amount done, and if already known, the rate and the time left."""
        rate, count = self.rate(done), _count(done, total, self._unit)
        if rate is None:
            return count
        speed = human_size(rate) if self._unit == BYTES else f"{rate:.{0 if rate >= 10 else 1}f} {self._unit}"
        return f"{count}, {speed}/s, {_duration((total - done) / rate)} left"


def _count(done: int, total: int, unit: str) -> str:
    return f"{human_size(done)} of {human_size(total)}" if unit == BYTES else f"{done}/{total} {unit}"


def _duration(seconds: float, digits: int = 0) -> str:
    """A duration such as "40 s", "3 min 5 s", "2 h 10 min"; ``digits`` is the number of decimals of a time below a minute."""
    if seconds < 59.5:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
