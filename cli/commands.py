"""The base classes of all commands: one-line errors, exit codes, and a message that says what Ctrl-C left behind."""

import errno
from collections.abc import Callable
from typing import Any

import click

from cli import check_system
from cli.display import log_to_stderr, printing, say
from cocolvis.errors import DataError
from cocolvis.text import escaped, one_line

_LIBRARIES = {"libGL.so.1": "libgl1", "libgthread": "libglib2.0-0", "libglib": "libglib2.0-0"}
"""System libraries that opencv-python needs -> the Debian package that contains each."""

UNCHANGED = "nothing was changed"
"""The message after Ctrl-C in a command that only reads."""

Interrupted = str | Callable[[dict[str, Any]], str]
"""The message after Ctrl-C, which says what was kept and how to continue: a text, or a function of the command's parameters."""

_INTERRUPTED = "cli.interrupted"
"""The key in the click context under which the running command keeps its message."""


class _Parser(click.Command):
    """A command or group whose help text is an error in one line if it cannot be printed."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        """Parse the command line, which prints the help text if it asks for that."""
        try:
            with printing():
                return super().make_context(*arguments, **settings)
        except DataError as error:
            raise click.ClickException(escaped(str(error))) from None


class Command(_Parser):
    """A command with a message that says what Ctrl-C leaves behind."""

    def __init__(self, *arguments: Any, interrupted: Interrupted, **settings: Any):
        super().__init__(*arguments, **settings)
        self.interrupted = interrupted

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. If it is interrupted, its group prints the message."""
        ctx.meta[_INTERRUPTED] = self.interrupted, ctx.params
        return super().invoke(ctx)


class Group(_Parser, click.Group):
    """A group that reports errors in one line on stderr: exit 1 for a DataError, 2 for wrong usage, 130 for Ctrl-C."""

    command_class = Command

    def main(self, *arguments: Any, **settings: Any) -> Any:
        """Run the command line, unless the system is not supported."""
        check_system()
        with log_to_stderr():
            return super().main(*arguments, **settings)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command and turn the errors that users can fix into one-line messages."""
        try:
            return super().invoke(ctx)
        except DataError as error:
            raise click.ClickException(escaped(str(error))) from None
        except MemoryError as error:
            raise click.ClickException(escaped(str(error)) or "memory ran out") from None
        except KeyboardInterrupt:
            message, given = ctx.meta.get(_INTERRUPTED, (UNCHANGED, {}))
            say(f"interrupted; {message if isinstance(message, str) else message(given)}", err=True)
            raise click.exceptions.Exit(130) from None
        except ImportError as error:
            package = next((package for library, package in _LIBRARIES.items() if library in str(error)), None)
            if package is None:
                raise
            reason = f"a system library is missing ({error}); on Debian and Ubuntu: apt-get install {package}"
            raise click.ClickException(reason) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends the process without a word
                raise
            raise click.ClickException(one_line(error)) from None


def command(name: str | None = None, *, interrupted: Interrupted) -> Callable[[Callable[..., None]], Command]:
    """Make a function a command; ``interrupted`` is its message after Ctrl-C."""
    return click.command(name, cls=Command, interrupted=interrupted)
