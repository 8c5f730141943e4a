"""What a data set's class frequencies make of training: how often images are seen, the logits' bias, the weights of classes."""

from typing import NamedTuple

import numpy as np
import torch

from cocolvis.dataset import Split
from cocolvis.errors import DataError
from ess.config import Config


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


class Tail(NamedTuple):
    """What the settings make of the frequencies; None where a setting is off."""

    repeats: np.ndarray | None = None
    bias: torch.Tensor | None = None
    weight: torch.Tensor | None = None


NO_TAIL = Tail()


def tail_of(split: Split, classes: int, config: Config, device: torch.device) -> Tail:
    """Repeat factors, bias and class weights as ``config`` asks for; a DataError where a loss cannot use them."""
    if (config.logit_adjustment or config.class_weight_power) and config.loss != "exact":
        names = "logit_adjustment and class_weight_power"
        raise DataError(f"{names} are for the loss over all classes, but loss is {config.loss!r}; choose --loss exact")
    if not (config.repeat_threshold or config.logit_adjustment or config.class_weight_power):
        return NO_TAIL
    found = Frequencies.of(split, classes)
    return Tail(
        repeat_factors(found, config.repeat_threshold) if config.repeat_threshold else None,
        class_bias(found, config.logit_adjustment).to(device) if config.logit_adjustment else None,
        class_weight(found, config.class_weight_power).to(device) if config.class_weight_power else None,
    )
