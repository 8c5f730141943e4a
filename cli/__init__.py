"""The command lines `cocolvis` and `ess`: they parse arguments and print results; the packages do the work."""

import sys


def check_system() -> None:
    """On Windows, end the process with one line on stderr and exit code 1."""
    if sys.platform == "win32":
        sys.exit("Error: cocolvis and ess run on Linux, macOS and WSL, not on Windows itself")


check_system()  # before importing modules that Windows does not have
