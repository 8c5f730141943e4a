"""Chooses tau of logit adjustment for a trained model, by the mIoU of sampled pixels of training images; trains nothing.

The network sees each image once. The pixels are then classified with every tau, in the same way as predictions are, and only
the counts of pixels are kept: they need the same few megabytes for any number of images, and a calibration that was interrupted
continues from them.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cocolvis.ahead import ahead
from cocolvis.disk.files import is_absent, sweep, write_aside
from cocolvis.errors import DamagedImage, DataError
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset, Split
from ess.checkpoint import Run
from ess.data.damage import with_advice
from ess.data.loader import to_labels
from ess.data.longtail import Frequencies, class_bias
from ess.evaluation.metrics import Confusion
from ess.inference.calibration import Calibration, Trial, store_calibration
from ess.inference.predictor import Predictor
from ess.inference.views import Inference

TAUS = tuple(n / 20 for n in range(31))
"""The values of tau that are tried by default."""

LARGEST = 100.0
"""The largest absolute value of tau; more would only decide by the prior."""

COUNTS = "calibration.counts.safetensors"
"""The file in a run that holds the counts of an unfinished calibration."""

PIXELS = 2000
"""The most labelled pixels of an image that are counted."""

_SHARE = 4
"""One of this many training images is used."""

_SEED = 0
"""Determines images and pixels."""

_SAVED_EVERY = 32
"""How many images are counted between two saves."""

log = logging.getLogger("ess")


def calibrate(
    run: Run,
    predictor: Predictor,
    dataset: Dataset,
    *,
    taus: Sequence[float] = TAUS,
    limit: int | None = None,
    damaged: list[DamagedImage] | None = None,
    progress: Progress = ignore,
) -> Calibration:
    """Choose tau for the checkpoint of ``predictor``, and store it in the run; ties go to the value closest to 0.

    The prior of a class is its share of the pixels of the split "train", as in the loss's logit adjustment. The mIoU of each
    tau, and of 0, is that of at most :data:`PIXELS` random labelled pixels of each image of a random quarter of the split, or
    of ``limit`` images of it. Images are seen whole, without the predictor's views and added classes. ``damaged`` and
    ``progress`` are those of :func:`ess.evaluation.evaluate.predictions`.

    If it is interrupted in any way, the images counted so far are kept, and a call with the same arguments continues; the
    damaged images that the earlier calls left out are appended to ``damaged`` too. Raises DataError if the data set has another
    vocabulary, or if no pixel has a class.
    """
    taus = _checked(taus, run, dataset)
    split, checkpoint = dataset.split("train"), predictor.checkpoint
    assert checkpoint is not None  # a predictor of a run has one
    scale = 1.0 if predictor.model.class_embeddings is None else run.temperature(checkpoint)
    biases_GC = torch.tensor(taus, dtype=torch.float32)[:, None] * _favour(split, scale, dataset)
    indices = calibration_images(len(split), limit)
    digest, data = checkpoint.weights_digest(), dataset.index["digest"]
    whole = Inference(precision=predictor.inference.precision)
    made_from = [digest, data, taus, scale, whole.precision, len(indices), PIXELS, _SHARE, _SEED]
    file = _CountsFile(run.folder / COUNTS, json.dumps(made_from))
    predictor = Predictor(predictor.model, run.vocabulary, predictor.device, whole)
    counts = _count(predictor, biases_GC.to(predictor.device), split, indices, file, damaged, progress)
    if not counts.images:
        first = f"; the first damaged one: {damaged[0]}" if damaged else ""
        raise DataError(
            f"{dataset.folder}: none of the {len(indices)} training images to calibrate on has a labelled pixel{first}"
        )
    trials = [Trial(tau, _miou(pixels_3C)) for tau, pixels_3C in zip(taus, counts.pixels, strict=True)]
    best = min(range(len(taus)), key=lambda n: (-trials[n].miou, abs(taus[n])))
    found = Calibration(
        tau=taus[best],
        bias=biases_GC[best].tolist(),
        trials=trials,
        images=counts.images,
        pixels=int(counts.pixels[0, 0].sum()),
        dataset=data,
        step=checkpoint.step,
        checkpoint=digest,
    )
    store_calibration(run, found)
    file.remove()
    return found


def _checked(taus: Sequence[float], run: Run, dataset: Dataset) -> list[float]:
    """The values of tau and 0, ascending; raises DataError if one is out of range, or if the vocabularies differ."""
    values = sorted({0.0, *map(float, taus)})
    if not all(abs(tau) <= LARGEST for tau in values):
        raise DataError(f"the values of tau are {', '.join(f'{tau:g}' for tau in taus)}: expected -{LARGEST:g}..{LARGEST:g}")
    if dataset.vocabulary.digest != run.vocabulary.digest:
        raise DataError(
            f"{dataset.folder}: has another vocabulary than the run was trained with; calibrate on a data set with it"
        )
    return values


def calibration_images(images: int, limit: int | None = None) -> list[int]:
    """The ascending indices of a random quarter of the images of a split, or of ``limit`` images of this quarter."""
    quarter = math.ceil(images / _SHARE)
    order = np.random.default_rng(_SEED).permutation(images)
    return sorted(order[: min(quarter, limit or quarter)].tolist())


def sampled_pixels(labels: np.ndarray, index: int) -> np.ndarray:
    """Ascending places (P,) of at most :data:`PIXELS` random labelled pixels in the flattened ``labels`` of image ``index``."""
    places = np.flatnonzero(labels.reshape(-1) >= 0)
    if len(places) <= PIXELS:
        return places
    return np.sort(np.random.default_rng([_SEED, index]).choice(places, PIXELS, replace=False))


def _favour(split: Split, scale: float, dataset: Dataset) -> torch.Tensor:
    """The bias (C,) float32 of tau 1: the mean log prior minus the log prior, divided by ``scale``, the T of logits.

    Raises DataError if no pixel of the split has a class.
    """
    frequencies = Frequencies.of(split, len(dataset.vocabulary))
    if not frequencies.pixels.any():
        raise DataError(f"{dataset.folder}: no pixel of split train has a class, so there is nothing to calibrate with")
    log_prior_C = class_bias(frequencies, 1.0)
    return (log_prior_C.mean() - log_prior_C) / scale


class _Counts(NamedTuple):
    """Images done, those of them that had labelled pixels, and (G, 3, C) int64 of :class:`Confusion` for each of G taus.

    ``damaged`` are the messages about those of the images done that were left out.
    """

    done: int
    images: int
    pixels: torch.Tensor
    damaged: tuple[str, ...] = ()


class _Sampled(NamedTuple):
    """An image (H, W, 3) uint8 RGB, the places (P,) of sampled pixels in it, and their labels (P,)."""

    image: np.ndarray
    places: np.ndarray
    labels: np.ndarray


def _count(
    predictor: Predictor,
    biases_GC: torch.Tensor,
    split: Split,
    indices: Sequence[int],
    file: "_CountsFile",
    damaged: list[DamagedImage] | None,
    progress: Progress,
) -> _Counts:
    """Count the sampled pixels of all images with every bias, from where the file ends; always write there what is done.

    Counts that leave out damaged images are not continued if ``damaged`` is None.
    """
    none = _Counts(0, 0, torch.zeros(len(biases_GC), 3, biases_GC.shape[1], dtype=torch.int64))
    counts = file.read() or none
    if damaged is not None:
        damaged.extend(map(DamagedImage, counts.damaged))
    elif counts.damaged:
        counts = none
    saved = counts.done
    progress(counts.done, len(indices))
    try:
        for found in ahead(lambda index: _load(split, index), indices[counts.done :], threads=1):
            if isinstance(found, DamagedImage):
                if damaged is None:
                    raise with_advice(found)
                damaged.append(found)
                counts = counts._replace(done=counts.done + 1, damaged=(*counts.damaged, str(found)))
            else:
                some = len(found.places) > 0
                pixels = _counts_of(predictor, biases_GC, found) if some else 0
                counts = _Counts(counts.done + 1, counts.images + some, counts.pixels + pixels, counts.damaged)
            progress(counts.done, len(indices))
            if counts.done - saved >= _SAVED_EVERY:
                file.write(counts)
                saved = counts.done
    finally:
        if counts.done > saved:
            file.write(counts)
    return counts


def _load(split: Split, index: int) -> _Sampled | DamagedImage:
    try:
        sample = split[index]
        labels = to_labels(sample.mask)
        places = sampled_pixels(labels, index)
        return _Sampled(sample.image(), places, labels.reshape(-1)[places])
    except DamagedImage as error:
        return error


def _counts_of(predictor: Predictor, biases_GC: torch.Tensor, sampled: _Sampled) -> torch.Tensor:
    """The counts (G, 3, C) of an image's sampled pixels with each bias; a bias of zeros is none, as in predictions."""
    output_DN = predictor.outputs([sampled.image])[0].flatten(1)
    output_1D1P = output_DN[:, torch.from_numpy(sampled.places).to(predictor.device)][None, :, None]
    counts = []
    for bias_C in biases_GC:
        confusion = Confusion(len(bias_C))
        labels_P = predictor.model.classify(output_1D1P, bias_C if bias_C.any() else None)[0, 0]
        confusion.update(sampled.labels, labels_P)
        counts.append(confusion.pixels)
    return torch.stack(counts)


def _miou(pixels_3C: torch.Tensor) -> float:
    confusion = Confusion(pixels_3C.shape[1])
    confusion.pixels = pixels_3C
    return float(np.nanmean(confusion.iou()))


class _CountsFile:
    """The counts of an unfinished calibration; ``made_from`` describes everything that they depend on."""

    def __init__(self, path: Path, made_from: str):
        self._path = path
        self._made_from = made_from

    def read(self) -> _Counts | None:
        """The counts, or None if there are none, or none that can be read and were made from the same."""
        if is_absent(self._path):
            return None
        try:
            with safe_open(self._path, "pt") as file:
                about = file.metadata() or {}
                if about.get("made_from") != self._made_from:
                    return None
                done, images = file.get_tensor("done").tolist()
                return _Counts(done, images, file.get_tensor("pixels"), tuple(json.loads(about["damaged"])))
        except (OSError, SafetensorError, ValueError) as error:
            log.warning("%s: cannot be read (%s); the calibration begins again", self._path, error)
            return None

    def write(self, counts: _Counts) -> None:
        """Replace the file, whole or not at all."""
        tensors = {"done": torch.tensor([counts.done, counts.images]), "pixels": counts.pixels}
        about = {"made_from": self._made_from, "damaged": json.dumps(counts.damaged)}
        try:
            with write_aside(self._path) as aside:
                save_file(tensors, aside, metadata=about)
        except SafetensorError as error:  # a full disk, too
            raise DataError(f"{self._path}: cannot be written: {error}") from error

    def remove(self) -> None:
        """Remove the file, and temporary files that killed processes left."""
        self._path.unlink(missing_ok=True)
        sweep(self._path.parent, lambda name: name == self._path.name)
