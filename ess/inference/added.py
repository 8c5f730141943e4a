"""Classes added to a trained run without training: each the mean pixel embedding of a few examples, in RUN/added.json."""

import logging
from collections.abc import Sequence

import msgspec
import numpy as np
import torch

from cocolvis.disk.files import read_json, sha256, write_json
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
    """A class made of examples.

    ``embedding`` is the mean over their ``pixels``, ``radius`` how far from it a pixel of the class may lie (:func:`claim`),
    ``examples`` the pictures' files; ``checkpoint`` is the SHA-256 of the weights that gave the embeddings.
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
    """The classes added to a run, oldest first; a DataError when added.json is malformed."""
    path = run.folder / FILE
    if not path.exists():
        return []
    try:
        content = msgspec.convert(read_json(path), _File)
    except msgspec.ValidationError as error:
        raise DataError(f"{path}: malformed: {error}; remove it, and add the classes again") from None
    if (content.format, content.version) != (FORMAT, VERSION):
        raise DataError(f"{path}: format and version are {(content.format, content.version)}, expected {(FORMAT, VERSION)}")
    for new in content.classes:
        if len(new.embedding) != run.config.dim or not np.isfinite([*new.embedding, new.radius]).all():
            wrong = f"the embedding of {new.name!r} is not {run.config.dim} finite numbers"
            raise DataError(f"{path}: malformed: {wrong}; remove it, and add the classes again")
    extended(run.vocabulary, content.classes)
    return content.classes


def usable_classes(run: Run, checkpoint: Checkpoint) -> list[AddedClass]:
    """The added classes that were made with this checkpoint; the log warns of others, whose embeddings mean nothing here."""
    added = read_added(run)
    digest = weights_digest(checkpoint) if added else ""
    stale = [new.name for new in added if new.checkpoint != digest]
    if stale:
        log.warning(
            "%s: %s made with another checkpoint than %s and left out; add again with `ess add-class`",
            run.folder / FILE,
            ", ".join(stale) + (" were" if len(stale) > 1 else " was"),
            checkpoint.folder.name,
        )
    return [new for new in added if new.checkpoint == digest]


def weights_digest(checkpoint: Checkpoint | None) -> str:
    """The SHA-256 of a checkpoint's weights; "" for a model that comes from none."""
    return sha256(checkpoint.folder / "model.safetensors") if checkpoint else ""


def extended(vocabulary: Vocabulary, added: Sequence[AddedClass]) -> Vocabulary:
    """A vocabulary with added classes as C + 1, C + 2, ...; a DataError where a name is taken."""
    if not added:
        return vocabulary
    infos = [ClassInfo(i, new.name, "thing", None, None, {}) for i, new in enumerate(added, len(vocabulary) + 1)]
    return Vocabulary([*vocabulary.classes, *infos], vocabulary.ignored)


def store(run: Run, new: AddedClass) -> None:
    """Put a class into added.json, for the one of the same name or at the end."""
    others = read_added(run)
    places = [place for place, other in enumerate(others) if nfc(other.name) == nfc(new.name)]
    _write(run, [new if place in places else other for place, other in enumerate(others)] + ([] if places else [new]))


def remove(run: Run, name: str) -> None:
    """Take a class out of added.json; those behind it move up by one id. A DataError when it is not there."""
    others = read_added(run)
    kept = [other for other in others if nfc(other.name) != nfc(name)]
    if len(kept) == len(others):
        known = ", ".join(other.name for other in others) or "none"
        raise DataError(f"{run.folder}: has no added class {name!r}; it has {known}")
    _write(run, kept)


def claim(model: SegmentationModel, output: torch.Tensor, labels: torch.Tensor, added: Sequence[AddedClass]) -> torch.Tensor:
    """Labels (H, W) int64 after added classes took theirs; ``output`` (D, H, W) are the embeddings of the pixels.

    A pixel becomes an added class when that is nearer than its nearest trained class, and within the class's radius: anything
    unlike the examples stays what it was. The radius decides: trained class embeddings lie apart from the pixels' (softmax asks
    only that the right one be the nearest), so that a mean of pixels is nearer to most pixels than these are.
    """
    pixels, classes = output.flatten(1).T, model.classes()
    labels, shape = labels.flatten(), labels.shape
    nearest = scores(pixels, classes[labels], model.distance)
    for label, new in enumerate(added, len(classes)):
        found = scores(pixels, torch.tensor(new.embedding, device=pixels.device), model.distance)
        taken = (found < nearest) & (found <= new.radius)
        labels = torch.where(taken, label, labels)
        nearest = torch.where(taken, found, nearest)
    return labels.view(shape)


def scores(pixels: torch.Tensor, classes: torch.Tensor, distance: str) -> torch.Tensor:
    """How far pixels (P, D) lie from classes (D,) or (P, D): (P,), smaller is nearer: squared, or the negative product."""
    return -(pixels * classes).sum(dim=1) if distance == "cosine" else (pixels - classes).square().sum(dim=1)


def _write(run: Run, classes: Sequence[AddedClass]) -> None:
    extended(run.vocabulary, classes)
    content = _File(FORMAT, VERSION, list(classes))
    write_json(run.folder / FILE, msgspec.to_builtins(content))
