"""The class with the largest score at each pixel, from scores that the decoder gives at a coarser resolution."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

_NUMBERS = 1 << 25
"""About how many interpolated scores are in memory at a time, on devices other than the CPU."""


class Scores(NamedTuple):
    """The scores of an image on a grid of (h, w) points.

    They are the products of maps (D, h, w) and classes (C, D), or if those are None the maps themselves, plus a bias (C,).
    """

    maps: torch.Tensor
    classes: torch.Tensor | None = None
    bias: torch.Tensor | None = None

    def rows(self, first: int, end: int) -> torch.Tensor:
        """The scores of some rows of the grid, (C, end - first, w)."""
        rows = self.maps[:, first:end]
        if self.classes is not None:
            return torch.einsum("cd,dhw->chw", self.classes, rows)
        return rows if self.bias is None else rows + self.bias[:, None, None]


def largest_class(scores: Scores, full: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """(H, W) int64: the class with the largest score at each pixel; ties go to the lower class.

    The scores cover ``full`` = (height, width) pixels and are interpolated bilinearly; the first ``size`` = (H, W) pixels are
    needed. Memory does not grow with the number of classes.
    """
    if scores.maps.device.type != "cpu":
        return _interpolated(scores, full, size)
    from ess.kernels import coarse_cpu  # imported late: numba is slow to import

    points = scores.maps.permute(1, 2, 0).float().numpy()
    classes, bias = (None if each is None else each.detach().float().numpy() for each in (scores.classes, scores.bias))
    threads = torch.get_num_threads()
    return torch.from_numpy(coarse_cpu.largest_class(points, classes, bias, (full[0], full[1]), (size[0], size[1]), threads))


def _interpolated(scores: Scores, full: Sequence[int], size: Sequence[int]) -> torch.Tensor:
    """:func:`largest_class` by PyTorch, some rows of pixels at a time."""
    device, points, (height, width) = scores.maps.device, scores.maps.shape[1], full
    classes = len(scores.maps if scores.classes is None else scores.classes)
    centres = ((torch.arange(size[0], dtype=torch.float32) + 0.5) * (points / height) - 0.5).clamp(min=0)
    above = centres.long().clamp(max=points - 1)
    down = centres - above
    step = max(1, _NUMBERS // (classes * width))
    found = []
    for here, distance in zip(above.split(step), down.split(step), strict=True):
        first, end = int(here[0]), min(int(here[-1]) + 2, points)
        block = scores.rows(first, end).float()
        here, below = (rows.to(device) for rows in (here - first, (here + 1 - first).clamp(max=end - first - 1)))
        rows = block[:, here].lerp(block[:, below], distance.to(device)[:, None])
        wide = F.interpolate(rows[None], size=(len(here), width), mode="bilinear", align_corners=False)[0]
        found.append(wide[:, :, : size[1]].argmax(dim=0))
    return torch.cat(found)
