"""What a data set's class frequencies make of training: which images and crops are seen, the logits' bias, classes' weights."""

from typing import NamedTuple

import numpy as np
import torch

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Split
from cocolvis.vocabulary import Vocabulary
from ess.config import Config
from ess.losses import cross_entropy


class Frequencies(NamedTuple):
    """Of a split with N images and C classes: pixels (C,) and images (C,) of each class int64, and where classes occur.

    ``rows`` and ``labels`` are pairs of an image's place 0..N-1 and a class index 0..C-1 that occurs in it.
    """

    pixels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    size: int

    @classmethod
    def of(cls, split: Split, classes: int) -> "Frequencies":
        """Read from the tables of the shards; no mask is decoded."""
        rows, ids, pixels = split.present()
        labels = ids.astype(np.int64) - 1
        sums = np.zeros(classes, np.int64)
        np.add.at(sums, labels, pixels.astype(np.int64))
        return cls(sums, np.bincount(labels, minlength=classes), rows, labels, len(split))


def repeat_factors(frequencies: Frequencies, threshold: float) -> np.ndarray:
    """How often each image is seen in an epoch, (N,) float64 >= 1: max over its classes of max(1, sqrt(t / f(c))).

    f(c) is the share of images with class c; repeat-factor sampling as LVIS has it (Gupta et al., CVPR 2019, section 5).
    """
    shares = frequencies.images / max(1, frequencies.size)
    with np.errstate(divide="ignore"):
        factors = np.maximum(1, np.sqrt(threshold / shares))
    found = np.ones(frequencies.size)
    np.maximum.at(found, frequencies.rows, factors[frequencies.labels])
    return found


def class_bias(frequencies: Frequencies, tau: float) -> torch.Tensor:
    """tau * log prior (C,) float32, the bias of logit adjustment (Menon et al., ICLR 2021, equation 10).

    The prior is a class's share of all pixels, each class having one more than there are, so that none is 0.
    """
    pixels = frequencies.pixels + 1
    return torch.from_numpy(tau * np.log(pixels / pixels.sum())).float()


def class_weight(frequencies: Frequencies, power: float) -> torch.Tensor:
    """Weights (C,) float32 proportional to pixels ** -power, such that those of all pixels are 1 on average.

    Power 1 makes every class count the same in sum, 0.5 is half way. Classes without a pixel weigh 0.
    """
    pixels = frequencies.pixels.astype(np.float64)
    weights = np.where(pixels > 0, np.maximum(pixels, 1) ** -power, 0.0)
    return torch.from_numpy(weights * pixels.sum() / max((weights * pixels).sum(), 1e-300)).float()


def rarity(frequencies: Frequencies) -> np.ndarray:
    """How rare each class is, (C,) float64: 1 / images with it, 1 where there are none."""
    return 1 / np.maximum(frequencies.images, 1)


def always_asked(vocabulary: Vocabulary) -> np.ndarray:
    """(C,) bool, False for the classes that annotators did not look for in every image: LVIS's (Gupta et al., section 3).

    A DataError when there are none.
    """
    asked = np.array(["lvis" not in c.sources for c in vocabulary])
    if asked.all():
        raise DataError("federated is for data sets with LVIS classes; this one was annotated in full: leave --federated away")
    return asked


class Tail(NamedTuple):
    """What the settings make of the frequencies; None where a setting is off."""

    repeats: np.ndarray | None = None
    rarity: np.ndarray | None = None
    asked: np.ndarray | None = None
    bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None


NO_TAIL = Tail()


def tail_of(split: Split, vocabulary: Vocabulary, config: Config) -> Tail:
    """All of it as ``config`` asks for; a DataError where a loss cannot use it."""
    loss = cross_entropy.chosen(config.loss, len(vocabulary))
    for name in ("logit_adjustment", "class_weight_power", "federated"):
        if getattr(config, name) and loss != "exact":
            found = repr(loss) if config.loss == loss else f"{config.loss!r}, which is {loss!r} for {len(vocabulary)} classes"
            raise DataError(f"{name} is for the loss over all classes, but loss is {found}; choose --loss exact")
    asked = always_asked(vocabulary) if config.federated else None
    if not (config.repeat_threshold or config.class_crop or config.logit_adjustment or config.class_weight_power):
        return Tail(asked=asked)
    found = Frequencies.of(split, len(vocabulary))
    return Tail(
        repeat_factors(found, config.repeat_threshold) if config.repeat_threshold else None,
        rarity(found) if config.class_crop else None,
        asked,
        class_bias(found, config.logit_adjustment) if config.logit_adjustment else None,
        class_weight(found, config.class_weight_power) if config.class_weight_power else None,
    )
