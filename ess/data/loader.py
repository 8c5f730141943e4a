"""A data set as torch batches; which images a step sees, and how they are augmented, depends only on seed and step."""

import atexit
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from cocolvis.errors import DamagedImage, DataError
from cocolvis.memory import keep_freed_memory
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.samples import Sample
from cocolvis.text import one_line
from ess.config import Config
from ess.data.batches import AHEAD, RawBatch, SharedBuffers, attach_pixels
from ess.data.damage import replace_damaged, with_advice
from ess.data.longtail import NO_TAIL, Tail
from ess.data.transforms import Crop, color_jitter, random_crop
from ess.stopping import ignore_requests, requests_held

_FITS_INT16 = 2**15
"""The largest class id whose label an int16 holds."""

_SIGNS_OF_EXHAUSTION = ("DataLoader worker", "shared memory", "Too many open files", "ancdata")
"""Parts of torch's messages when a loader process has died, or when something it sent cannot be opened."""


def to_labels(mask: np.ndarray) -> np.ndarray:
    """uint16 class ids of any shape, 0 = unlabelled, to labels 0..C-1, -1 = ignored. No other function does this mapping.

    Labels are int16, or int32 if one of them is above 32,767.
    """
    if mask.max(initial=0) > _FITS_INT16:
        return mask.astype(np.int32) - 1
    return (mask - np.uint16(1)).view(np.int16)


def to_class_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) integer labels 0..C-1 to (H, W) uint16 class ids 1..C: the inverse of :func:`to_labels`."""
    return (labels + 1).astype(np.uint16)


class TrainingItems(TorchDataset):
    """Crops of the images of a split: item (index, draw) is image ``index`` under the random numbers of ``draw``.

    Read a batch at a time. With the setting ``skip_damaged``, another image replaces a damaged one; which one follows from the
    draw.
    """

    def __init__(self, split: Split, config: Config, tail: Tail = NO_TAIL):
        self._split = split
        self._config = config
        self._rarity, self._fully_annotated = tail.rarity, tail.fully_annotated

    def __len__(self) -> int:
        return len(self._split)

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Any:
        """A batch, or the error that the training process raises; torch would send a traceback instead."""
        try:
            return self._read_around_damage(items)
        except DataError as error:
            return error
        except (OSError, MemoryError) as error:
            return DataError(f"the loader cannot continue: {one_line(error)}; try fewer --workers or a smaller --batch-size")

    def _read_around_damage(self, items: Sequence[tuple[int, int]]) -> Any:
        try:
            return self._read(items)
        except DamagedImage as error:
            if not self._config.skip_damaged:
                raise with_advice(error) from None
        sound, damaged = replace_damaged(self._split, items, self._config.seed, self._check)
        return self._read(sound)._replace(damaged=damaged)

    def _read(self, items: Sequence[tuple[int, int]]) -> Any:
        raise NotImplementedError

    def _check(self, index: int) -> None:
        """Raise DamagedImage if :meth:`_read` cannot use an image."""
        raise NotImplementedError

    def _rare_pixel(self, sample: Sample, rng: np.random.Generator) -> tuple[int, int] | None:
        """The (row, column) that a class-aware crop contains; None for other crops."""
        if self._rarity is not None and rng.random() < self._config.class_crop:
            return pixel_of_a_rare_class(sample.mask, self._rarity, rng)
        return None

    def _classes(self, samples: Sequence[Sample]) -> np.ndarray | None:
        """(B, C) bool, the classes in the softmax of each image; None if all are."""
        if self._fully_annotated is None:
            return None
        return np.stack([known_classes(sample.runs.classes, sample.neg, self._fully_annotated) for sample in samples])


class TrainingImages(TrainingItems):
    """Augmented crops of pictures."""

    def __init__(self, split: Split, config: Config, tail: Tail = NO_TAIL):
        super().__init__(split, config, tail)
        self._buffers = SharedBuffers()

    def _read(self, items: Sequence[tuple[int, int]]) -> RawBatch:
        """Each stage handles all images before the next stage begins, which keeps its code and tables in the CPU's caches."""
        samples = [self._split[index] for index, _ in items]
        rngs = [np.random.default_rng([self._config.seed, draw]) for _, draw in items]
        crops = [self._crop(sample, rng) for sample, rng in zip(samples, rngs, strict=True)]
        runs = [sample.runs.window(crop.rows, crop.columns) for sample, crop in zip(samples, crops, strict=True)]
        buffer, start = self._buffers.reserve(3 * sum(crop.area for crop in crops)), 0
        for sample, rng, crop in zip(samples, rngs, crops, strict=True):
            pixels = self._pixels(sample, rng, crop)
            buffer[start : start + pixels.size].reshape(pixels.shape)[...] = pixels
            start += pixels.size
        labels = to_labels(np.concatenate([classes for classes, _ in runs]))
        lengths = np.concatenate([lengths for _, lengths in runs])
        ids = np.array([sample.image_id for sample in samples], np.int64)
        return RawBatch(*self._buffers.hand_over(), labels, lengths, crops, ids, self._classes(samples))

    def _check(self, index: int) -> None:
        self._split[index].image()

    def _crop(self, sample: Sample, rng: np.random.Generator) -> Crop:
        config, around = self._config, self._rare_pixel(sample, rng)
        scale = (config.scale_min, config.scale_max)
        return random_crop(sample.size, rng, size=config.crop, scale=scale, flip=config.flip, around=around)

    def _pixels(self, sample: Sample, rng: np.random.Generator, crop: Crop) -> np.ndarray:
        pixels = sample.image()[crop.rows, crop.columns]
        return color_jitter(pixels, rng, self._config.color_jitter) if self._config.color_jitter else pixels


def pixel_of_a_rare_class(mask: np.ndarray, rarity: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """(row, column) of a random pixel of a random class of ``mask``, drawn with probability proportional to ``rarity`` (C,).

    ``mask`` is (H, W) uint16, 0 = unlabelled. None if no pixel is labelled.
    """
    present = np.flatnonzero(np.bincount(mask.reshape(-1))[1:])
    if not len(present):
        return None
    chosen = rng.choice(present, p=rarity[present] / rarity[present].sum())
    pixels = np.flatnonzero(mask == chosen + 1)
    row, column = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
    return row, column


def known_classes(present: np.ndarray, absent: np.ndarray, fully_annotated: np.ndarray) -> np.ndarray:
    """(C,) bool, the classes whose presence in or absence from an image is known.

    ``present`` (r,) are the class ids of the image's runs, repeated ones and 0 = unlabelled included; ``absent`` (n,) are class
    ids 1..C that were verified to be absent; ``fully_annotated`` (C,) bool marks classes that are annotated in every image.
    """
    known = np.append(False, fully_annotated)
    known[present] = known[absent] = True
    return known[1:]


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The batches of steps ``start``..``steps`` - 1: a fresh permutation each epoch, incomplete batches dropped.

    With ``repeats`` (N,) >= 1, an epoch contains image i floor(r_i) or ceil(r_i) times, r_i times on average. ``share`` (r, n)
    is the r-th of n equal parts of each batch, for one of n processes. Together they see the same batches as one process.
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
        epoch, order = -1, np.empty(0, np.int64)
        for step in self._steps:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = self._order(np.random.default_rng([self._seed, epoch]))
            first = (step % per_epoch) * self._batch_size
            chosen = order[first : first + self._batch_size]
            rank, processes = self._share
            places = range(rank * self._batch_size // processes, (rank + 1) * self._batch_size // processes)
            yield [(int(chosen[place]), step * self._batch_size + place) for place in places]

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """The images of an epoch. One random offset decides all repeats, so that every epoch has the same length."""
        if self._repeats is None:
            return rng.permutation(self._images)
        ends = np.append(0, np.cumsum(self._repeats)) * (epoch_length(self._images, self._repeats) / self._repeats.sum())
        counts = np.diff(np.floor(ends.round(9) + rng.random()).astype(np.int64))
        return rng.permutation(np.repeat(np.arange(self._images), counts))


def epoch_length(images: int, repeats: np.ndarray | None) -> int:
    """The number of images in an epoch, repeated ones included."""
    return images if repeats is None else math.ceil(repeats.sum() - 1e-6)


def training_split(dataset: Dataset, config: Config) -> Split:
    """The split "train".

    Raises DataError if it has less than a batch of images, no labelled pixel, or fewer than two classes.
    """
    split = dataset.split("train")
    if len(dataset.vocabulary) < 2:
        raise DataError(
            f"{dataset.folder}: has {len(dataset.vocabulary)} class, and every pixel would be of it; training needs 2 or more:"
            " make its surroundings a class as well"
        )
    if len(split) < config.batch_size:
        raise DataError(
            f"{dataset.folder}: split train has {len(split)} images, but a batch has {config.batch_size};"
            f" choose --batch-size {max(len(split), 1)} or less"
        )
    if not len(split.present()[0]):
        raise DataError(f"{dataset.folder}: no pixel of split train has a class, so there is nothing to learn from")
    return split


def training_batches(
    split: Split, config: Config, steps: int, start: int = 0, tail: Tail = NO_TAIL, share: tuple[int, int] = (0, 1)
) -> Generator[RawBatch, None, None]:
    """The batches of steps ``start``..``steps`` - 1, or a ``share`` of each as in :class:`StepBatches`.

    Raises DataError for any fault in any process. Closing the generator ends the loader processes.
    """
    with closing(loaded(TrainingImages(split, config, tail), config, steps, start, tail, share)) as batches:
        yield from attach_pixels(batches)


def loaded(
    items: TrainingItems, config: Config, steps: int, start: int, tail: Tail, share: tuple[int, int]
) -> Generator[Any, None, None]:
    """What ``items`` gives for the batches of steps ``start``..``steps`` - 1: batches, or a DataError for the caller to raise.

    Raises DataError if a loader process fails. Closing the generator ends these processes.
    """
    workers = processes(config)
    loader = DataLoader(
        items,
        batch_sampler=StepBatches(len(items), config.batch_size, steps, config.seed, start, tail.repeats, share),
        collate_fn=_unchanged,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        multiprocessing_context=config.start_method if workers else None,
        worker_init_fn=_start_worker,
    )
    try:
        with requests_held():
            batches = iter(loader)
        with _workers_ended(batches):
            yield from batches
    except OSError as error:
        raise DataError(f"the loader cannot continue: {one_line(error)}; try --workers {workers // 2}") from None
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_EXHAUSTION):
            raise
        lines = str(error).strip().splitlines()
        reason = one_line(lines[-1] if lines[0].startswith("Caught") else lines[0])  # with a traceback or without one
        raise DataError(
            f"a loader process died ({reason}): memory, shared memory or file handles ran out;"
            f" try --workers {workers // 2} or a smaller --batch-size or --crop"
        ) from None


def processes(config: Config) -> int:
    """The number of loader processes, which a training has chosen by its device if the settings leave it open."""
    if isinstance(config.workers, str):
        raise ValueError(f"workers is {config.workers!r}: the number is not chosen yet")
    return config.workers


def _unchanged(batch: Any) -> Any:
    """A collate function that changes nothing, because :class:`TrainingItems` returns whole batches."""
    return batch


def _start_worker(number: int) -> None:
    """Prepare a loader process: one thread, and no reaction to Ctrl-C and SIGTERM, which the training process handles."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    ignore_requests()


@contextmanager
def _workers_ended(batches: Any) -> Iterator[None]:
    """End the processes of a loader's iterator, at the latest when Python exits, because they ignore the SIGTERM that it sends.

    A loader process whose training process was killed notices that within seconds.
    """

    def end() -> None:
        batches._shutdown_workers()  # makes the loader forget its processes: otherwise it would report their death
        for worker in batches._workers:
            worker.kill()

    if not hasattr(batches, "_workers"):  # the training process loads
        yield
        return
    atexit.register(end)
    try:
        yield
    finally:
        atexit.unregister(end)
        end()
