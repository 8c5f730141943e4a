"""How good a model is on a split of a data set: one confusion matrix over all its images, each at its own size."""

from collections.abc import Callable

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from ess.data import to_labels
from ess.metrics import Confusion
from ess.predict import Predictor


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    limit: int | None = None,
    published: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict:
    """The scores of :meth:`ess.metrics.Confusion.summary` on a split, or on its first ``limit`` images.

    A DataError when the data set has another vocabulary than the model, or nothing to evaluate on.
    """
    if dataset.vocabulary.digest != predictor.vocabulary.digest:
        raise DataError(f"{dataset.folder}: has another vocabulary than the model was trained with; build the data set it was")
    images = dataset.split(split)
    total = min(len(images), limit or len(images))
    if not total:
        raise DataError(f"{dataset.folder}: split {split!r} has no images to evaluate on; choose another --split")
    confusion = Confusion(len(dataset.vocabulary))
    for index in range(total):
        sample = images[index]
        truth = to_labels(sample.mask)
        confusion.update(truth, to_labels(predictor(sample.image())))
        progress(index + 1, total)
    return confusion.summary([c.group for c in dataset.vocabulary], published=published)
