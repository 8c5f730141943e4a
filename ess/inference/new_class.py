"""A class made of examples, without training."""

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from cocolvis.text import nfc
from ess.inference.added import AddedClass, scores, weights_digest
from ess.inference.predictor import Predictor


def make_class(
    name: str,
    predictor: Predictor,
    examples: Iterable[tuple[str, np.ndarray, np.ndarray]],
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> AddedClass:
    """The class that examples (file, image (H, W, 3) uint8, (H, W) bool where the class is) show; nothing is trained.

    Its embedding is the mean over their pixels, of unit length where the model's are; its radius the one that finds the class
    best in the examples themselves, by IoU: their other pixels tell where it ends. A DataError when no pixel is marked or all
    are, the name is taken, or the head is dense.
    """
    model, predictor = predictor.model, predictor.trained()
    if model.class_embeddings is None:
        raise DataError("the run has a dense head, which has no embeddings: a class can be added to an embedding model alone")
    if not (name and name.isprintable()) or nfc(name) in [nfc(c.name) for c in predictor.vocabulary]:
        raise DataError(f"the new class's name is {name!r}: expected a printable name that no class of the run has")
    pixels, marks, files = [], [], []
    for done, (file, image, marked) in enumerate(examples, 1):
        if marked.any():
            pixels.append(predictor.outputs([image])[0].flatten(1).T)
            marks.append(torch.from_numpy(marked.ravel()).to(predictor.device))
            files.append(file)
        progress(done)
    if not files or all(marked.all() for marked in marks):
        how = "all pixels of the examples are" if files else "no pixel of the examples is"
        raise DataError(f"{how} marked as {name!r}; expected masks with the class and with something else")
    pixels, marked = torch.cat(pixels), torch.cat(marks)
    embedding = pixels[marked].mean(dim=0)
    if model.normalize is not None:
        embedding = F.normalize(embedding, dim=0)
    radius = _best_radius(scores(pixels, embedding, model.distance), marked)
    return AddedClass(nfc(name), embedding.tolist(), radius, files, int(marked.sum()), weights_digest(predictor.checkpoint))


def _best_radius(scores: torch.Tensor, marked: torch.Tensor) -> float:
    """The r for which {scores <= r} has the largest IoU with the ``marked`` pixels; both are (P,)."""
    order = scores.argsort()
    right = marked[order].long().cumsum(dim=0)
    taken = torch.arange(1, len(order) + 1, device=order.device)
    return scores[order][(right / (marked.sum() + taken - right)).argmax()].item()
