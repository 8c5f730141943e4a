"""The command lines `cocolvis` and `ess`: they parse arguments and print results; the packages do the work."""

import os
import sys


def check_system() -> None:
    """On Windows, end the process with one line on stderr and exit code 1."""
    if sys.platform == "win32":
        sys.exit("Error: cocolvis and ess run on Linux, macOS and WSL, not on Windows itself")


check_system()  # before importing modules that Windows does not have


def open_streams() -> None:
    """Open the standard streams that the caller of the process has closed, as services do, on the null device.

    Otherwise the next files would get their numbers, and whatever a library prints would end up inside them.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is that of the stream
            setattr(sys, name, os.fdopen(handle, mode, encoding="utf-8", errors="backslashreplace"))


open_streams()
