"""What both command lines share: one-line errors and exit codes, what Ctrl-C leaves behind, and common options."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from cli import check_system
from cli.display import say
from cocolvis.errors import DataError
from cocolvis.text import escaped

_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}
"""What opencv-python needs of the system, and the Debian package that brings it."""

UNCHANGED = "nothing was changed"
"""What is true when a command that only looks is interrupted."""

Interrupted = str | Callable[[dict[str, Any]], str]
"""What is true once a command was interrupted, and how to go on: words, or what makes them of the command's parameters."""

_INTERRUPTED = "cli.interrupted"
"""Where the context keeps the words of the command that runs."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object for machines instead of tables.")


class Command(click.Command):
    """A command that says what Ctrl-C leaves behind."""

    def __init__(self, *arguments: Any, interrupted: Interrupted, **settings: Any):
        super().__init__(*arguments, **settings)
        self.interrupted = interrupted

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; its group says the words when it is interrupted."""
        ctx.meta[_INTERRUPTED] = self.interrupted, ctx.params
        return super().invoke(ctx)


class Group(click.Group):
    """A command group whose faults are one line on stderr: exit 1 for a DataError, 2 for wrong usage, 130 for Ctrl-C."""

    command_class = Command

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the command line, where the system is one that it runs on."""
        check_system()
        return super().main(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn what users can mend into a message."""
        try:
            return super().invoke(ctx)
        except DataError as error:
            raise click.ClickException(escaped(str(error))) from None
        except MemoryError as error:
            raise click.ClickException(escaped(str(error)) or "memory ran out") from None
        except KeyboardInterrupt:
            said, given = ctx.meta.get(_INTERRUPTED, (UNCHANGED, {}))
            say(f"interrupted; {said if isinstance(said, str) else said(given)}", err=True)
            raise click.exceptions.Exit(130) from None
        except ImportError as error:
            package = next((package for library, package in _LIBRARIES.items() if library in str(error)), None)
            if package is None:
                raise
            reason = f"a system library is missing ({error}); on Debian and Ubuntu: apt-get install {package}"
            raise click.ClickException(reason) from None


def command(name: str | None = None, *, interrupted: Interrupted) -> Callable:
    """Make a function a command, which says what is true once it was interrupted, and how to go on."""
    return click.command(name, cls=Command, interrupted=interrupted)


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
