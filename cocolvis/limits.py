"""Upper limits on the sizes of masks and pictures, beyond which input is refused everywhere; and the cores of a process."""

import os

MAX_PIXELS = 2**27
"""The most pixels that a mask may have; more would exhaust memory."""

MAX_PICTURE = 2**28
"""The most bytes that the file of a picture may have; more would exhaust memory."""

MAX_INSTANCES = 2**27
"""The most instances of a class that a shard may state for an image; annotations of that many would fill gigabytes."""


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
