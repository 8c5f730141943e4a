"""Settings of the C library's memory allocator."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's ``mallopt``, from its malloc.h."""


def keep_freed_memory() -> None:
    """Make this process reuse the memory that it frees instead of returning it to the system; only glibc supports this.

    By default glibc returns large blocks, and the kernel clears every page again on the next allocation. That takes a third of
    the time of decoding a picture, and is the main contention between processes that decode at the same time. Call it in
    processes that handle one image after another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 2**25)
        mallopt(_M_TRIM_THRESHOLD, 2**30)
