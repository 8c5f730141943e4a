"""How good a model is on a split of a data set: one count of pixels by class over all its images, each at its own size."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cocolvis.ahead import ahead
from cocolvis.errors import DamagedImage, DataError
from cocolvis.storage.dataset import Dataset
from ess.data.damage import advised
from ess.data.loader import to_labels
from ess.evaluation.metrics import Confusion
from ess.inference.predictor import Predictor

_TRIED = 4
"""Images that are read to see whether an evaluation can begin, as many as it shows."""


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    limit: int | None = None,
    published: bool = False,
    skip_damaged: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """The scores of :func:`scores_of` on a split, or on its first ``limit`` images; a DataError when it has none."""
    damaged = [] if skip_damaged else None
    confusion = count(predictor, dataset, split=split, indices=first(dataset, split, limit), damaged=damaged, progress=progress)
    return scores_of(confusion, dataset, published=published, damaged=damaged or ())


def first(dataset: Dataset, split: str, limit: int | None = None) -> range:
    """The images to evaluate on; a DataError when the split has none."""
    images = len(dataset.split(split))
    if not images:
        raise DataError(f"{dataset.folder}: split {split!r} has no images to evaluate on; choose another --split")
    return range(min(images, limit or images))


def check_readable(dataset: Dataset, split: str, *, skip_damaged: bool = False) -> None:
    """A DataError, before hours of training, where a later evaluation on a split could not even begin.

    Its shards are opened, and the first images decoded; of these, damaged ones do no harm where they will be skipped.
    """
    try:
        images = dataset.split(split)
        if not len(images):
            raise DataError(f"{dataset.folder}: split {split} has no images")
        images.sizes()
        for index in range(min(_TRIED, len(images))):
            try:
                images[index].image()
            except DamagedImage as error:
                if not skip_damaged:
                    raise advised(error) from None
    except DataError as error:
        raise DataError(f"{error}; evaluations need this: mend it, or train without --eval-every") from None


def count(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    indices: Sequence[int],
    damaged: list[DamagedImage] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Confusion:
    """The pixels of some images of a split, by true and predicted class; several processes' counts add up.

    Damaged images are left out and added to ``damaged``; where that is None, the first one is raised. ``progress`` is called
    once for each image, whether it is counted or left out.

    Classes that were added to the model after its training do not take part. A DataError when the data set has another
    vocabulary than the model.
    """
    predictor = predictor.trained()
    if dataset.vocabulary.digest != predictor.vocabulary.digest:
        raise DataError(f"{dataset.folder}: has another vocabulary than the model was trained with; build the data set it was")
    images = dataset.split(split)

    def load(index: int) -> tuple[np.ndarray, np.ndarray] | DamagedImage:
        try:
            sample = images[index]
            return to_labels(sample.mask), sample.image()
        except DamagedImage as error:
            return error

    done = itertools.count(1)

    def sound() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for found in ahead(load, indices, threads=1):  # a split is read by one thread
            if not isinstance(found, DamagedImage):
                yield found
            elif damaged is None:
                raise advised(found)
            else:
                damaged.append(found)
                progress(next(done), len(indices))

    confusion = Confusion(len(dataset.vocabulary))
    for truth, _, prediction in predictor.stream(sound()):
        confusion.update(truth, to_labels(prediction))
        progress(next(done), len(indices))
    return confusion


def scores_of(confusion: Confusion, dataset: Dataset, *, published: bool = False, damaged: Sequence[DamagedImage] = ()) -> dict:
    """:meth:`Confusion.summary` with the frequency groups of the data set's vocabulary, and "skipped" images.

    A DataError when there are no others than the ``damaged`` ones.
    """
    if damaged and not confusion.images:
        raise DataError(f"none of the {len(damaged)} images to evaluate on can be read; the first: {damaged[0]}")
    scores = confusion.summary([c.group for c in dataset.vocabulary], published=published)
    return scores | {"skipped": len(damaged)}
