"""The folder that a generated sample is written to: it gets everything at once, or nothing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cocolvis.disk.files import reason
from cocolvis.errors import DataError

_PARTIAL = ".cocolvis-sample.partial"


@contextmanager
def filled(out: Path, seed: int) -> Iterator[Path]:
    """Yield an empty folder inside ``out``; at the end, its contents move to ``out``, or disappear after an exception.

    Raises DataError if ``out`` is neither new nor empty or cannot be written, or if ``seed`` is negative.
    """
    out = Path(out)
    partial, existed = out / _PARTIAL, os.path.isdir(out)
    if seed < 0:
        raise DataError(f"sample: seed is {seed}, expected 0 or more")
    try:
        if out.exists() and (not existed or any(p.name != _PARTIAL for p in out.iterdir())):
            raise DataError(f"{out}: exists and is not an empty folder; choose a new folder, or remove this one first")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        for part in sorted(partial.iterdir()):
            part.rename(out / part.name)
    except OSError as error:
        raise DataError(f"{out}: cannot write the sample: {reason(error)}; choose a folder that you can write to") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not existed and os.path.isdir(out) and not any(out.iterdir()):
            out.rmdir()
