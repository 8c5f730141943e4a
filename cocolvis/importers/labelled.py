"""Data sets with a label file for each picture: the plan of their shards, and the task that reads the label files."""

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cocolvis.building import numbering
from cocolvis.building.shard_plan import ROW_BYTES, Match, ShardPlan
from cocolvis.building.shard_task import ShardOptions, ShardTask, read_picture
from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.importers.tree import LabelledImage, Tree
from cocolvis.masks import runlength
from cocolvis.masks.runlength import Runs
from cocolvis.pictures import encoded
from cocolvis.pictures.label_files import Labels, label_pixels, open_labels, to_classes
from cocolvis.storage.samples import Sample
from cocolvis.text import first_few, nfc

_SHARD_SIZE, _SHARD_BYTES = 500, 2**27
"""The most images, and the most bytes of pictures, in a shard whose size the plan chooses; shards are assembled in memory."""

_SAMPLED, _SAFE = 24, 1.5
"""How many masks of a split are decoded to estimate the disk space of all of them; the safety factor of the estimate."""

_LISTED = 8
"""How many unknown labels of an image its fault lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions(ShardOptions):
    """Everything besides the pictures and label files that decides the shards; ``dataset`` is the name of the importer.

    Without a ``shard_size``, a shard has 500 images, or fewer if their pictures have more than 128 MiB.
    """

    shard_size: int | None = None
    dataset: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelTask(ShardTask[LabelledImage]):
    """The task of a shard; ``known`` maps the labels in label files to class ids, and ignored labels to 0."""

    images: list[LabelledImage]
    options: LabelOptions
    known: Mapping[int, int]

    def sample(self, image: LabelledImage, faults: list[Fault], seen: Counter[str]) -> Sample | None:
        """The image with its mask; None and a fault if its picture or label file is absent, broken or of another size.

        Pixels with an unknown label become unlabelled, and a fault reports them. ``seen`` also counts labels
        (:mod:`cocolvis.building.numbering`).
        """
        opened = _open_or_fault(image, faults)
        if opened is None:
            return None
        decode, source = self.options.decode, "its mask is"
        content = read_picture(image, opened.size, source, faults, image.missing, decode=decode, seen=seen)
        if content is None:
            return None
        labels = _decode_or_fault(image, opened, faults)
        if labels is None:
            return None
        mask, pixels = to_classes(labels, self.known), label_pixels(labels)
        seen.update(numbering.keys(pixels, self.known))
        unknown = {label: count for label, count in pixels.items() if label not in self.known}
        if unknown:
            reason = f"{sum(unknown.values())} pixels have labels that no class has: {first_few(unknown, _LISTED)}"
            _add_fault(image, faults, "unknown label", reason)
        stored = content if self.options.images == "embed" else b""
        no_classes = np.zeros(0, np.uint16)
        return Sample(
            image_id=image.image_id,
            path=image.path,
            runs=Runs.of(mask),
            content=stored,
            neg=no_classes,
            not_exhaustive=no_classes,
        )


class LabelPlan(ShardPlan[LabelledImage]):
    """The plan of a data set that was found in a folder; raises DataError if one of its splits is empty."""

    options: LabelOptions

    def __init__(self, tree: Tree, options: LabelOptions):
        for split in options.splits:
            if not tree.images[split]:
                raise DataError(f"{tree.root}: split {split} has no images; check its folders, or leave it out with --split")
        self.tree, self.vocabulary, self.faults = tree, tree.vocabulary, list(tree.findings.faults)
        self._sizes = {split: _sizes(tree.images[split]) for split in options.splits}
        self.images = {split: list(tree.images[split][: options.limit]) for split in options.splits}
        self.options, self._chooses_size = options, options.shard_size is None
        if options.shard_size is None:
            self.options = replace(options, shard_size=self._choose_shard_size())

    def inputs(self) -> dict[str, str]:
        """Split -> SHA-256 over the path and the size of each picture and label file, in order; their contents are not read."""
        return {split: _digest(self.tree.images[split], sizes) for split, sizes in self._sizes.items()}

    def files_record(self) -> dict[str, Any]:
        """A digest of the ids and names of all images, and the sizes of pictures and label files, 0 for missing ones."""
        names = (f"{split}\t{_name(image)}\n" for split in self._sizes for image in self.tree.images[split])
        digest = hashlib.sha256("".join(names).encode()).hexdigest()
        return {"inputs": self.inputs(), "names": digest, "sizes": self._sizes}

    def compare(self, begun: dict[str, Any], files: dict[str, Any] | None, unsettled: Collection[str]) -> Match:
        """Compare this plan with an unfinished build of the same images, whose files may have changed since that was begun.

        Files may have been lost since. Files that were restored or repaired must belong to ``unsettled`` shards. This plan
        adopts the shard size of the build, unless the user has set one, and the recorded sizes of files that are now missing.
        """
        if files is None or files["names"] != self.files_record()["names"]:
            return super().compare(begun, files, unsettled)
        if self._chooses_size:
            self.options = replace(self.options, shard_size=begun["options"]["shard_size"])
        if self.description() | {"inputs": None} != begun | {"inputs": None}:
            return Match.OTHER
        recorded = {split: files["sizes"].get(split, []) for split in self._sizes}
        if any(len(recorded[split]) != len(sizes) for split, sizes in self._sizes.items()):
            return Match.OTHER
        match = Match.SAME
        for split, sizes in self._sizes.items():
            for row, (size, old) in enumerate(zip(sizes, recorded[split], strict=True)):
                changed = [before for after, before in zip(size, old, strict=True) if after and after != before]
                if any(changed) and self.shard_name(split, row) not in unsettled:
                    return Match.OTHER
                match = Match.REPAIRED if changed else match
                sizes[row] = size[0] or old[0], size[1] or old[1]
        return match

    def image_root(self) -> Path | None:
        """The folder of the data set, if its shards refer to the pictures there; otherwise None."""
        return self.tree.root if self.options.images == "path" else None

    def task(self, name: str, split: str, rows: list[LabelledImage]) -> LabelTask:
        """The task of one shard."""
        known, digest = self.vocabulary.lookup(self.tree.source), self.vocabulary.digest
        return LabelTask(name=name, split=split, images=rows, options=self.options, vocabulary=digest, known=known)

    def row_bytes(self, split: str, rows: list[LabelledImage]) -> int:
        """An estimate from the sizes of all picture files, and from the masks of a few images."""
        sampled = rows[:: max(1, len(rows) // _SAMPLED)]
        masks = len(rows) * sum(map(_mask_bytes, sampled)) / len(sampled)
        return len(rows) * ROW_BYTES + int(_SAFE * masks) + self._picture_bytes(rows)

    def row_name(self, row: LabelledImage) -> tuple[int, str]:
        """The image's id, and the path of its picture below the folder of the data set."""
        return row.image_id, row.path

    def warm_up(self) -> None:
        """Compile the kernels that encode masks, and with ``decode`` those of the JPEG check, or load them from their cache."""
        runlength.pixel_counts(*runlength.encode(np.zeros((1, 1), np.uint16)))
        if self.options.decode:
            encoded.warm_up()

    def _choose_shard_size(self) -> int:
        count = sum(map(len, self.images.values()))
        total = sum(map(self._picture_bytes, self.images.values()))
        return max(1, min(_SHARD_SIZE, _SHARD_BYTES * count // max(1, total)))

    def _picture_bytes(self, rows: list[LabelledImage]) -> int:
        return sum(image.picture.length() for image in rows) if self.options.images == "embed" else 0


def _sizes(images: Sequence[LabelledImage]) -> list[tuple[int, int]]:
    return [(image.picture.length(), image.labels.length()) for image in images]


def _name(image: LabelledImage) -> str:
    """Id and path of an image, in a form that does not depend on the ending or on how characters are composed."""
    return f"{image.image_id}\t{nfc(os.path.splitext(image.path)[0])}"


def _digest(images: Sequence[LabelledImage], sizes: Sequence[tuple[int, int]]) -> str:
    lines = (f"{i.path}\t{picture}\n{i.labels_path}\t{labels}\n" for i, (picture, labels) in zip(images, sizes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _mask_bytes(image: LabelledImage) -> int:
    """The bytes of an image's mask in a shard; 0 if the image will be left out because its files do not match."""
    try:
        labels = _open(image)
        if labels.size != encoded.image_size(image.picture.read()):
            return 0
        with reading.decoding(image.labels):
            classes, lengths = runlength.encode(labels.read())
    except (OSError, ValueError):
        return 0
    return classes.nbytes + lengths.nbytes


def _open(image: LabelledImage) -> Labels:
    content = image.labels.read()
    with reading.decoding(image.labels):
        return open_labels(content)


def _open_or_fault(image: LabelledImage, faults: list[Fault]) -> Labels | None:
    """The label file of an image, not decoded yet; None and a fault if it cannot be opened."""
    try:
        return _open(image)
    except (FileNotFoundError, NotADirectoryError):
        _add_fault(image, faults, "missing mask", image.missing)
    except OSError as error:
        _add_fault(image, faults, "unreadable mask", f"cannot be read: {reading.strerror(error)}")
    except ValueError as error:
        _add_fault(image, faults, "unreadable mask", str(error))
    return None


def _decode_or_fault(image: LabelledImage, labels: Labels, faults: list[Fault]) -> np.ndarray | None:
    """The (H, W) labels of a file that was opened; None and a fault if they are broken."""
    try:
        with reading.decoding(image.labels):
            return labels.read()
    except OSError as error:
        _add_fault(image, faults, "unreadable mask", f"cannot be read: {reading.strerror(error)}")
    except ValueError as error:
        _add_fault(image, faults, "unreadable mask", str(error))
    return None


def _add_fault(image: LabelledImage, faults: list[Fault], kind: str, reason: str) -> None:
    faults.append(Fault(kind, "labels", image.image_id, None, f"{image.labels_path}: {reason}"))
