"""Training batches of stored features: crops begin at multiples of the coarsest stride, and labels are cropped with them."""

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Split
from cocolvis.storage.samples import Sample
from ess.config import Config
from ess.data.batches import RawFeatures
from ess.data.feature_store import SplitFeatures
from ess.data.loader import TrainingItems, loaded, to_labels
from ess.data.longtail import NO_TAIL, Tail


class TrainingFeatures(TrainingItems):
    """Crops of stored features: item (index, draw) is image ``index`` at a position that ``draw`` determines."""

    def __init__(self, split: Split, features: SplitFeatures, config: Config, tail: Tail = NO_TAIL):
        super().__init__(split, config, tail)
        self._features = features

    def _read(self, items: Sequence[tuple[int, int]]) -> RawFeatures:
        samples = [self._split[index] for index, _ in items]
        crops = [self._crop(sample, *item) for sample, item in zip(samples, items, strict=True)]
        features = [np.stack(maps) for maps in zip(*(maps for maps, _ in crops), strict=True)]
        labels = to_labels(np.stack([mask for _, mask in crops]))
        ids = np.array([sample.image_id for sample in samples], np.int64)
        return RawFeatures(features, labels, ids, self._classes(samples))

    def _check(self, index: int) -> None:
        self._features.of(self._split[index], index)

    def _crop(self, sample: Sample, index: int, draw: int) -> tuple[list[np.ndarray], np.ndarray]:
        """(the features in a random window, each (C, h, w); the mask in it, (size, size) uint16)."""
        rng, size, strides = (
            np.random.default_rng([self._config.seed, draw]),
            self._config.crop,
            self._features.store.maps.strides,
        )
        row, column = self._rare_pixel(sample, rng) or (None, None)
        maps = self._features.of(sample, index)
        height, width = (side * strides[0] for side in maps[0].shape[1:])
        top = window_start(rng, height, size, max(strides), row)
        left = window_start(rng, width, size, max(strides), column)
        shown = sample.mask[top : top + size, left : left + size]
        mask = np.zeros((size, size), shown.dtype)
        mask[: shown.shape[0], : shown.shape[1]] = shown
        return [cut(each, top // s, left // s, size // s) for each, s in zip(maps, strides, strict=True)], mask


def window_start(rng: np.random.Generator, side: int, size: int, stride: int, contained: int | None = None) -> int:
    """Where a window of ``size`` pixels begins along a padded side: at a random multiple of ``stride``.

    The window does not leave the side unless it is longer, and contains the pixel ``contained``. All lengths are multiples of
    ``stride``.
    """
    last = max(0, side - size) // stride
    if contained is None:
        return stride * int(rng.integers(0, last + 1))
    first = max(0, -(-(contained - size + 1) // stride))
    return stride * int(rng.integers(first, min(last, contained // stride) + 1))


def cut(features: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """The window (C, size, size) of features (C, h, w). Outside of them it repeats their border, so that the statistics of
    BatchNorm stay those of pictures.
    """
    window = features[:, top : top + size, left : left + size]
    missing = [(0, size - length) for length in window.shape[1:]]
    return np.pad(window, ((0, 0), *missing), mode="edge")


def feature_batches(
    split: Split,
    features: SplitFeatures,
    config: Config,
    steps: int,
    start: int = 0,
    tail: Tail = NO_TAIL,
    share: tuple[int, int] = (0, 1),
) -> Generator[RawFeatures, None, None]:
    """:func:`ess.data.loader.training_batches` with stored features: the same images in the same steps."""
    with closing(loaded(TrainingFeatures(split, features, config, tail), config, steps, start, tail, share)) as batches:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
