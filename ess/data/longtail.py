"""Settings for a long tail of classes: repeated images, crops around rare classes, biases of logits, weights of classes."""

from typing import NamedTuple

import numpy as np
import torch

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Split
from cocolvis.vocabulary import Vocabulary
from ess.config import Config
from ess.losses import cross_entropy


class Frequencies(NamedTuple):
    """How often each of C classes occurs in a split of N = ``size`` images: ``pixels`` (C,) and ``images`` (C,), both int64.

    ``rows`` and ``labels`` pair each image, 0..N-1, with each class that occurs in it, 0..C-1.
    """

    pixels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    size: int

    @classmethod
    def of(cls, split: Split, classes: int) -> "Frequencies":
        """The frequencies in a split, from the tables of its shards; no mask is decoded."""
        rows, ids, pixels = split.present()
        labels = ids.astype(np.int64) - 1
        sums = np.zeros(classes, np.int64)
        np.add.at(sums, labels, pixels.astype(np.int64))
        return cls(sums, np.bincount(labels, minlength=classes), rows, labels, len(split))


def repeat_factors(frequencies: Frequencies, threshold: float) -> np.ndarray:
    """How often each image is seen in an epoch, (N,) float64 >= 1: max over its classes of max(1, sqrt(t / f(c))).

    f(c) is the share of images with class c. This is LVIS's repeat-factor sampling (Gupta et al., CVPR 2019, section 5).
    """
    shares = frequencies.images / max(1, frequencies.size)
    with np.errstate(divide="ignore"):
        factors = np.maximum(1, np.sqrt(threshold / shares))
    repeats = np.ones(frequencies.size)
    np.maximum.at(repeats, frequencies.rows, factors[frequencies.labels])
    return repeats


def class_bias(frequencies: Frequencies, tau: float) -> torch.Tensor:
    """tau * log prior (C,) float32, the bias of logit adjustment (Menon et al., ICLR 2021, equation 10).

    The prior is a class's share of all pixels, with one pixel added to each class so that no prior is 0.
    """
    pixels = frequencies.pixels + 1
    return torch.from_numpy(tau * np.log(pixels / pixels.sum())).float()


def class_weight(frequencies: Frequencies, power: float) -> torch.Tensor:
    """Weights (C,) float32 proportional to pixels ** -power, scaled so that their mean over all pixels is 1.

    With power 1 every class has the same total weight; 0.5 is half way. Classes without a pixel weigh 0.
    """
    pixels = frequencies.pixels.astype(np.float64)
    weights = np.where(pixels > 0, np.maximum(pixels, 1) ** -power, 0.0)
    return torch.from_numpy(weights * pixels.sum() / max((weights * pixels).sum(), 1e-300)).float()


def rarity(frequencies: Frequencies) -> np.ndarray:
    """How rare each class is, (C,) float64: 1 / the number of images with it, 1 for classes in no image."""
    return 1 / np.maximum(frequencies.images, 1)


def fully_annotated_classes(vocabulary: Vocabulary) -> np.ndarray:
    """(C,) bool, True for classes annotated in every image, False for those of LVIS, which are not (Gupta et al., section 3).

    Raises DataError if all classes are annotated in every image.
    """
    fully_annotated = np.array(["lvis" not in c.sources for c in vocabulary])
    if fully_annotated.all():
        raise DataError("federated is for data sets with LVIS classes; this one was annotated in full: leave out --federated")
    return fully_annotated


class Tail(NamedTuple):
    """How a training treats the long tail of classes; None for settings that are off.

    ``repeats`` (N,) are :func:`repeat_factors`, ``rarity`` (C,) float64 decides which class a crop is placed around,
    ``fully_annotated`` (C,) bool are :func:`fully_annotated_classes`, ``bias`` and ``weight`` (C,) float32 are
    :func:`class_bias` and :func:`class_weight`.
    """

    repeats: np.ndarray | None = None
    rarity: np.ndarray | None = None
    fully_annotated: np.ndarray | None = None
    bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None


NO_TAIL = Tail()


def tail_of(split: Split, vocabulary: Vocabulary, config: Config) -> Tail:
    """The treatment that the settings describe; raises DataError if their loss cannot use it."""
    loss = cross_entropy.chosen(config.loss, len(vocabulary))
    for name in ("logit_adjustment", "class_weight_power", "federated"):
        if getattr(config, name) and loss != "exact":
            named = cross_entropy.named(config.loss, len(vocabulary))
            raise DataError(f"{name} is for the loss over all classes, but loss is {named}; choose --loss exact")
    fully_annotated = fully_annotated_classes(vocabulary) if config.federated else None
    if not (config.repeat_threshold or config.class_crop or config.logit_adjustment or config.class_weight_power):
        return Tail(fully_annotated=fully_annotated)
    frequencies = Frequencies.of(split, len(vocabulary))
    return Tail(
        repeat_factors(frequencies, config.repeat_threshold) if config.repeat_threshold else None,
        rarity(frequencies) if config.class_crop else None,
        fully_annotated,
        class_bias(frequencies, config.logit_adjustment) if config.logit_adjustment else None,
        class_weight(frequencies, config.class_weight_power) if config.class_weight_power else None,
    )
