"""What a process does with memory that it has no more use for at the moment."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Settings of glibc's malloc, from its malloc.h."""


def keep_freed() -> None:
    """Have this process keep what it frees for its next picture; nothing where the C library is not glibc.

    glibc gives large blocks back to the system, which then clears each page anew: a third of the time of decoding a picture,
    and most of what processes that do so at once wait for each other with. For processes that handle images one by one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
