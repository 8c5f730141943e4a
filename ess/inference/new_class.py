"""Makes a class from a few examples, without training."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from cocolvis.text import nfc
from ess.inference.added import AddedClass, distances
from ess.inference.predictor import Predictor


def make_class(
    name: str,
    predictor: Predictor,
    examples: Iterable[tuple[str, np.ndarray, np.ndarray]],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> AddedClass:
    """The class shown by examples (file, image (H, W, 3) uint8, (H, W) bool where the class is); nothing is trained.

    Its embedding is the mean over the pixels of the class, of unit length if the model's embeddings are. Its radius separates
    these pixels from the other pixels of the examples best, by IoU. Raises DataError if no pixel or every pixel is marked, the
    name is taken, or the head is dense.
    """
    model, predictor = predictor.model, predictor.without_added_classes()
    if model.class_embeddings is None:
        raise DataError("the run has a dense head, which has no embeddings: a class can only be added to an embedding model")
    if not (name and name.isprintable()) or nfc(name) in [nfc(c.name) for c in predictor.vocabulary]:
        raise DataError(f"the new class's name is {name!r}: expected a printable name that no class of the run has")
    outputs_PD, marks_P, files = [], [], []
    for done, (file, image, marked_HW) in enumerate(examples, 1):
        if marked_HW.any():
            outputs_PD.append(predictor.outputs([image])[0].flatten(1).T)
            marks_P.append(torch.from_numpy(marked_HW.ravel()).to(predictor.device))
            files.append(file)
        progress(done)
    if not files or all(marks.all() for marks in marks_P):
        how = "all pixels of the examples are" if files else "no pixel of the examples is"
        raise DataError(f"{how} marked as {name!r}; expected masks with the class and with something else")
    pixels_PD, marked_P = torch.cat(outputs_PD), torch.cat(marks_P)
    embedding_D = pixels_PD[marked_P].mean(dim=0)
    if model.normalize is not None:
        embedding_D = F.normalize(embedding_D, dim=0)
    radius = _best_radius(distances(pixels_PD, embedding_D, model.distance), marked_P)
    digest = predictor.checkpoint.weights_digest() if predictor.checkpoint else ""
    return AddedClass(nfc(name), embedding_D.tolist(), radius, files, int(marked_P.sum()), digest)


def _best_radius(distances_P: torch.Tensor, marked_P: torch.Tensor) -> float:
    """The radius r for which the pixels at distances <= r have the largest IoU with the marked pixels."""
    order = distances_P.argsort()
    right = marked_P[order].long().cumsum(dim=0)
    taken = torch.arange(1, len(order) + 1, device=order.device)
    return distances_P[order][(right / (marked_P.sum() + taken - right)).argmax()].item()
