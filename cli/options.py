"""What both command lines share: one-line errors and exit codes, progress on stderr, tables and JSON on stdout."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cocolvis.errors import DataError

_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}
"""What opencv-python needs of the system, and the Debian package that brings it."""

_PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines when stderr is no terminal."""

_GOING_ON = ("resume", "skip_existing")
"""Options with which an interrupted command goes on."""

Progress = Callable[[int, int], None]
"""Called with (done, total) now and then."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines instead of tables.")


class Group(click.Group):
    """A command group whose faults are one line on stderr: exit 1 for a DataError, 2 for wrong usage, 130 for Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what users can mend into a message."""
        try:
            return super().invoke(ctx)
        except DataError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            known = _option_names(self.commands.get(ctx.invoked_subcommand or ""))
            advice = next((f"; go on with --{name.replace('_', '-')}" for name in _GOING_ON if name in known), "")
            click.echo(f"interrupted; finished work is kept{advice}", err=True)
            raise click.exceptions.Exit(130) from None
        except ImportError as error:
            package = next((package for library, package in _LIBRARIES.items() if library in str(error)), None)
            if package is None:
                raise
            reason = f"a system library is missing ({error}); on Debian and Ubuntu: apt-get install {package}"
            raise click.ClickException(reason) from None


def _option_names(command: click.Command | None) -> set[str | None]:
    """Of a command, or of those of a group."""
    if command is None:
        return set()
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return {option.name for option in command.params}.union(*map(_option_names, below))


def path_argument(name: str) -> Callable:
    """A required positional path; commands see a Path."""
    return click.argument(name, type=click.Path(path_type=Path), metavar=name.upper())


def path_option(*names: str, **settings: Any) -> Callable:
    """An option that holds a path; commands see a Path."""
    return click.option(*names, type=click.Path(path_type=Path), **settings)


def source_options(required: bool = True) -> Callable:
    """--coco and --lvis; commands see a tuple of paths each."""
    given = {"required": required, "multiple": True}
    coco = "COCO folder, or its zip files: train2017, val2017, annotations/stuff_{train,val}2017.json. May be repeated."
    lvis = "LVIS folder, or its zip files: lvis_v1_{train,val}.json. May be repeated."

    def decorate(command: Callable) -> Callable:
        return path_option("--coco", help=coco, **given)(path_option("--lvis", help=lvis, **given)(command))

    return decorate


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def print_json(content: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(content, indent=1, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns on stdout: numbers to the right with thousands marked, everything else to the left."""

    def text(cell: Any) -> str:
        if cell is None:
            return ""
        return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.2f}" if isinstance(cell, float) else str(cell)

    columns = list(zip(header, *rows, strict=True))
    right = [any(isinstance(cell, int | float) for cell in column[1:]) for column in columns]
    widths = [max(len(text(cell)) for cell in column) for column in columns]
    for row in (header, *rows):
        cells = zip(row, widths, right, strict=True)
        click.echo("  ".join(f"{text(c):>{w}}" if r else f"{text(c):<{w}}" for c, w, r in cells).rstrip())


@contextmanager
def progress(label: str, unit: str = "images") -> Iterator[Progress]:
    """Yield a callable (done, total) that shows progress, rate and time left on stderr: a bar in a terminal, else lines."""
    with _bar(label, unit) if sys.stderr.isatty() else _lines(label, unit) as show:
        yield show


@contextmanager
def _bar(label: str, unit: str) -> Iterator[Progress]:
    from rich import progress as rich
    from rich.console import Console

    rate = rich.TextColumn("{task.fields[rate]}")
    columns = (rich.TextColumn(label), rich.BarColumn(), rich.MofNCompleteColumn(), rate, rich.TimeRemainingColumn())
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None, rate="")
        meter = _Meter()

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, rate=f"{meter.rate(done):.0f} {unit}/s")

        yield show


@contextmanager
def _lines(label: str, unit: str) -> Iterator[Progress]:
    meter, last = _Meter(), [time.monotonic(), 0, 0]

    def show(done: int, total: int) -> None:
        rate, now = meter.rate(done), time.monotonic()
        last[1:] = done, total
        if now - last[0] >= _PLAIN_INTERVAL:
            last[0] = now
            left = f", {(total - done) / rate:.0f} s left" if rate else ""
            click.echo(f"{label}: {done}/{total} {unit}, {rate:.0f} {unit}/s{left}", err=True)

    yield show
    click.echo(f"{label}: {last[1]}/{last[2]} {unit} in {meter.seconds():.1f} s", err=True)


class _Meter:
    """Rate since the first call: work that an earlier run finished does not count."""

    def __init__(self):
        self._start = time.monotonic()
        self._first: int | None = None

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def rate(self, done: int) -> float:
        if self._first is None:
            self._first, self._start = done, time.monotonic()
        return (done - self._first) / max(self.seconds(), 1e-9)
