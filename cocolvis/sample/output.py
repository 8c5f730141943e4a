"""The folder that a generated sample is written to: it gets everything at once, or nothing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocolvis.disk.files import reason
from cocolvis.disk.lock import held, is_lock
from cocolvis.errors import DataError
from cocolvis.progress import Announce

_PARTIAL = ".cocolvis-sample-"
"""The beginning of the name of an unfinished sample; its end is never used again."""


@contextmanager
def filled(out: Path, seed: int, announce: Announce) -> Iterator[Path]:
    """Yield an empty folder inside ``out``; at the end, its contents move to ``out``, or disappear after an exception.

    ``announce`` is called with a line while this waits for a process that may be writing there. Raises DataError if ``out`` is
    neither new nor empty, cannot be written, or is written by another process, or if ``seed`` is negative.
    """
    out = Path(out)
    if seed < 0:
        raise DataError(f"sample: seed is {seed}, expected 0 or more")
    try:
        _check_empty(out)
        with held(out, None, announce, "a sample") as lease:
            _check_empty(out)  # another process may just have filled it
            for left in out.glob(f"{_PARTIAL}*"):
                shutil.rmtree(left, ignore_errors=True)
            partial = out / f"{_PARTIAL}{lease.token}"
            try:
                partial.mkdir()
                yield partial
                lease.check()
                for part in sorted(partial.iterdir()):
                    part.rename(out / part.name)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{out}: cannot write the sample: {reason(error)}; choose a folder that you can write to") from None


def _check_empty(out: Path) -> None:
    """Raise DataError if ``out`` is a file, or holds anything other than locks and unfinished samples."""
    if out.exists() and not (out.is_dir() and all(is_lock(path) or path.name.startswith(_PARTIAL) for path in out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose a new folder, or remove this one first")
