"""The command lines `cocolvis` and `ess`: parsing, messages and exit codes; the work is done by the packages they name."""

import sys


def check_system() -> None:
    """On Windows end with one line and exit code 1."""
    if sys.platform == "win32":
        sys.exit("Error: cocolvis and ess run on Linux, macOS and WSL, not on Windows itself")


check_system()  # before any module is imported that Windows lacks
