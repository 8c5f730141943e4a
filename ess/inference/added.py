"""Classes added to a run without training: the file RUN/added.json, and the pixels that they get in a prediction."""

import logging
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from cocolvis.disk.alone import alone_in
from cocolvis.disk.files import is_absent, read_versioned, write_json
from cocolvis.errors import DataError
from cocolvis.text import nfc
from cocolvis.vocabulary import ClassInfo, Vocabulary
from ess.checkpoint import Checkpoint, Run
from ess.models.network import SegmentationModel

FILE = "added.json"
FORMAT = "ess-added"
VERSION = 1

log = logging.getLogger("ess")


class AddedClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A class made from examples by :func:`ess.inference.new_class.make_class`.

    ``embedding`` is the mean over the pixels of the class, ``pixels`` in number, in the pictures ``examples`` (their files).
    ``radius`` is the largest distance from it of a pixel of the class; with -inf, the class has an id and gets no pixel.
    ``checkpoint`` is the SHA-256 of the weights that gave the embeddings.
    """

    name: str
    embedding: list[float]
    radius: float
    examples: list[str]
    pixels: int
    checkpoint: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: str
    version: int
    classes: list[AddedClass]


def read_added(run: Run) -> list[AddedClass]:
    """The classes added to a run, oldest first; raises DataError if added.json is malformed."""
    path = run.folder / FILE
    if is_absent(path):
        return []
    try:
        added = msgspec.convert(read_versioned(path, FORMAT, VERSION), _File).classes
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: malformed: {error}; remove it, and add the classes again") from None
    for new in added:
        if len(new.embedding) != run.config.dim or not np.isfinite([*new.embedding, new.radius]).all():
            wrong = f"the embedding of {new.name!r} is not {run.config.dim} finite numbers"
            raise DataError(f"{path}: malformed: {wrong}; remove it, and add the classes again")
    extend_vocabulary(run.vocabulary, added)
    return added


def classes_for_checkpoint(run: Run, checkpoint: Checkpoint) -> list[AddedClass]:
    """The added classes of a run, oldest first, as predictions with a checkpoint use them.

    Those that were made with another checkpoint get no pixel: their radius is -inf, and the log warns about them. They keep
    their ids, so that no id ever means another class than `ess add-class --list` shows.
    """
    added = read_added(run)
    digest = checkpoint.weights_digest() if added else ""
    stale = [new.name for new in added if new.checkpoint != digest]
    if stale:
        log.warning(
            "%s: %s made with another checkpoint than %s and not predicted; add again with `ess add-class`",
            run.folder / FILE,
            ", ".join(stale) + (" were" if len(stale) > 1 else " was"),
            checkpoint.folder.name,
        )
    return [new if new.checkpoint == digest else msgspec.structs.replace(new, radius=-math.inf) for new in added]


def extend_vocabulary(vocabulary: Vocabulary, added: Sequence[AddedClass]) -> Vocabulary:
    """The vocabulary with added classes as C + 1, C + 2, ...; raises DataError if a name is already taken."""
    if not added:
        return vocabulary
    infos = [ClassInfo(i, new.name, "thing", None, None, {}) for i, new in enumerate(added, len(vocabulary) + 1)]
    return Vocabulary([*vocabulary.classes, *infos], vocabulary.ignored)


def store_class(run: Run, new: AddedClass) -> None:
    """Write a class to added.json, replacing the one with the same name, or at the end."""
    with alone_in(run.folder):
        classes = read_added(run)
        same = [index for index, other in enumerate(classes) if nfc(other.name) == nfc(new.name)]
        _write(run, [new if index in same else other for index, other in enumerate(classes)] + ([] if same else [new]))


def remove_class(run: Run, name: str) -> None:
    """Remove a class from added.json; the ids of later ones decrease by one. Raises DataError if there is no such class."""
    with alone_in(run.folder):
        classes = read_added(run)
        others = [other for other in classes if nfc(other.name) != nfc(name)]
        if len(others) == len(classes):
            known = ", ".join(other.name for other in classes) or "none"
            raise DataError(f"{run.folder}: has no added class {name!r}; it has {known}")
        _write(run, others)


def assign_added_classes(
    model: SegmentationModel,
    output_DHW: torch.Tensor,
    labels_HW: torch.Tensor,
    added: Sequence[AddedClass],
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The labels (H, W) int64 after pixels were assigned to added classes, given the embeddings of the pixels.

    A pixel is assigned to an added class if that is nearer than its nearest trained class and within the radius of the class;
    otherwise it keeps its label. The radius is needed because a mean of pixels is nearer to most pixels than any trained class
    embedding: softmax only requires that the right one is the nearest, so these are far from all pixels.

    ``bias`` (C,) is subtracted from the distances of the trained classes. An added class has a bias of 0.
    """
    pixels_PD, classes_CD = output_DHW.flatten(1).T, model.classes()
    labels_P = labels_HW.flatten()
    best_P = distances(pixels_PD, classes_CD[labels_P], model.distance)
    roots = bias is not None and model.distance == "euclidean"
    if bias is not None:
        best_P = (best_P.sqrt() if roots else best_P) - bias[labels_P]
    for label, new in enumerate(added, len(classes_CD)):
        embedding_D = torch.tensor(new.embedding, device=pixels_PD.device)
        distance_P = distances(pixels_PD, embedding_D, model.distance)
        score_P = distance_P.sqrt() if roots else distance_P
        taken_P = (score_P < best_P) & (distance_P <= new.radius)
        labels_P = torch.where(taken_P, label, labels_P)
        best_P = torch.where(taken_P, score_P, best_P)
    return labels_P.view(labels_HW.shape)


def distances(pixels_PD: torch.Tensor, classes: torch.Tensor, distance: str) -> torch.Tensor:
    """The distances (P,) of pixels from one class, (D,), or each from a class of its own, (P, D).

    Squared Euclidean distances, or negative products for ``distance`` "cosine"; smaller is nearer.
    """
    if distance == "cosine":
        return -(pixels_PD * classes).sum(dim=1)
    return (pixels_PD - classes).square().sum(dim=1)


def _write(run: Run, classes: Sequence[AddedClass]) -> None:
    extend_vocabulary(run.vocabulary, classes)
    content = _File(FORMAT, VERSION, list(classes))
    write_json(run.folder / FILE, msgspec.to_builtins(content))
