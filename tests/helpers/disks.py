"""Failing disks, for tests of what ends a build: errors by name, empty folders, and commands run in this process."""

import errno
import os
import shutil

from click.testing import CliRunner

from cli.cocolvis import main
from cocolvis.disk.archives import Place

SHARDS = ("--shard-size", 3)
"""Options of builds with a few images."""


def run(*arguments, code=0):
    """Run a command in this process; its output, or its one error line if it is expected to fail."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == (code == 1) and (code == 0 or result.output.splitlines()[-1] == lines[0]), result.output
    return lines[0] if lines else result.output


class Disk:
    """A disk on which reading a file whose name ends in ``ending`` raises ``error`` the first ``times`` times."""

    def __init__(self, monkeypatch, ending, error, times=10**9):
        self.calls, whole = 0, Place._whole

        def read(place):
            if place.path.endswith(ending):
                self.calls += 1
                if self.calls <= times:
                    raise error
            return whole(place)

        monkeypatch.setattr(Place, "_whole", read)


def of_number(name):
    """The OSError with a name such as "EIO"."""
    return OSError(getattr(errno, name), os.strerror(getattr(errno, name)))


def emptied(folder):
    """Empty a folder, as if its disk were not mounted."""
    shutil.rmtree(folder)
    folder.mkdir()


def stamps(out):
    """Name of each shard file -> its inode and the time of its last change."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted((out / "shards").iterdir())}
