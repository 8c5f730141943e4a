"""Who is told, while long work lasts, what is being done and how far it has come; nobody by default."""

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called now and then with how much is done and how much there is, of images or whatever is counted."""

Announce = Callable[[str], None]
"""Called with a line for the user."""

Phase = Callable[[str, int, int], None]
"""Called now and then with what is being done, such as "reading lvis_v1_train.json", and the bytes of it done and in total."""


def count_bytes(progress: Progress, total: int) -> Callable[[int], None]:
    """What takes how many bytes more were read, and tells ``progress`` how many there are so far, of ``total``."""
    done = 0

    def read(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    read(0)
    return read


def quiet(*_: object) -> None:
    """Tell nobody."""
