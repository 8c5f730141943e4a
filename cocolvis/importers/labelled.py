"""An import: the plan of its shards, and the work of one of them."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.building import numbering
from cocolvis.building.base import ROW_BYTES, ShardOptions, ShardPlan, ShardTask, read_picture
from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.importers.tree import LabelledImage, Tree
from cocolvis.masks import runlength
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.pictures.label_files import Labels, label_pixels, open_labels, to_classes
from cocolvis.storage.samples import Sample
from cocolvis.text import nfc

_SHARD_SIZE, _SHARD_BYTES = 500, 2**27
"""Images a shard, and bytes of pictures, that a shard has at most where nobody says otherwise: it is put together in memory."""

_SAMPLED, _SAFE = 24, 1.5
"""Masks of a split that are decoded to estimate the disk that all will take, and what is added to be on the safe side."""

_LISTED = 8
"""Unknown labels of an image that are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions(ShardOptions):
    """What decides the shards of an import, but for the input: ``dataset`` is what it was imported as.

    Without ``shard_size``, a shard has 500 images, or fewer where that would be more than 128 MiB of pictures.
    """

    shard_size: int | None = None
    dataset: str

    def __post_init__(self):
        if self.shard_size is not None:
            ShardOptions.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportTask(ShardTask):
    """A shard of an import; ``known`` maps what label files hold to class ids, 0 for what is ignored."""

    images: list[LabelledImage]
    options: ImportOptions
    known: Mapping[int, int]

    def sample(self, image: LabelledImage, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """The image with its mask; None, and a fault, where picture or label file is absent, broken or of another size.

        Pixels with an unknown label are unlabelled, and a fault. ``seen`` counts labels, too (:mod:`importers.numbering`).
        """
        opened = _labels(image, faults)
        if opened is None:
            return None
        expected, said = opened.size, "its mask is"
        content = read_picture(image, expected, said, faults, image.missing, decode=self.options.decode, seen=seen)
        if content is None:
            return None
        labels = _decoded(image, opened, faults)
        if labels is None:
            return None
        mask, found = to_classes(labels, self.known), label_pixels(labels)
        seen.update(numbering.keys(found, self.known))
        unknown = {label: count for label, count in found.items() if label not in self.known}
        if unknown:
            named = ", ".join(map(str, list(unknown)[:_LISTED])) + (", ..." if len(unknown) > _LISTED else "")
            reason = f"{image.labels_path}: {sum(unknown.values())} pixels have labels that no class has: {named}"
            faults.append(Fault("unknown label", "labels", image.image_id, None, reason))
        none = np.zeros(0, np.uint16)
        kept = content if self.options.images == "embed" else b""
        return Sample(image_id=image.image_id, path=image.path, runs=Runs.of(mask), content=kept, neg=none, not_exhaustive=none)


class ImportPlan(ShardPlan):
    """The plan of a tree that was found, a DataError where a split of it is empty; a row is one image."""

    def __init__(self, tree: Tree, options: ImportOptions):
        for split in options.splits:
            if not tree.images[split]:
                raise DataError(f"{tree.root}: split {split} has no images; check what lies there")
        self.tree, self.vocabulary, self.faults = tree, tree.vocabulary, list(tree.told.faults)
        self._sizes = {split: _sizes(tree.images[split]) for split in options.splits}
        self.images = {split: list(tree.images[split][: options.limit]) for split in options.splits}
        self.options, self._chooses_size = options, options.shard_size is None
        if options.shard_size is None:
            self.options = replace(options, shard_size=self._shard_size())

    def inputs(self) -> dict[str, str]:
        """Split -> SHA-256 over path and size of each picture and label file, in order; contents are not read for it."""
        return {split: _digest(self.tree.images[split], sizes) for split, sizes in self._sizes.items()}

    def files(self) -> dict[str, Any]:
        """A digest of the ids and names of all images, and the sizes of their pictures and label files, 0 for what is lost."""
        names = (f"{split}\t{_name(image)}\n" for split in self._sizes for image in self.tree.images[split])
        digest = hashlib.sha256("".join(names).encode()).hexdigest()
        return {"inputs": self.inputs(), "names": digest, "sizes": self._sizes}

    def resumed(self, begun: dict[str, Any], files: dict[str, Any] | None, unsettled: Collection[str]) -> bool | None:
        """The same images are the same build where files are lost since; those found again, or mended, must be of the
        ``unsettled`` shards. The size of shards stays what it was.
        """
        if files is None or files["names"] != self.files()["names"]:
            return ShardPlan.resumed(self, begun, files, unsettled)
        if self._chooses_size:
            self.options = replace(self.options, shard_size=begun["options"]["shard_size"])
        if self.description() | {"inputs": None} != begun | {"inputs": None}:
            return None
        noted = {split: files["sizes"].get(split, []) for split in self._sizes}
        if any(len(noted[split]) != len(sizes) for split, sizes in self._sizes.items()):
            return None
        found = False
        for split, sizes in self._sizes.items():
            for row, (size, then) in enumerate(zip(sizes, noted[split], strict=True)):
                other = [before for now, before in zip(size, then, strict=True) if now and now != before]
                if any(other) and self.shard_name(split, row) not in unsettled:
                    return None
                found |= bool(other)
                sizes[row] = tuple(now or before for now, before in zip(size, then, strict=True))
        return found

    def image_root(self) -> Path | None:
        """The data set's folder, where pictures are referred to."""
        return self.tree.root if self.options.images == "path" else None

    def task(self, name: str, split: str, rows: list[LabelledImage]) -> ImportTask:
        """The task of one shard."""
        known, digest = self.vocabulary.lookup(self.tree.source), self.vocabulary.digest
        return ImportTask(name=name, split=split, images=rows, options=self.options, vocabulary=digest, known=known)

    def row_bytes(self, split: str, rows: list[LabelledImage]) -> int:
        """Pictures by their files, masks by those of a few images."""
        looked_at = rows[:: max(1, len(rows) // _SAMPLED)]
        masks = len(rows) * sum(map(_mask_bytes, looked_at)) / len(looked_at)
        return len(rows) * ROW_BYTES + int(_SAFE * masks) + self._picture_bytes(rows)

    def row_name(self, row: LabelledImage) -> tuple[int, str]:
        """The image's id, and its path from the data set's folder."""
        return row.image_id, row.path

    def warm_up(self) -> None:
        """Compile or load the kernels that code masks, and those that look into pictures."""
        runlength.pixel_counts(*runlength.encode(np.zeros((1, 1), np.uint16)))
        if self.options.decode:
            encoded.warm_up()

    def _shard_size(self) -> int:
        count = sum(map(len, self.images.values()))
        return max(1, min(_SHARD_SIZE, _SHARD_BYTES * count // max(1, sum(map(self._picture_bytes, self.images.values())))))

    def _picture_bytes(self, rows: list[LabelledImage]) -> int:
        return sum(image.picture.length() for image in rows) if self.options.images == "embed" else 0


def _sizes(images: Sequence[LabelledImage]) -> list[tuple[int, int]]:
    return [(image.picture.length(), image.labels.length()) for image in images]


def _name(image: LabelledImage) -> str:
    """Id and path of an image without what one that is lost does not tell: its ending, and how its characters are composed."""
    return f"{image.image_id}\t{nfc(os.path.splitext(image.path)[0])}"


def _digest(images: Sequence[LabelledImage], sizes: Sequence[tuple[int, int]]) -> str:
    lines = (f"{i.path}\t{picture}\n{i.labels_path}\t{labels}\n" for i, (picture, labels) in zip(images, sizes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _mask_bytes(image: LabelledImage) -> int:
    """Of a label file as large as its picture; 0 for any other, which will be left out."""
    try:
        labels = _opened(image)
        if labels.size != encoded.image_size(image.picture.read()):
            return 0
        with reading.decoding(image.labels):
            classes, lengths = runlength.encode(labels.read())
    except (OSError, ValueError):
        return 0
    return classes.nbytes + lengths.nbytes


def _opened(image: LabelledImage) -> Labels:
    content = image.labels.read()
    with reading.decoding(image.labels):
        return open_labels(content)


def _labels(image: LabelledImage, faults: list[Fault]) -> Labels | None:
    """The label file of an image, not decoded yet; None, and a fault, where there is none."""
    try:
        return _opened(image)
    except (FileNotFoundError, NotADirectoryError):
        return _fault(image, faults, "missing mask", image.missing)
    except OSError as error:
        return _fault(image, faults, "unreadable mask", f"cannot be read: {reading.strerror(error)}")
    except ValueError as error:
        return _fault(image, faults, "unreadable mask", str(error))


def _decoded(image: LabelledImage, labels: Labels, faults: list[Fault]) -> np.ndarray | None:
    """The (H, W) labels of a file that was opened; None, and a fault, where they are broken."""
    try:
        with reading.decoding(image.labels):
            return labels.read()
    except OSError as error:
        return _fault(image, faults, "unreadable mask", f"cannot be read: {reading.strerror(error)}")
    except ValueError as error:
        return _fault(image, faults, "unreadable mask", str(error))


def _fault(image: LabelledImage, faults: list[Fault], kind: str, reason: str) -> None:
    faults.append(Fault(kind, "labels", image.image_id, None, f"{image.labels_path}: {reason}"))
