"""How images meet a trained model: whole or window by window, mirrored, at several scales, several at a time."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from ess.data.transforms import normalize
from ess.models.network import SegmentationModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """The views of an image that are blended, and how many go through the network at a time.

    ``window``: the image is looked at in windows of so many pixels a side, ``stride`` apart (None = two thirds of the window)
    and flush with the image's borders; None = as a whole. ``scales``: at each of these sizes, 1 = its own. ``flip``: mirrored
    left to right, too. ``batch_size``: so many images of equal padded size, or windows of one image, at a time; it changes
    results by no more than the rounding of float32 (embeddings by less than 1e-4), so that only ties can fall otherwise.

    What is blended is the plain mean of the outputs. The class nearest to the mean of embeddings is the one of the least mean
    squared distance to them, whatever their lengths: mean |e - c|^2 = |mean e - c|^2 + a part without c; with the cosine it is
    the one of the largest mean product. So a mean of distances to all C classes costs d numbers a pixel, and scaling the mean
    back to unit length would change nothing among unit classes. Logits are what a dense head has for distances: their mean is
    the like of it, where a mean of probabilities would let the surest view decide.
    """

    window: int | None = None
    stride: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 1

    def __post_init__(self):
        if self.window is None and self.stride is not None:
            raise DataError(f"stride is {self.stride} without a window: expected a window too")
        if self.window is not None and self.window < 1:
            raise DataError(f"window is {self.window}: expected 1 pixel or more")
        if self.stride is not None and not 1 <= self.stride <= self.window:
            raise DataError(f"stride is {self.stride}: expected 1..{self.window}, the window")
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise DataError(f"scales are {self.scales}: expected one or more positive numbers")
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}: expected 1 or more")

    @property
    def images_at_a_time(self) -> int:
        """The images that :meth:`outputs` takes at most; of windows, it batches those of one image."""
        return self.batch_size if self.window is None else 1

    def padded_sizes(self, model: SegmentationModel, size: tuple[int, int]) -> Hashable:
        """What must be equal for images to go through the network together: their padded size at every scale."""
        return tuple(model.padded(side) for scale in self.scales for side in _scaled(size, scale))

    @torch.inference_mode()
    def outputs(self, model: SegmentationModel, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The blended output (D, H, W) float32 for each of some images (3, H, W) uint8 that share :meth:`padded_sizes`.

        D is the length of an embedding, or the number of classes where the head is dense.
        """
        plain = [normalize(image[None]) for image in images]
        totals: list[torch.Tensor | None] = [None] * len(images)
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        for scale, mirrored in views:
            seen = [_resize(image, _scaled(image.shape[-2:], scale)) for image in plain]
            seen = [image.flip(-1) for image in seen] if mirrored else seen
            found = _together(model, seen) if self.window is None else [self._windowed(model, image) for image in seen]
            for place, output in enumerate(found):
                output = _resize(output.flip(-1) if mirrored else output, plain[place].shape[-2:])
                totals[place] = output if totals[place] is None else totals[place].add_(output)
        return [total[0] if len(views) == 1 else total[0].div_(len(views)) for total in totals]

    def _windowed(self, model: SegmentationModel, image: torch.Tensor) -> torch.Tensor:
        """The mean, at each pixel, of the outputs for the windows that hold it: (1, D, H, W) for an image (1, 3, H, W)."""
        height, width = image.shape[-2:]
        boxes = [
            (..., slice(top, top + self.window), slice(left, left + self.window))
            for top in self._starts(height)
            for left in self._starts(width)
        ]
        total, count = None, torch.zeros((height, width), device=image.device)
        for first in range(0, len(boxes), self.batch_size):
            chunk = boxes[first : first + self.batch_size]
            for box, output in zip(chunk, _together(model, [image[box] for box in chunk]), strict=True):
                total = output.new_zeros((*output.shape[:2], height, width)) if total is None else total
                total[box] += output
                count[box] += 1
        return total.div_(count)

    def _starts(self, length: int) -> list[int]:
        """Where windows begin along a side: every stride, the last one flush with the end."""
        step = self.stride or max(1, round(self.window * 2 / 3))
        last = max(0, length - self.window)
        return [*range(0, last, step), last]


def _together(model: SegmentationModel, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The output (1, D, H, W) for each of some images (1, 3, H, W) of equal padded size, by one pass of the network."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    padded = [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]
    outputs = model(torch.cat(padded)).split(1)
    return [output[..., : image.shape[-2], : image.shape[-1]] for output, image in zip(outputs, images, strict=True)]


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
