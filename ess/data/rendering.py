"""Renders the crops of a batch together on a GPU, where the number of kernels matters and not that of the pixels they touch."""

from collections.abc import Sequence

import numpy as np
import torch

from ess.data.transforms import FILL, Crop
from ess.device import moved


def render_together(
    pixels: torch.Tensor, labels: torch.Tensor, crops: Sequence[Crop], size: int, ignore_index: int = -1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (B, 3, size, size) uint8 and labels (B, size, size), as ``render_image`` and ``render_labels`` make each of them.

    ``pixels`` (N * 3,) uint8 and ``labels`` (N,) integer hold one crop after another. The images have channels last in memory.
    Interpolated values may differ from those of ``render_image`` by the rounding of float32.
    """
    device = pixels.device
    start, height, width, top, tall, left, wide, mirrored = moved(_table(crops), device)[..., None].unbind(0)  # (B, 1) each
    across = torch.arange(size, device=device)
    rows = across - top
    columns = torch.where(mirrored > 0, size - 1 - across, across) - left
    inside = ((rows >= 0) & (rows < tall))[:, :, None] & ((columns >= 0) & (columns < wide))[:, None]
    rows, columns = torch.minimum(rows.clamp_min(0), tall - 1), torch.minimum(columns.clamp_min(0), wide - 1)

    def places(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return ((start + y * width)[:, :, None] + x[:, None]).flatten()

    nearest = places((2 * rows + 1) * height // (2 * tall), (2 * columns + 1) * width // (2 * wide))
    truths = labels.index_select(0, nearest).view(inside.shape).masked_fill(~inside, ignore_index)

    above, below, down = _neighbours(rows, height, tall)
    before, after, along = _neighbours(columns, width, wide)
    down, along = down[:, :, None, None], along[:, None, :, None]
    colours = pixels.view(-1, 3)

    def between(y: torch.Tensor) -> torch.Tensor:
        """(B, size, size, 3) float32, interpolated along the row ``y``."""
        ends = (colours.index_select(0, places(y, x)).view(*inside.shape, 3).float() for x in (before, after))
        return next(ends).mul_(1 - along).add_(next(ends).mul_(along))

    shown = between(above).mul_(1 - down).add_(between(below).mul_(down)).round_().to(torch.uint8)
    fill = moved(torch.tensor(FILL, dtype=torch.uint8), device)
    return torch.where(inside[..., None], shown, fill).permute(0, 3, 1, 2), truths


def _table(crops: Sequence[Crop]) -> torch.Tensor:
    """(8, B) int64: where a crop's pixels start, its size, the rows and columns that it fills, and whether it is mirrored."""
    ends = np.cumsum([crop.area for crop in crops])
    rows = [
        (
            int(end) - crop.area,
            *crop.shape,
            *(value for part in (crop.target_rows, crop.target_columns) for value in (part.start, part.stop - part.start)),
            crop.mirrored,
        )
        for crop, end in zip(crops, ends, strict=True)
    ]
    return torch.from_numpy(np.ascontiguousarray(np.array(rows, np.int64).T))


def _neighbours(
    places: torch.Tensor, length: torch.Tensor, shown: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(the pixel before, the one after, the share of the latter) for pixels (B, size) of ``length`` resized to ``shown``."""
    exact = ((places + 0.5) * (length.float() / shown.float()) - 0.5).clamp_min(0)
    before = torch.minimum(exact.long(), length - 1)
    return before, torch.minimum(before + 1, length - 1), exact - before
