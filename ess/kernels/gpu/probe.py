"""Whether Triton can run its kernels here, found out by running one: it needs a C compiler and the headers of Python."""

import logging
from functools import cache
from importlib.util import find_spec

import torch

from cocolvis.text import one_line

log = logging.getLogger("ess")


@cache
def works(device: torch.device) -> bool:
    """Whether Triton is installed and runs a kernel on a device.

    If it is installed but fails, one warning gives the reason; PyTorch then computes losses and searches.
    """
    if find_spec("triton") is None:
        return False
    try:
        _run(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many types: no compiler, no headers, a GPU that is too old
        log.warning(
            "Triton cannot run its kernels (%s); PyTorch computes losses and searches instead, which is slower."
            " Triton needs a C compiler and the headers of Python: apt install gcc python3-dev",
            one_line(error)[:200],
        )
        return False
    return True


def _run(device: torch.device) -> None:
    """Run a kernel that does nothing on a device."""
    import triton  # imported late: optional, and slow to import

    @triton.jit
    def nothing(place):
        pass

    place = torch.zeros(1, device=device)
    with torch.cuda.device_of(place):
        nothing[(1,)](place)
