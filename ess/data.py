"""A built data set as torch batches: which images a step sees, and how they are augmented, follows from seed and step alone."""

import math
import signal
from collections.abc import Iterator

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from cocolvis.dataset import Dataset, Split
from cocolvis.errors import DataError
from cocolvis.memory import keep_freed
from ess.config import Config
from ess.transforms import random_crop

IGNORE_INDEX = -1
"""The label of unlabelled pixels, which no loss and no metric counts."""

_GRACE = 30
"""Seconds that a loader process outlives SIGTERM."""


def to_labels(mask: np.ndarray) -> np.ndarray:
    """(H, W) uint16 class ids, 0 = unlabelled, to (H, W) int16 labels: 0..C-1, -1 = ignored. The only place that maps them."""
    return mask.astype(np.int16) - 1


def to_class_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) integer labels 0..C-1 to (H, W) uint16 class ids 1..C: the inverse of :func:`to_labels`."""
    return (labels + 1).astype(np.uint16)


class TrainingImages(TorchDataset):
    """Augmented crops: item (index, draw) is image ``index`` under the random numbers of ``draw``.

    An item is (image (3, crop, crop) uint8, labels (crop, crop) int16, image id).
    """

    def __init__(self, split: Split, config: Config):
        self._split = split
        self._seed = config.seed
        self._augmentation = {"crop": config.crop, "scale": (config.scale_min, config.scale_max), "flip": config.flip}

    def __getitem__(self, item: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        index, draw = item
        sample = self._split[index]
        rng = np.random.default_rng([self._seed, draw])
        image, labels = random_crop(sample.image(), to_labels(sample.mask), rng, **self._augmentation)
        return torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(labels), sample.image_id


class StepBatches(Sampler[list[tuple[int, int]]]):
    """The batches of steps ``start``..``steps`` - 1: a fresh permutation each epoch, incomplete batches dropped.

    With ``repeats`` (N,) >= 1 an epoch has image i floor(r_i) or ceil(r_i) times, r_i times on average.
    """

    def __init__(self, images: int, batch_size: int, steps: int, seed: int, start: int = 0, repeats: np.ndarray | None = None):
        self._images = images
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
            yield [(int(index), step * self._batch_size + place) for place, index in enumerate(chosen)]

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
    split: Split, config: Config, steps: int, start: int = 0, repeats: np.ndarray | None = None
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The batches of steps ``start``..``steps`` - 1: images (B, 3, crop, crop) uint8, labels (B, crop, crop) int16, ids (B,).

    Faults of worker processes become a DataError that says what to change.
    """
    loader = DataLoader(
        TrainingImages(split, config),
        batch_sampler=StepBatches(len(split), config.batch_size, steps, config.seed, start, repeats),
        num_workers=config.workers,
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


def _start_worker(number: int) -> None:
    """One thread a process. Ctrl-C and SIGTERM to the whole group are the training process's to answer: it ends the loader.

    After SIGTERM a loader process lives on for as long as a step may take, and no longer, so that none is left behind.
    """
    cv2.setNumThreads(0)
    keep_freed()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
