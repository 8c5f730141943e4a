"""The views of an image that a model sees (whole or in windows, mirrored, at several scales), and their blending."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from ess.data.transforms import normalize
from ess.models.network import SegmentationModel

PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
"""The precisions of predictions, each with the type of the network's arithmetic if it is not that of the weights."""

_LARGEST_SCALE = 16
"""The largest scale at which an image is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """The views of an image that are blended, and how many of them go through the network at a time.

    ``window`` is the side in pixels of the windows into which an image is divided, ``stride`` pixels apart (None = two thirds
    of the window), the last ones flush with its borders; None = the whole image. ``scales`` are the sizes at which it is seen,
    at most 16, where 1 is its own. With ``flip`` it is also seen mirrored left to right. ``batch_size`` images of equal padded
    size, or windows of one image, go through the network at a time; this changes embeddings by less than 1e-4, the rounding of
    float32, so only ties can be decided differently. ``precision`` is that of the network's arithmetic, "float32" or "bf16";
    embeddings are blended and compared in float32.

    The outputs of the views are averaged. For embeddings, the class nearest to the mean output has the least mean squared
    distance to the outputs of any length, because mean |e - c|^2 = |mean e - c|^2 + a part without c; with the cosine it has
    the largest mean product. So averaging d numbers per pixel replaces averaging distances to all C classes, and scaling the
    mean back to unit length would not change the result. For a dense head the logits take the place of distances and are
    averaged in the same way; a mean of probabilities would let the most confident view decide.
    """

    window: int | None = None
    stride: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 1
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.window is None and self.stride is not None:
            raise DataError(f"stride is {self.stride} without a window: expected a window as well")
        if self.window is not None and self.window < 1:
            raise DataError(f"window is {self.window}: expected 1 pixel or more")
        if self.window is not None and self.stride is not None and not 1 <= self.stride <= self.window:
            raise DataError(f"stride is {self.stride}: expected 1..{self.window}, the window")
        if not self.scales or not all(0 < scale <= _LARGEST_SCALE for scale in self.scales):
            raise DataError(f"scales are {self.scales}: expected one or more positive numbers of at most {_LARGEST_SCALE}")
        if self.batch_size < 1:
            raise DataError(f"batch_size is {self.batch_size}: expected 1 or more")
        if self.precision not in PRECISIONS:
            raise DataError(f"precision is {self.precision!r}: expected {' or '.join(PRECISIONS)}")

    @property
    def images_at_a_time(self) -> int:
        """The most images that :meth:`outputs` takes: one if it batches the windows of an image."""
        return self.batch_size if self.window is None else 1

    @property
    def single_view(self) -> bool:
        """Whether an image is seen once, whole and at its own size, so that nothing is blended."""
        return self.window is None and self.scales == (1.0,) and not self.flip

    def padded_sizes(self, model: SegmentationModel, size: tuple[int, int]) -> Hashable:
        """The padded sizes of an image at every scale; images go through the network together only if these are equal."""
        return tuple(model.padded(side) for scale in self.scales for side in _scaled(size, scale))

    @torch.inference_mode()
    def outputs(self, model: SegmentationModel, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The blended output (D, H, W) float32 of each image (3, H, W) uint8; the images must share :meth:`padded_sizes`.

        D is the length of an embedding, or the number of classes of a dense head.
        """
        plain = [normalize(image[None]) for image in images]
        views = [(scale, mirrored) for scale in self.scales for mirrored in ((False, True) if self.flip else (False,))]
        totals_1DHW = [*self._view(model, plain, *views[0])]
        for view in views[1:]:
            for total, output in zip(totals_1DHW, self._view(model, plain, *view), strict=True):
                total.add_(output)
        return [total[0] if len(views) == 1 else total[0].div_(len(views)) for total in totals_1DHW]

    @torch.inference_mode()
    def coarse(self, model: SegmentationModel, images: Sequence[torch.Tensor]) -> torch.Tensor:
        """The output of the decoder (B, D, h, w) for images as in :meth:`outputs`, if there is a :attr:`single_view`."""
        return model.coarse(model.encode(torch.cat(_padded([normalize(image[None]) for image in images]))))

    def _view(
        self, model: SegmentationModel, images: Sequence[torch.Tensor], scale: float, mirrored: bool
    ) -> Iterator[torch.Tensor]:
        """The output (1, D, H, W) of each image (1, 3, H, W), seen at a scale and possibly mirrored, back at its own size."""
        seen = [_resize(image, _scaled(image.shape[-2:], scale)) for image in images]
        seen = [image.flip(-1) for image in seen] if mirrored else seen
        window = self.window
        outputs = _one_pass(model, seen) if window is None else [self._windowed(model, image, window) for image in seen]
        for image, output in zip(images, outputs, strict=True):
            yield _resize(output.flip(-1) if mirrored else output, image.shape[-2:])

    def _windowed(self, model: SegmentationModel, image: torch.Tensor, window: int) -> torch.Tensor:
        """The mean, at each pixel, of the outputs for the windows that contain it: (1, D, H, W) for an image (1, 3, H, W)."""
        height, width = image.shape[-2:]
        boxes = [
            (..., slice(top, top + window), slice(left, left + window))
            for top in self._starts(height, window)
            for left in self._starts(width, window)
        ]
        total, count_HW = None, torch.zeros((height, width), device=image.device)
        for first in range(0, len(boxes), self.batch_size):
            chunk = boxes[first : first + self.batch_size]
            for box, output in zip(chunk, _one_pass(model, [image[box] for box in chunk]), strict=True):
                if total is None:
                    total = output.new_zeros((*output.shape[:2], height, width))
                total[box] += output
                count_HW[box] += 1
        assert total is not None  # every image has a window
        return total.div_(count_HW)

    def _starts(self, length: int, window: int) -> list[int]:
        """The positions of windows along a side: one every stride, the last one flush with the end."""
        step = self.stride or max(1, round(window * 2 / 3))
        last = max(0, length - window)
        return [*range(0, last, step), last]


def _one_pass(model: SegmentationModel, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The output (1, D, H, W) of each image (1, 3, H, W) of equal padded size, from one pass of the network."""
    outputs = model(torch.cat(_padded(images))).split(1)
    return [output[..., : image.shape[-2], : image.shape[-1]] for output, image in zip(outputs, images, strict=True)]


def _padded(images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The images (1, 3, H, W), padded with zeros to the size of the largest."""
    height, width = (max(image.shape[side] for image in images) for side in (-2, -1))
    return [F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2])) for image in images]


def _scaled(size: Sequence[int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
