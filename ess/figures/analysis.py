"""What the figures of a run share: its model and embeddings, the frequencies of classes, chosen images, and pixel counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np

from cocolvis.errors import DamagedImage, DataError
from cocolvis.inspection.stats import Counts, read_counts
from cocolvis.progress import Progress, ignore
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.samples import Sample
from cocolvis.vocabulary import Vocabulary
from ess.checkpoint import Run
from ess.evaluation.evaluate import image_indices, predictions
from ess.evaluation.metrics import LARGEST_MATRIX, Confusion
from ess.inference.predictor import Predictor

SHOWN = 4
"""How many images the figures show unless some are named."""

_LARGE = 0.01
"""The smallest share of an image that makes a class count in the choice of images."""


_DENSE = "the run was trained with --loss dense, which has no embeddings"

_EXTRA = "scikit-learn is not installed: pip install 'cocolvis-ess[figures]'"


class LeftOut(Exception):
    """A figure cannot be made; the message continues "because"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the figures show.

    ``only`` are the names of the figures to write, all of them by default. ``also`` are further runs for the curves of mIoU.
    ``baseline`` is the run whose predictions are drawn next to those of the run. ``sources`` are the annotation files that the
    data set was built from. ``predictor`` is the run if it was loaded before; its views are also those of the other runs.
    Otherwise ``checkpoint`` is loaded on ``device``. Scores are those of ``split``, of its first ``limit`` images if that is
    given. ``counts`` are the pixel counts of the run on these images, with a matrix unless there are very many classes, if they
    were made before; otherwise they are made if needed. ``images`` are the ids of the images that are shown, for which
    ``split`` is searched before the other splits; by default images are chosen. ``clusters`` is the number of clusters of class
    embeddings, and ``method`` one of METHODS for showing embeddings in two dimensions; both depend on ``seed``. With
    ``skip_damaged``, damaged images are left out of the scores.
    """

    only: Sequence[str] = ()
    also: Sequence[Run] = ()
    baseline: Run | None = None
    sources: Sources | None = None
    predictor: Predictor | None = None
    checkpoint: str = "newest"
    device: str = "auto"
    split: str = "val"
    limit: int | None = None
    counts: Confusion | None = None
    images: Sequence[int] = ()
    clusters: int = 70
    method: str = "tsne"
    seed: int = 0
    skip_damaged: bool = False


@dataclass(frozen=True, eq=False)
class Shown:
    """An image that figures show: ``picture`` (H, W, 3) uint8 RGB, ``prediction`` (H, W) class ids 1..C of the run."""

    sample: Sample
    picture: np.ndarray
    prediction: np.ndarray


class Analysis:
    """One run, and what its figures need; everything is computed on first use.

    ``dataset`` is None if there is none: :attr:`data` and all that follows from it then raise :class:`LeftOut`.

    Raises DataError if the data set or another run of the options has other classes, or if that run lacks the checkpoint.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset | None,
        options: Options,
        step: Callable[[str], None] = ignore,
        progress: Progress = ignore,
    ):
        if dataset is not None and dataset.vocabulary.digest != run.vocabulary.digest:
            raise DataError(f"{dataset.folder}: has another vocabulary than {run.folder}; analyse a run with its own data set")
        for other in [*options.also, *filter(None, [options.baseline])]:
            if other.vocabulary.digest != run.vocabulary.digest:
                raise DataError(f"{other.folder}: has other classes than {run.folder}; compare runs on the same classes")
            other.candidates(options.checkpoint)
        self.run = run
        self.options = options
        self.vocabulary: Vocabulary = run.vocabulary
        self.step = step
        self.progress = progress
        self._dataset = dataset

    @cached_property
    def predictor(self) -> Predictor:
        """The run without added classes."""
        given = self.options.predictor
        return self.predictor_of(self.run) if given is None else given.without_added_classes()

    def predictor_of(self, run: Run) -> Predictor:
        """A run at the checkpoint of the options, newest or best, and on their device."""
        given = self.options.predictor
        inference = None if given is None else given.inference
        return Predictor.from_run(run.folder, self.options.device, self.options.checkpoint, inference).without_added_classes()

    @cached_property
    def raw_embeddings(self) -> np.ndarray:
        """The class embeddings as they were trained: (C, d) float64. Raises LeftOut for a dense head."""
        learnt = self.predictor.model.class_embeddings
        if learnt is None:
            raise LeftOut(_DENSE)
        return learnt.detach().cpu().double().numpy()

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The class embeddings as predictions compare them: (C, d) float64, of unit length unless lengths matter."""
        raw = self.raw_embeddings
        if self.run.config.normalize == "none" and self.run.config.distance != "cosine":
            return raw
        return raw / np.maximum(np.linalg.norm(raw, axis=1, keepdims=True), 1e-12)

    @property
    def data(self) -> Dataset:
        """The data set."""
        if self._dataset is None:
            raise LeftOut("no data set was given")
        return self._dataset

    @cached_property
    def counts(self) -> dict[str, Counts]:
        """Split -> the pixels of each class in each image."""
        return read_counts(self.data)

    @cached_property
    def training_images(self) -> np.ndarray:
        """How many images of the split train show each class: (C,) int64."""
        if "train" not in self.data.splits:
            raise LeftOut("the data set has no split train, which gives the frequencies of the classes")
        return self.counts["train"].images_of(len(self.vocabulary))[1:]

    @cached_property
    def training_pixels(self) -> np.ndarray:
        """How many pixels of the split train each class has: (C,) int64."""
        return self.counts["train"].pixels_of(len(self.vocabulary))[1:]

    @cached_property
    def trained(self) -> np.ndarray:
        """The classes 0..C-1 with training images, because others have random embeddings; all if these are not known."""
        known = self._dataset is not None and "train" in self._dataset.splits
        return np.flatnonzero(self.training_images) if known else np.arange(len(self.vocabulary))

    @property
    def pictures(self) -> Dataset:
        """The data set, if it has pictures."""
        if self.data.index["options"].get("images") == "none" and self.data.image_root is None:
            raise LeftOut("the data set was built with --images none")
        return self.data

    @cached_property
    def confusion(self) -> Confusion:
        """The pixels of the split by true and predicted class, with a matrix unless there are very many classes."""
        if self.options.counts is not None:
            return self.options.counts
        return self.count(self.run, matrix=len(self.vocabulary) <= LARGEST_MATRIX)

    def count(self, run: Run, *, matrix: bool = False) -> Confusion:
        """The pixels of the split by true and predicted class of a run."""
        dataset, split = self.pictures, self.options.split
        predictor = self.predictor if run is self.run else self.predictor_of(run)
        self.step(f"predicting with {run.folder.name}")
        confusion = Confusion(len(self.vocabulary), matrix=matrix)
        how: dict[str, Any] = {"split": split, "indices": image_indices(dataset, split, self.options.limit)}
        damaged: list[DamagedImage] | None = [] if self.options.skip_damaged else None
        for image in predictions(predictor, dataset, **how, damaged=damaged, progress=self.progress):
            confusion.update(image.labels, image.prediction)
        if not confusion.images:
            raise LeftOut(f"none of the images of split {split} can be read")
        return confusion

    @cached_property
    def shown(self) -> list[Shown]:
        """The images that are shown, at least one."""
        dataset = self.pictures
        if self.options.images:
            samples = [dataset.find(image, self.options.split) for image in self.options.images]
            return [self._shown(sample) for sample in samples]
        split, found, fault = dataset.split(self.options.split), list[Shown](), None
        for row in busiest(self.counts[self.options.split]):
            try:
                found.append(self._shown(split[row]))
            except DamagedImage as error:
                fault = fault or error
            if len(found) == SHOWN:
                break
        if not found:
            raise LeftOut(f"no image of split {self.options.split} can be shown" + (f": {fault}" if fault else ""))
        return found

    def pixel_embeddings(self, image: Shown) -> np.ndarray:
        """The embeddings of the pixels of an image: (H, W, d) float32. Raises LeftOut for a dense head."""
        if self.predictor.model.class_embeddings is None:
            raise LeftOut(_DENSE)
        (output,) = self.predictor.outputs([image.picture])
        return output.permute(1, 2, 0).cpu().numpy()

    def _shown(self, sample: Sample) -> Shown:
        picture = sample.image()
        return Shown(sample, picture, self.predictor(picture))


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn, such as "cluster"; raises LeftOut if the package is not installed."""
    try:
        return import_module(f"sklearn.{module}")
    except ModuleNotFoundError:
        raise LeftOut(_EXTRA) from None


def busiest(counts: Counts) -> list[int]:
    """The images of a split with any class, those with the most classes of at least 1 % of their pixels first.

    Ties go to the image that comes first.
    """
    large = counts.pixels >= _LARGE * counts.areas[counts.rows]
    classes = np.bincount(counts.rows[large], minlength=len(counts.areas))
    ranked = np.argsort(-classes, kind="stable")
    return ranked[classes[ranked] > 0].tolist()
