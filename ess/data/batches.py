"""How loader processes hand the windows of pictures to the trainer: in shared memory that both know, and that is used again.

New shared memory has to be cleared by the system, page by page, which costs up to half of decoding a picture; to pass its
handle between processes costs as much again. So each is made once, passed once, and then only named.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from cocolvis.errors import DamagedImage, DataError
from ess.data.transforms import Placement, render_image, render_labels

AHEAD = 2
"""Batches that a loader process makes before they are asked for."""

IGNORE_INDEX = -1
"""The label of unlabelled pixels, which no loss and no metric counts."""


class Batch(NamedTuple):
    """Crops of a step: ``images`` (B, 3, crop, crop) uint8 RGB, ``labels`` (B, crop, crop) int16, or int32 for many classes.

    ``ids`` (B,) int64 of the images; ``classes`` (B, C) bool, where a class takes part in the loss, or None: all do.
    """

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
    classes: torch.Tensor | None = None

    def parts(self, count: int) -> list["Batch"]:
        """The same crops in so many parts of equal size, in order."""
        columns = [[None] * count if column is None else column.chunk(count) for column in self]
        return [Batch(*part) for part in zip(*columns, strict=True)]


class Windows(NamedTuple):
    """The parts of pictures that the crops of a step show, not yet resized: that is the device's, which is faster at it.

    ``pixels`` (sum of h * w * 3,) uint8 lie one window after another, and so do the labels, as runs: ``labels`` (R,) and
    ``lengths`` (R,) int32; ``places`` are the windows' :class:`ess.data.transforms.Placement`; ``ids`` and ``classes`` as in
    :class:`Batch`. Pixels are valid until the next windows are asked for. ``damaged`` are images that others stand in for.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    lengths: torch.Tensor
    places: list[Placement]
    ids: torch.Tensor
    classes: torch.Tensor | None
    damaged: Sequence[DamagedImage] = ()

    def crops(self, crop: int, device: torch.device) -> Batch:
        """The crops, rendered on a device; the ids, which are for messages, stay."""
        pixels, labels, lengths = (_moved(flat, device) for flat in (self.pixels, self.labels, self.lengths))
        labels = labels.repeat_interleave(lengths, output_size=len(pixels) // 3)
        images, truths, at = [], [], 0
        for place in self.places:
            end = at + place.area
            images.append(render_image(pixels[3 * at : 3 * end].view(*place.shape, 3), place, crop))
            truths.append(render_labels(labels[at:end].view(place.shape), place, crop, IGNORE_INDEX))
            at = end
        classes = None if self.classes is None else _moved(self.classes, device)
        return Batch(torch.stack(images), torch.stack(truths), self.ids, classes)


class Window(NamedTuple):
    """One of them without its pixels: where it lies, its image's id, where classes take part (C,) bool or None, its runs."""

    place: Placement
    image_id: int
    classes: np.ndarray | None
    labels: np.ndarray
    lengths: np.ndarray


class Parcel(NamedTuple):
    """Windows on their way: which memory their pixels lie in, and that memory itself where the trainer does not have it yet."""

    memory: tuple[int, int]
    pixels: torch.Tensor | None
    labels: np.ndarray
    lengths: np.ndarray
    places: list[Placement]
    ids: list[int]
    classes: np.ndarray | None
    damaged: Sequence[DamagedImage] = ()


class Packer:
    """The memory that a process puts the pixels of windows into.

    A process begins a batch when the trainer has asked for the one ``AHEAD`` before it, which is then in use at the most; the
    memory of still earlier ones is free.
    """

    def __init__(self):
        self._memories = [torch.empty(0, dtype=torch.uint8)] * (AHEAD + 2)
        self._turn = 0
        self._new = False

    def room(self, size: int) -> np.ndarray:
        """(size,) uint8 for all pixels of the next batch; a batch that is not packed leaves it to the one after it."""
        if size > len(self._memories[self._turn]):
            memory = torch.empty(size * 5 // 4, dtype=torch.uint8)
            self._memories[self._turn] = memory.share_memory_() if get_worker_info() else memory
            self._new = True
        return self._memories[self._turn].numpy()[:size]

    def pack(self, windows: Sequence[Window]) -> Parcel:
        """The windows whose pixels were written, in this order."""
        places, ids, classes, labels, lengths = zip(*windows, strict=True)
        process = get_worker_info()
        memory = (process.id if process else 0, self._turn)
        pixels = self._memories[self._turn] if self._new else None
        known = None if classes[0] is None else np.stack(classes)
        self._turn, self._new = (self._turn + 1) % len(self._memories), False
        return Parcel(memory, pixels, np.concatenate(labels), np.concatenate(lengths), [*places], [*ids], known)


def unpack(parcels: Iterable[Parcel | DataError]) -> Iterator[Windows]:
    """The windows of parcels from any processes, all from their first one on; a fault that came instead is raised."""
    known: dict[tuple[int, int], torch.Tensor] = {}
    for parcel in parcels:
        if isinstance(parcel, DataError):
            raise parcel
        if parcel.pixels is not None:
            known[parcel.memory] = parcel.pixels
        area = sum(place.area for place in parcel.places)
        labels, lengths = torch.from_numpy(parcel.labels), torch.from_numpy(parcel.lengths)
        classes = None if parcel.classes is None else torch.from_numpy(parcel.classes)
        pixels = known[parcel.memory][: 3 * area]
        yield Windows(pixels, labels, lengths, parcel.places, torch.tensor(parcel.ids), classes, parcel.damaged)


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """On a device; to a GPU from pinned memory, so that the copy does not wait for what it computes."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
