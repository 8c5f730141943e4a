"""Makes a class from a few examples, without training."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from cocolvis.text import nfc
from ess.device import explain_out_of_memory
from ess.inference.added import AddedClass, distances
from ess.inference.predictor import Predictor

_Example = tuple[str, np.ndarray, np.ndarray]
"""The file, image (H, W, 3) uint8 RGB, and (H, W) bool where the class is."""

_PIXELS = 2**16
"""How many distances are computed at a time."""


def make_class(
    name: str,
    predictor: Predictor,
    examples: Iterable[_Example],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> AddedClass:
    """The class shown by examples (file, image (H, W, 3) uint8, (H, W) bool where the class is); nothing is trained.

    Its embedding is the mean over the pixels of the class, of unit length if the model's embeddings are. Its radius separates
    these pixels from the other pixels of the examples best, by IoU. The network sees each example with the class twice, so that
    the embeddings of one example are in memory at a time; ``progress`` is called with the number of examples seen the first
    time. Raises DataError if no pixel or every pixel is marked, the name is taken, the head is dense, or memory runs out.
    """
    model, predictor = predictor.model, predictor.without_added_classes()
    if model.class_embeddings is None:
        raise DataError("the run has a dense head, which has no embeddings: a class can only be added to an embedding model")
    if not (name and name.isprintable()) or nfc(name) in [nfc(c.name) for c in predictor.vocabulary]:
        raise DataError(f"the new class's name is {name!r}: expected a printable name that no class of the run has")
    digest = predictor.checkpoint.weights_digest() if predictor.checkpoint else ""
    with explain_out_of_memory("add the class from fewer or smaller examples, or on --device cpu"):
        shown, embedding_D = _mean(predictor, examples, progress)
        if not shown or all(marked_HW.all() for _, _, marked_HW in shown):
            how = "all pixels of the examples are" if shown else "no pixel of the examples is"
            raise DataError(f"{how} marked as {name!r}; expected masks with the class and with something else")
        distances_P = np.concatenate([_distances(predictor, image, embedding_D) for _, image, _ in shown])
        marked_P = np.concatenate([marked_HW.ravel() for _, _, marked_HW in shown])
        radius = _best_radius(distances_P, marked_P)
    return AddedClass(nfc(name), embedding_D.tolist(), radius, [file for file, _, _ in shown], int(marked_P.sum()), digest)


def _mean(
    predictor: Predictor, examples: Iterable[_Example], progress: Callable[[int], None]
) -> tuple[list[_Example], torch.Tensor]:
    """The examples that show the class, and the mean embedding (D,) float32 of its pixels on the CPU, NaN without any."""
    model, shown, pixels = predictor.model, list[_Example](), 0
    total_D = torch.zeros(model.classes().shape[1], dtype=torch.float64)
    for done, example in enumerate(examples, 1):
        marked_HW = example[2]
        if marked_HW.any():
            marks_P = torch.from_numpy(marked_HW.ravel()).to(predictor.device, torch.float32)
            total_D += (predictor.outputs([example[1]])[0].flatten(1) @ marks_P).cpu()
            pixels += int(marked_HW.sum())
            shown.append(example)
        progress(done)
    mean_D = (total_D / pixels).float()
    return shown, mean_D if model.normalize is None else F.normalize(mean_D, dim=0)


def _distances(predictor: Predictor, image: np.ndarray, embedding_D: torch.Tensor) -> np.ndarray:
    """The distances (P,) float32 of an image's pixels from an embedding."""
    pixels_PD, embedding_D = predictor.outputs([image])[0].flatten(1).T, embedding_D.to(predictor.device)
    parts = [distances(part, embedding_D, predictor.model.distance) for part in pixels_PD.split(_PIXELS)]
    return torch.cat(parts).cpu().numpy()


def _best_radius(distances_P: np.ndarray, marked_P: np.ndarray) -> float:
    """The radius r for which the pixels at distances <= r have the largest IoU with the marked pixels."""
    order = distances_P.argsort()
    right = marked_P[order].cumsum()
    taken = np.arange(1, len(order) + 1)
    return float(distances_P[order[(right / (marked_P.sum() + taken - right)).argmax()]])
