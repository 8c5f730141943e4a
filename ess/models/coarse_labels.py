"""The class with the largest score at each pixel, from scores that the decoder gives at a coarser resolution."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

_NUMBERS = 1 << 25
"""About how many interpolated scores are in memory at a time, on devices other than the CPU."""


class Scores(NamedTuple):
    """The scores of an image on a grid of points; ``rows(first, end)`` gives those of some rows, (C, end - first, w)."""

    rows: Callable[[int, int], torch.Tensor]
    classes: int
    device: torch.device


def largest_class(scores: Scores, grid: Sequence[int], full: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """(H, W) int64: the class with the largest score at each pixel; ties go to the lower class.

    The scores on a ``grid`` of (h, w) points cover ``full`` = (height, width) pixels and are interpolated bilinearly; the first
    ``size`` = (H, W) pixels are needed. Memory does not grow with the number of classes.
    """
    if scores.device.type != "cpu":
        return _interpolated(scores, grid, full, size)
    from ess.kernels import coarse_cpu  # imported late: numba is slow to import

    def rows(first: int, end: int) -> np.ndarray:
        return scores.rows(first, end).permute(1, 2, 0).float().contiguous().numpy()

    shape = (grid[0], grid[1], scores.classes)
    found = coarse_cpu.largest_class(rows, shape, (full[0], full[1]), (size[0], size[1]), threads=torch.get_num_threads())
    return torch.from_numpy(found)


def _interpolated(scores: Scores, grid: Sequence[int], full: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """:func:`largest_class` by PyTorch, some rows of pixels at a time."""
    (points, _), (height, width) = grid, full
    centres = ((torch.arange(size[0], dtype=torch.float32) + 0.5) * (points / height) - 0.5).clamp(min=0)
    above = centres.long().clamp(max=points - 1)
    down = centres - above
    step = max(1, _NUMBERS // (scores.classes * width))
    found = []
    for here, distance in zip(above.split(step), down.split(step), strict=True):
        first, end = int(here[0]), min(int(here[-1]) + 2, points)
        block = scores.rows(first, end).float()
        here, below = (rows.to(scores.device) for rows in (here - first, (here + 1 - first).clamp(max=end - first - 1)))
        rows = block[:, here].lerp(block[:, below], distance.to(scores.device)[:, None])
        wide = F.interpolate(rows[None], size=(len(here), width), mode="bilinear", align_corners=False)[0]
        found.append(wide[:, :, : size[1]].argmax(dim=0))
    return torch.cat(found)
