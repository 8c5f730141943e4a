"""A built data set as torch batches: which images a step sees, and how they are augmented, follows from seed and step alone."""

import atexit
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
from ess.data.batches import AHEAD, Packer, Parcel, Window, Windows, unpack
from ess.data.damage import advised, replaced
from ess.data.longtail import NO_TAIL, Tail
from ess.data.transforms import Placement, color_jitter, random_placement
from ess.stopping import ignore_requests, requests_held

_FITS_INT16 = 2**15
"""The largest class id whose label an int16 holds."""

_OUT_OF_SOMETHING = ("DataLoader worker", "shared memory", "Too many open files", "ancdata")
"""How torch words it that a loader process is gone, or that what it sent cannot be opened."""


def to_labels(mask: np.ndarray) -> np.ndarray:
    """uint16 class ids, 0 = unlabelled, to labels: 0..C-1, -1 = ignored; of any shape. The only place that maps them.

    They are int16, or int32 where there is one beyond 32,767.
    """
    if mask.max(initial=0) > _FITS_INT16:
        return mask.astype(np.int32) - 1
    return (mask - np.uint16(1)).view(np.int16)


def to_class_ids(labels: np.ndarray) -> np.ndarray:
    """(H, W) integer labels 0..C-1 to (H, W) uint16 class ids 1..C: the inverse of :func:`to_labels`."""
    return (labels + 1).astype(np.uint16)


class TrainingImages(TorchDataset):
    """Augmented crops: item (index, draw) is image ``index`` under the random numbers of ``draw``. Read a batch at a time.

    With the setting ``skip_damaged`` another image, which follows from the draw, takes the place of a damaged one.
    """

    def __init__(self, split: Split, config: Config, tail: Tail = NO_TAIL):
        self._split = split
        self._config = config
        self._rarity, self._asked = tail.rarity, tail.asked
        self._packer = Packer()

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Parcel | DataError:
        """The windows of a batch, or the fault that the training process shall raise: torch would send a traceback."""
        try:
            return self._around_damage(items)
        except DataError as error:
            return error
        except (OSError, MemoryError) as error:
            return DataError(f"the loader cannot go on: {one_line(error)}; try fewer --workers or a smaller --batch-size")

    def _around_damage(self, items: Sequence[tuple[int, int]]) -> Parcel:
        try:
            return self._parcel(items)
        except DamagedImage as error:
            if not self._config.skip_damaged:
                raise advised(error) from None
        sound, damaged = replaced(self._split, items, self._config.seed)
        return self._parcel(sound)._replace(damaged=damaged)

    def _parcel(self, items: Sequence[tuple[int, int]]) -> Parcel:
        """Each stage for all of the images, for then the processor's cache holds what it needs."""
        samples = [self._split[index] for index, _ in items]
        rngs = [np.random.default_rng([self._config.seed, draw]) for _, draw in items]
        windows = [self._window(sample, rng) for sample, rng in zip(samples, rngs, strict=True)]
        room, at = self._packer.room(3 * sum(window.place.area for window in windows)), 0
        for sample, rng, window in zip(samples, rngs, windows, strict=True):
            pixels = self._pixels(sample, rng, window.place)
            room[at : at + pixels.size].reshape(pixels.shape)[...] = pixels
            at += pixels.size
        return self._packer.pack(windows)

    def _window(self, sample: Sample, rng: np.random.Generator) -> Window:
        config = self._config
        around, taking = None, None
        if self._rarity is not None and rng.random() < config.class_crop:
            around = pixel_of_a_rare_class(sample.mask, self._rarity, rng)
        if self._asked is not None:
            taking = taking_part(sample.runs.classes, sample.neg, self._asked)
        scale = (config.scale_min, config.scale_max)
        place = random_placement(sample.size, rng, crop=config.crop, scale=scale, flip=config.flip, around=around)
        classes, lengths = sample.runs.window(place.rows, place.columns)
        return Window(place, sample.image_id, taking, to_labels(classes), lengths)

    def _pixels(self, sample: Sample, rng: np.random.Generator, place: Placement) -> np.ndarray:
        pixels = sample.image()[place.rows, place.columns]
        return color_jitter(pixels, rng, self._config.color_jitter) if self._config.color_jitter else pixels


def pixel_of_a_rare_class(mask: np.ndarray, rarity: np.ndarray, rng: np.random.Generator) -> tuple[int, int] | None:
    """(row, column) of a random pixel of a class that is drawn from those in ``mask`` with probability ~ ``rarity`` (C,).

    ``mask`` (H, W) uint16, 0 = unlabelled; None where nothing is labelled.
    """
    present = np.flatnonzero(np.bincount(mask.reshape(-1))[1:])
    if not len(present):
        return None
    chosen = rng.choice(present, p=rarity[present] / rarity[present].sum())
    places = np.flatnonzero(mask == chosen + 1)
    row, column = divmod(int(places[rng.integers(len(places))]), mask.shape[1])
    return row, column


def taking_part(shown: np.ndarray, neg: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(C,) bool, the classes whose presence in an image is known: those ``shown``, in ``neg``, and where ``asked``.

    ``shown`` (r,) class ids of the whole image, each as often as it likes, 0 = unlabelled; ``neg`` (n,) class ids 1..C verified
    absent; ``asked`` (C,) bool, True for the classes that are annotated in every image.
    """
    known = np.append(False, asked)
    known[shown] = known[neg] = True
    return known[1:]


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
    """The split "train"; a DataError when it has no full batch, no labelled pixel, or no two classes to tell apart."""
    split = dataset.split("train")
    if len(dataset.vocabulary) < 2:
        raise DataError(
            f"{dataset.folder}: has {len(dataset.vocabulary)} class, and every pixel would be of it; training takes 2 or more:"
            " make what surrounds it a class, too"
        )
    if len(split) < config.batch_size:
        raise DataError(
            f"{dataset.folder}: split train has {len(split)} images, a batch takes {config.batch_size};"
            f" choose --batch-size {max(len(split), 1)} or less"
        )
    if not len(split.present()[0]):
        raise DataError(f"{dataset.folder}: in split train no pixel has a class; there is nothing to learn from")
    return split


def training_batches(
    split: Split, config: Config, steps: int, start: int = 0, tail: Tail = NO_TAIL, share: tuple[int, int] = (0, 1)
) -> Iterator[Windows]:
    """The batches of steps ``start``..``steps`` - 1, or a ``share`` of each, as :class:`StepBatches` has it.

    Faults become a DataError of one line, whichever process they come from, which says what to change. The processes end with
    the iterator.
    """
    loader = DataLoader(
        TrainingImages(split, config, tail),
        batch_sampler=StepBatches(len(split), config.batch_size, steps, config.seed, start, tail.repeats, share),
        collate_fn=_as_it_is,
        num_workers=config.workers,
        prefetch_factor=AHEAD if config.workers else None,
        multiprocessing_context=config.start_method if config.workers else None,
        worker_init_fn=_start_worker,
    )
    try:
        with requests_held():
            parcels = iter(loader)
        with _ended(parcels):
            yield from unpack(parcels)
    except OSError as error:
        raise DataError(f"the loader cannot go on: {one_line(error)}; try --workers {config.workers // 2}") from None
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _OUT_OF_SOMETHING):
            raise
        lines = str(error).strip().splitlines()
        reason = one_line(lines[-1] if lines[0].startswith("Caught") else lines[0])  # with a traceback or without one
        raise DataError(
            f"a loader process died ({reason}): memory, shared memory or file handles ran out;"
            f" try --workers {config.workers // 2} or a smaller --batch-size or --crop"
        ) from None


def _as_it_is(parcel: Parcel) -> Parcel:
    return parcel


def _start_worker(number: int) -> None:
    """One thread a process. Ctrl-C and SIGTERM to the whole group are the training process's to answer: it ends the loader."""
    cv2.setNumThreads(0)
    keep_freed_memory()
    ignore_requests()


@contextmanager
def _ended(parcels: Iterator[Parcel]) -> Iterator[None]:
    """Leave no loader process behind, even at the exit of Python, which ends processes by the SIGTERM that these ignore.

    A loader process whose trainer was killed notices that within seconds.
    """

    def end() -> None:
        parcels._shutdown_workers()  # the loader's own way, which forgets the processes: else it would report their death
        for worker in parcels._workers:
            worker.kill()

    if not hasattr(parcels, "_workers"):  # the training process loads
        yield
        return
    atexit.register(end)
    try:
        yield
    finally:
        atexit.unregister(end)
        end()
