"""Types of the callbacks that report progress during long operations; by default nothing is reported."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called repeatedly with the amount done and the total, in images, bytes or another unit."""

Announce = Callable[[str], None]
"""Called with one line of text for the user."""

Phase = Callable[[str, int, int], None]
"""Called repeatedly with the current step, such as "reading lvis_v1_train.json", and its bytes done and in total."""


def count_bytes(progress: Progress, total: int) -> Callable[[int], None]:
    """A callback that takes the number of newly read bytes, and reports their sum and ``total`` to ``progress``."""
    done = 0

    def read(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    read(0)
    return read


def ignore(*_: object) -> None:
    """The default callback: does nothing."""
