"""Evaluates a model on a split of a data set: counts pixels by class over all its images, each at its own size."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from cocolvis.ahead import ahead
from cocolvis.errors import DamagedImage, DataError
from cocolvis.progress import Progress, ignore
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.vocabulary import Vocabulary
from ess.data.damage import with_advice
from ess.data.feature_store import SplitFeatures
from ess.data.loader import to_labels
from ess.evaluation.metrics import Confusion
from ess.evaluation.picture_counts import PictureCounts
from ess.inference.predictor import Predictor

_CHECKED = 4
"""How many images are decoded to check that an evaluation can begin; as many as are shown later."""

Key = tuple[int, np.ndarray]
"""(image id, labels (H, W))."""

Example = tuple[Key, np.ndarray]
"""An image (H, W, 3) uint8 RGB with its key."""


Loaded = TypeVar("Loaded")


class Predicted(NamedTuple):
    """The labels of an image and the predicted ones, (H, W) each, as in :func:`ess.data.loader.to_labels`."""

    image_id: int
    labels: np.ndarray
    prediction: np.ndarray


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    limit: int | None = None,
    published: bool = False,
    skip_damaged: bool = False,
    oracle_classes: bool = False,
    progress: Progress = ignore,
) -> dict:
    """The scores of :func:`scores_of` on a split, or on its first ``limit`` images; raises DataError if it has none.

    ``oracle_classes`` and ``progress`` are those of :func:`predictions`.
    """
    damaged: list[DamagedImage] | None = [] if skip_damaged else None
    how: dict[str, Any] = {"indices": image_indices(dataset, split, limit), "oracle_classes": oracle_classes}
    images = predictions(predictor, dataset, split=split, **how, damaged=damaged, progress=progress)
    confusion = count_pixels(images, len(dataset.vocabulary))
    return scores_of(confusion, dataset, published=published, damaged=damaged or ())


def image_indices(dataset: Dataset, split: str, limit: int | None = None) -> range:
    """The indices of the images to evaluate on, at most ``limit``; raises DataError if the split has none."""
    images = len(dataset.split(split))
    if not images:
        raise DataError(f"{dataset.folder}: split {split!r} has no images to evaluate on; choose another --split")
    return range(min(images, limit or images))


def check_vocabulary(trained: Vocabulary, dataset: Dataset) -> None:
    """Raise DataError unless the data set has the vocabulary that a model was ``trained`` with."""
    if dataset.vocabulary.digest != trained.digest:
        raise DataError(
            f"{dataset.folder}: has another vocabulary than the model was trained with; build the data set with that one"
        )


def check_readable(dataset: Dataset, split: str, *, limit: int | None = None, skip_damaged: bool = False) -> None:
    """Raise DataError, before hours of training, if an evaluation on a split, or on its first ``limit`` images, must fail.

    Opens all shards of the split and decodes its first images. With ``skip_damaged``, some of these may be damaged, unless the
    evaluation would have no others.
    """
    try:
        images = dataset.split(split)
        if not len(images):
            raise DataError(f"{dataset.folder}: split {split} has no images")
        images.sizes()
        wanted, damaged = min(len(images), limit or len(images)), list[DamagedImage]()
        for index in range(min(_CHECKED, len(images))):
            try:
                images[index].image()
            except DamagedImage as error:
                if not skip_damaged:
                    raise with_advice(error) from None
                if index < wanted:
                    damaged.append(error)
        if len(damaged) == wanted:
            raise DataError(_none_of(damaged))
    except DataError as error:
        raise DataError(f"{error}; evaluations need this; repair it, or train with --eval-every none") from None


def count_pixels(images: Iterable[Predicted], classes: int) -> Confusion:
    """The pixels of images by true and predicted class, for ``classes`` C; counts of several processes can be added."""
    confusion = Confusion(classes)
    for image in images:
        confusion.update(image.labels, image.prediction)
    return confusion


def count_pictures(images: Iterable[Predicted], classes: int) -> PictureCounts:
    """The pixels of each image by true and predicted class, for ``classes`` C; only classes that occur need memory.

    Raises ValueError if an image comes twice.
    """
    parts = [PictureCounts.of(classes, {})]
    for image in images:
        confusion = count_pixels([image], classes)
        parts.append(PictureCounts.of(classes, {image.image_id: confusion.pixels.numpy()}))
    return PictureCounts.joined(parts)


def predictions(
    predictor: Predictor,
    dataset: Dataset,
    *,
    split: str = "val",
    indices: Sequence[int],
    damaged: list[DamagedImage] | None = None,
    features: SplitFeatures | None = None,
    oracle_classes: bool = False,
    progress: Progress = ignore,
) -> Iterator[Predicted]:
    """Yield some images of a split with their predictions, for any counts; images of equal padded size come together.

    Damaged images are left out and appended to ``damaged``; if that is None, the first one is raised. ``progress`` is called
    once for each image, after it was used or left out. With ``features``, stored ones are decoded in place of pictures. With
    ``oracle_classes``, only the classes in the truth of an image compete in its prediction. Classes that were added to the
    model after its training are not predicted. Raises DataError if the data set has another vocabulary than the model.
    """
    predictor = predictor.without_added_classes()
    check_vocabulary(predictor.vocabulary, dataset)
    done = itertools.count(1)

    def skip(error: DamagedImage) -> None:
        if damaged is None:
            raise with_advice(error)
        damaged.append(error)
        progress(next(done), len(indices))

    images, among = dataset.split(split), _classes_of if oracle_classes else None
    found = (
        ((key, prediction) for key, _, prediction in predictor.stream(_examples(images, indices, skip), among))
        if features is None
        else _decoded(predictor, images, features, indices, skip)
    )
    for (image_id, labels), prediction in found:
        yield Predicted(image_id, labels, to_labels(prediction))
        progress(next(done), len(indices))


def _classes_of(key: Key) -> np.ndarray:
    """The classes in the truth of an image: (n,), ascending."""
    labels = key[1]
    return np.unique(labels[labels >= 0])


def _examples(split: Split, indices: Sequence[int], skip: Callable[[DamagedImage], None]) -> Iterator[Example]:
    """Yield the undamaged images among ``indices`` with their labels."""

    def load(index: int) -> Example:
        sample = split[index]
        return (sample.image_id, to_labels(sample.mask)), sample.image()

    yield from _undamaged(load, indices, skip)


def _decoded(
    predictor: Predictor,
    split: Split,
    features: SplitFeatures,
    indices: Sequence[int],
    skip: Callable[[DamagedImage], None],
) -> Iterator[tuple[Key, np.ndarray]]:
    """Yield (key, predicted class ids (H, W)) of the images whose features are stored."""

    def load(index: int) -> tuple[Key, list[np.ndarray], tuple[int, int]]:
        sample = split[index]
        return (sample.image_id, to_labels(sample.mask)), features.of(sample, index), sample.size

    for key, maps, size in _undamaged(load, indices, skip):
        yield key, predictor.from_features(maps, size)


def _undamaged(load: Callable[[int], Loaded], indices: Sequence[int], skip: Callable[[DamagedImage], None]) -> Iterator[Loaded]:
    """Yield what is loaded for each index, the next ones meanwhile; ``skip`` is called for each image that is damaged."""

    def attempt(index: int) -> Loaded | DamagedImage:
        try:
            return load(index)
        except DamagedImage as error:
            return error

    for found in ahead(attempt, indices, threads=1):  # only one thread may read a split
        if isinstance(found, DamagedImage):
            skip(found)
        else:
            yield found


def scores_of(confusion: Confusion, dataset: Dataset, *, published: bool = False, damaged: Sequence[DamagedImage] = ()) -> dict:
    """:meth:`Confusion.summary` with the frequency groups of the data set's vocabulary; "skipped" is the number of ``damaged``.

    Raises DataError if all images were damaged.
    """
    if damaged and not confusion.images:
        raise DataError(_none_of(damaged))
    scores = confusion.summary([c.group for c in dataset.vocabulary], published=published)
    return scores | {"skipped": len(damaged)}


def _none_of(damaged: Sequence[DamagedImage]) -> str:
    return f"none of the {len(damaged)} images to evaluate on can be read; the first: {damaged[0]}"
