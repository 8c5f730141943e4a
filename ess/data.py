"""A built data set as torch batches: which images a step sees, and how they are augmented, follows from seed and step alone."""

import math
import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from cocolvis.dataset import Dataset, Split
from cocolvis.errors import DataError
from cocolvis.memory import keep_freed
from ess.config import Config
from ess.longtail import NO_TAIL, Tail
from ess.transforms import Placement, color_jitter, random_placement, render_image, render_labels

IGNORE_INDEX = -1
"""The label of unlabelled pixels, which no loss and no metric counts."""

_AHEAD = 2
"""Batches that a loader process makes before they are asked for."""

_GRACE = 30
"""Seconds that a loader process outlives SIGTERM."""


def to_labels(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint16 class ids, 0 = unlabelled, to (H, W) int16 labels: 0..C-1, -1 = ignored. The only place that maps them."""
    return (mask - np.uint16(1)).view(np.int16)


def to_class_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) integer labels 0..C-1 to (H, W) uint16 class ids 1..C: the inverse of :func:`to_labels`."""
    return (labels + 1).astype(np.uint16)


class Batch(NamedTuple):
    """Crops of a step: ``images`` (B, 3, crop, crop) uint8 RGB, ``labels`` (B, crop, crop) int16.

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

    Valid until the next ones are asked for.

    ``pixels`` (sum of h * w * 3,) uint8 and ``labels`` (sum of h * w,) int16 lie one window after another; ``places`` are their
    :class:`ess.transforms.Placement`; ``ids`` and ``classes`` as in :class:`Batch`.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    places: list[Placement]
    ids: torch.Tensor
    classes: torch.Tensor | None

    def crops(self, crop: int, device: torch.device) -> Batch:
        """The crops, rendered on a device; the ids, which are for messages, stay."""
        pixels, labels = (flat.to(device, non_blocking=True) for flat in (self.pixels, self.labels))
        images, truths, at = [], [], 0
        for place in self.places:
            shape = (place.rows.stop - place.rows.start, place.columns.stop - place.columns.start)
            end = at + shape[0] * shape[1]
            images.append(render_image(pixels[3 * at : 3 * end].view(*shape, 3), place, crop))
            truths.append(render_labels(labels[at:end].view(shape), place, crop, IGNORE_INDEX))
            at = end
        classes = None if self.classes is None else self.classes.to(device, non_blocking=True)
        return Batch(torch.stack(images), torch.stack(truths), self.ids, classes)


class TrainingImages(TorchDataset):
    """Augmented crops: item (index, draw) is image ``index`` under the random numbers of ``draw``.

    An item is (pixels (h, w, 3) uint8, labels (h, w) int16, placement, image id, the classes that take part (C,) bool or None).
    """

    def __init__(self, split: Split, config: Config, tail: Tail = NO_TAIL):
        self._split = split
        self._config = config
        self._rarity, self._asked = tail.rarity, tail.asked

    def __getitem__(self, item: tuple[int, int]) -> tuple:
        index, draw = item
        config, sample = self._config, self._split[index]
        rng = np.random.default_rng([config.seed, draw])
        around, taking = None, None
        if self._rarity is not None and rng.random() < config.class_crop:
            around = pixel_of_a_rare_class(sample.mask, self._rarity, rng)
        if self._asked is not None:
            taking = taking_part(sample.mask, sample.neg, self._asked)
        scale = (config.scale_min, config.scale_max)
        place = random_placement(sample.mask.shape, rng, crop=config.crop, scale=scale, flip=config.flip, around=around)
        pixels = sample.image()[place.rows, place.columns]
        if config.color_jitter:
            pixels = color_jitter(pixels, rng, config.color_jitter)
        return pixels, to_labels(sample.mask[place.rows, place.columns]), place, sample.image_id, taking


def pixel_of_a_rare_class(mask: np.ndarray, rarity: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """(row, column) of a random pixel of a class that is drawn from those in ``mask`` with probability ~ ``rarity`` (C,).

    ``mask`` (H, W) uint16, 0 = unlabelled; None where nothing is labelled.
    """
    present = np.flatnonzero(_counts(mask, len(rarity)))
    if not len(present):
        return None
    chosen = rng.choice(present, p=rarity[present] / rarity[present].sum())
    places = np.flatnonzero(mask == chosen + 1)
    row, column = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return row, column


def taking_part(mask: np.ndarray, neg: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(C,) bool, the classes whose presence in an image is known: those in ``mask``, in ``neg``, and where ``asked``.

    ``mask`` (H, W) uint16 of the whole image; ``neg`` (n,) class ids 1..C verified absent; ``asked`` (C,) bool, True for the
    classes that are annotated in every image.
    """
    known = asked | (_counts(mask, len(asked)) > 0)
    known[neg.astype(np.int64) - 1] = True
    return known


def _counts(mask: np.ndarray, classes: int) -> np.ndarray:
    """Pixels of each class, (C,)."""
    return np.bincount(mask.reshape(-1), minlength=classes + 1)[1:]


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The batches of steps ``start``..``steps`` - 1: a fresh permutation each epoch, incomplete batches dropped.

    With ``repeats`` (N,) >= 1 an epoch has image i floor(r_i) or ceil(r_i) times, r_i times on average. ``share`` (r, n) is
    the r-th of n equal parts of each batch, for one of n processes: together they see the batches of one.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        repeats: np.ndarray | None = None,
        share: tuple[int, int] = (0, 1),
    ):
        self._images = images
        self._share = share
        self._repeats = repeats
        self._batch_size = batch_size
        self._steps = range(start, steps)
        self._seed = seed

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = epoch_length(self._images, self._repeats) // self._batch_size
        epoch, order = None, None
        for step in self._steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self._order(np.random.default_rng([self._seed, epoch]))
            first = (step % per_epoch) * self._batch_size
            chosen = order[first : first + self._batch_size]
            rank, processes = self._share
            own = range(self._batch_size)[rank * self._batch_size // processes : (rank + 1) * self._batch_size // processes]
            yield [(int(chosen[place]), step * self._batch_size + place) for place in own]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch. Repeats are drawn by one random offset for all, so that every epoch is as long."""
        if self._repeats is None:
            return rng.permutation(self._images)
        ends = np.append(0, np.cumsum(self._repeats)) * (epoch_length(self._images, self._repeats) / self._repeats.sum())
        counts = np.diff(np.floor(ends.round(9) + rng.random()).astype(np.int64))
        return rng.permutation(np.repeat(np.arange(self._images), counts))


def epoch_length(images: int, repeats: np.ndarray | None) -> int:
    """Images of an epoch, those that are repeated counted as often."""
    return images if repeats is None else math.ceil(repeats.sum() - 1e-6)


def training_split(dataset: Dataset, config: Config) -> Split:
    """The split "train"; a DataError when it has no full batch."""
    split = dataset.split("train")
    if len(split) < config.batch_size:
        raise DataError(
            f"{dataset.folder}: split train has {len(split)} images, a batch takes {config.batch_size};"
            f" choose --batch-size {max(len(split), 1)} or less"
        )
    return split


def training_batches(
    split: Split, config: Config, steps: int, start: int = 0, tail: Tail = NO_TAIL, share: tuple[int, int] = (0, 1)
) -> Iterator[Windows]:
    """The batches of steps ``start``..``steps`` - 1, or a ``share`` of each, as :class:`StepBatches` has it.

    Faults of worker processes become a DataError that says what to change.
    """
    loader = DataLoader(
        TrainingImages(split, config, tail),
        batch_sampler=StepBatches(len(split), config.batch_size, steps, config.seed, start, tail.repeats, share),
        collate_fn=_Collate(_AHEAD),
        num_workers=config.workers,
        prefetch_factor=_AHEAD if config.workers else None,
        multiprocessing_context=config.start_method if config.workers else None,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),  # else it draws from the random numbers of the model
    )
    try:
        yield from loader
    except DataError as error:  # from a worker it arrives with the worker's traceback before it
        raise DataError(str(error).strip().splitlines()[-1].removeprefix("cocolvis.errors.DataError: ")) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) and "shared memory" not in str(error):
            raise
        raise DataError(
            f"a loader process died ({str(error).splitlines()[0]}): memory or shared memory ran out;"
            f" try --workers {config.workers // 2} or a smaller --batch-size or --crop"
        ) from None


class _Collate:
    """Items to :class:`Windows`. A loader process writes them into shared memory that it uses again.

    New shared memory would have to be cleared by the system, page by page, which costs up to half of decoding a picture. A
    process begins a batch when the trainer has asked for the one ``ahead`` before it, which is then in use at the most; the
    memory of still earlier ones is free.
    """

    def __init__(self, ahead: int):
        self._turns = ahead + 2
        self._turn = 0
        self._buffers: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def __call__(self, items: list[tuple]) -> Windows:
        pixels, labels, places, ids, taking = zip(*items, strict=True)
        classes = None if taking[0] is None else torch.from_numpy(np.stack(taking))
        self._turn = (self._turn + 1) % self._turns
        return Windows(
            self._flat(pixels, torch.uint8), self._flat(labels, torch.int16), list(places), torch.tensor(ids), classes
        )

    def _flat(self, parts: Sequence[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        """The values of arrays, one after another."""
        flat = self._empty(sum(part.size for part in parts), dtype)
        array, at = flat.numpy(), 0
        for part in parts:
            array[at : at + part.size].reshape(part.shape)[...] = part
            at += part.size
        return flat

    def _empty(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        if get_worker_info() is None:
            return torch.empty(size, dtype=dtype)
        kept = self._buffers.get((self._turn, dtype))
        if kept is None or len(kept) < size:
            kept = self._buffers[self._turn, dtype] = torch.empty(size * 5 // 4, dtype=dtype).share_memory_()
        return kept[:size]


def _start_worker(number: int) -> None:
    """One thread a process. Ctrl-C and SIGTERM to the whole group are the training process's to answer: it ends the loader.

    After SIGTERM a loader process lives on for as long as a step may take, and no longer, so that none is left behind.
    """
    cv2.setNumThreads(0)
    keep_freed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
