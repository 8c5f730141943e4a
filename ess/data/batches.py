"""Training batches on their way from shards to the device.

A loader process draws a :class:`~ess.data.transforms.Crop` of each image, copies the crop's pixels and labels out of the shard
into a :class:`RawBatch`, whose pixels travel in :class:`SharedBuffers`, and the training process renders that on the device,
where resizing is faster, to the :class:`Batch` that a step sees.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from cocolvis.errors import DamagedImage, DataError
from ess.data.rendering import render_together
from ess.data.transforms import Crop, render_image, render_labels
from ess.device import moved

AHEAD = 2
"""How many batches a loader process prepares before they are requested."""

IGNORE_INDEX = -1
"""The label of unlabelled pixels, which losses and metrics ignore."""


class Batch(NamedTuple):
    """The crops of a step: ``images`` (B, 3, size, size) uint8 RGB, ``labels`` (B, size, size) int16, int32 for many classes.

    ``ids`` (B,) int64 are the images' ids, on the CPU, or None. ``classes`` (B, C) bool marks the classes in the softmax of
    each image; None means all.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor | None
    classes: torch.Tensor | None = None

    def on_device(self) -> list[torch.Tensor]:
        """The tensors that are on the device."""
        return [self.images, self.labels, *([] if self.classes is None else [self.classes])]

    def parts(self, count: int) -> list["Batch"]:
        """The same crops in order, without their ids, which several GPUs would copy, as ``count`` batches of equal size."""
        columns = [[None] * count if column is None else column.chunk(count) for column in self._replace(ids=None)]
        return [Batch(*part) for part in zip(*columns, strict=True)]


class RawBatch(NamedTuple):
    """The data that a batch is rendered from: pixels and labels of its ``crops``, at the resolution of the pictures.

    ``pixels`` (sum of h * w * 3,) uint8 holds one crop after another. The labels of the same pixels are run-length encoded:
    ``labels`` (R,) integer and ``lengths`` (R,) int32. ``ids`` (B,) int64 and ``classes`` are those of :class:`Batch`.
    ``damaged`` lists images that were replaced by others.

    ``buffer`` names the memory that holds the pixels as (process, slot). A loader process sends that memory itself, as
    ``pixels``, only the first time it uses it; :func:`attach_pixels` completes the later batches. The pixels stay valid until
    the next batch is requested.
    """

    buffer: tuple[int, int]
    pixels: torch.Tensor | None
    labels: np.ndarray
    lengths: np.ndarray
    crops: list[Crop]
    ids: np.ndarray
    classes: np.ndarray | None
    damaged: Sequence[DamagedImage] = ()

    def render(self, size: int, device: torch.device) -> Batch:
        """Render the crops with sides of ``size`` pixels on a device; their ids stay on the CPU.

        A GPU renders them together, in as many kernels for a large batch as for a small one; the CPU one after another.
        """
        if self.pixels is None:
            raise ValueError("the batch has no pixels: complete it with attach_pixels")
        flat = (self.pixels, torch.from_numpy(self.labels), torch.from_numpy(self.lengths))
        pixels, labels, lengths = (moved(tensor, device) for tensor in flat)
        labels = labels.repeat_interleave(lengths, output_size=len(pixels) // 3)
        render = render_together if device.type == "cuda" else _render_one_by_one
        images, truths = render(pixels, labels, self.crops, size, IGNORE_INDEX)
        classes = None if self.classes is None else moved(torch.from_numpy(self.classes), device)
        return Batch(images, truths, torch.from_numpy(self.ids), classes)


def _render_one_by_one(
    pixels: torch.Tensor, labels: torch.Tensor, crops: Sequence[Crop], size: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels as from :func:`ess.data.rendering.render_together`, a crop at a time."""
    images, truths, start = [], [], 0
    for crop in crops:
        end = start + crop.area
        images.append(render_image(pixels[3 * start : 3 * end].view(*crop.shape, 3), crop, size))
        truths.append(render_labels(labels[start:end].view(crop.shape), crop, size, ignore_index))
        start = end
    return torch.stack(images), torch.stack(truths)


class FeatureBatch(NamedTuple):
    """Like :class:`Batch`, with stored ``features`` of the crops in place of their pixels.

    Each of them is (B, C, size / stride, size / stride) float16.
    """

    features: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    ids: torch.Tensor | None
    classes: torch.Tensor | None = None

    def on_device(self) -> list[torch.Tensor]:
        """The tensors that are on the device."""
        return [*self.features, self.labels, *([] if self.classes is None else [self.classes])]

    def parts(self, count: int) -> list["FeatureBatch"]:
        """The same crops in order, without their ids, which several GPUs would copy, as ``count`` batches of equal size."""
        features = zip(*(each.chunk(count) for each in self.features), strict=True)
        columns = [[None] * count if column is None else column.chunk(count) for column in (self.labels, None, self.classes)]
        return [FeatureBatch(*part) for part in zip(features, *columns, strict=True)]


class RawFeatures(NamedTuple):
    """A :class:`FeatureBatch` as arrays, as a loader process sends it; ``damaged`` lists images that were replaced."""

    features: list[np.ndarray]
    labels: np.ndarray
    ids: np.ndarray
    classes: np.ndarray | None
    damaged: Sequence[DamagedImage] = ()

    def render(self, size: int, device: torch.device) -> FeatureBatch:
        """The crops, which have sides of ``size`` pixels, on a device; their ids stay on the CPU."""
        features = tuple(moved(torch.from_numpy(each), device) for each in self.features)
        labels = moved(torch.from_numpy(self.labels), device)
        classes = None if self.classes is None else moved(torch.from_numpy(self.classes), device)
        return FeatureBatch(features, labels, torch.from_numpy(self.ids), classes)


class SharedBuffers:
    """The buffers in which one process hands over the pixels of its batches, used in turn.

    The system clears new shared memory page by page, which takes up to half as long as decoding the pictures, and passing its
    handle to another process takes as long again. So each buffer is created once, sent once, and from then on only named. A
    process begins a batch after the batch ``AHEAD`` before it was requested. At most that one is still in use, and the buffers
    of earlier ones are free.
    """

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * (AHEAD + 2)
        self._slot = 0
        self._is_new = False

    def reserve(self, size: int) -> np.ndarray:
        """(size,) uint8 for the pixels of the next batch. Until :meth:`hand_over`, further calls reuse the same buffer."""
        if size > len(self._buffers[self._slot]):
            buffer = torch.empty(size * 5 // 4, dtype=torch.uint8)
            self._buffers[self._slot] = buffer.share_memory_() if get_worker_info() else buffer
            self._is_new = True
        return self._buffers[self._slot].numpy()[:size]

    def hand_over(self) -> tuple[tuple[int, int], torch.Tensor | None]:
        """((process, slot), buffer) of the reserved memory, where the buffer is None if it was handed over before."""
        process = get_worker_info()
        name = (process.id if process else 0, self._slot)
        buffer = self._buffers[self._slot] if self._is_new else None
        self._slot, self._is_new = (self._slot + 1) % len(self._buffers), False
        return name, buffer


def attach_pixels(batches: Iterable[RawBatch | DataError]) -> Iterator[RawBatch]:
    """Complete the batches of several processes, each from its first one on; raises any DataError among them."""
    buffers: dict[tuple[int, int], torch.Tensor] = {}
    for batch in batches:
        if isinstance(batch, DataError):
            raise batch
        if batch.pixels is not None:
            buffers[batch.buffer] = batch.pixels
        area = sum(crop.area for crop in batch.crops)
        yield batch._replace(pixels=buffers[batch.buffer][: 3 * area])


def rendered(
    batches: Iterable[RawBatch | RawFeatures], size: int, device: torch.device, *, prefetch: bool = False
) -> Iterator[tuple[RawBatch | RawFeatures, Batch | FeatureBatch]]:
    """Each batch with what it is rendered to, as :meth:`RawBatch.render` does.

    With ``prefetch``, a GPU copies and renders on a stream of its own: the step before, which was only launched when a batch is
    requested, continues meanwhile.
    """
    stream = torch.cuda.Stream(device) if prefetch else None
    for raw in batches:
        with nullcontext() if stream is None else torch.cuda.stream(stream):
            batch = raw.render(size, device)
        if stream is not None:
            now = torch.cuda.current_stream(device)
            now.wait_stream(stream)
            for tensor in batch.on_device():
                tensor.record_stream(now)  # its memory is not used again before this stream is done with it
        yield raw, batch
