"""One annotation file of COCO-Stuff or LVIS: its images, the annotations of each, and the records that were skipped.

Memory is bounded by the size of the file, for any content.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np

from cocolvis.disk.formats import FORMAT_BYTES, foreign_format
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.limits import MAX_PIXELS
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sources import records
from cocolvis.sources.json_values import REFUSED, described
from cocolvis.sources.lenient import as_text, elements, may_repeat, values
from cocolvis.sources.records import LIST_TYPES, RECORD_TYPES, AnnotationLists, Category, ImageRecord, ListedImage, Segment
from cocolvis.text import Buffer, refuse_other_encodings, without_mark

_LONGEST_CATEGORIES = 2**20
"""The most bytes of a list of categories; that of LVIS has a few hundred thousand."""

_BLOCK = 2**18
"""Bytes of records that are parsed together when the file cannot be parsed as a whole."""

_FAULTS, _BYTES_A_FAULT = 100_000, 100
"""A file with more than 100,000 faults, plus one for every 100 of its bytes, is refused as a whole."""


class AnnotationFile:
    """An annotation file: its images by id, the annotations of each, and its faults.

    ``content`` is the bytes of the file, to which the segments keep referring; ``name`` is its name in messages, and ``source``
    is "lvis" or "stuff". ``categories`` maps id to name and is empty if the file lists none. ``faults`` contains malformed and
    duplicate records, annotations of images that the file does not list, and harmless irregularities: repeated keys and
    categories, annotations without a unique id. ``progress`` reports bytes read; ``announce`` says when the file must be read
    record by record. Raises DataError if it is not an annotation file.
    """

    def __init__(self, content: Buffer, name: str, source: str, announce: Announce = ignore, progress: Progress = ignore):
        self.name = name
        self.source = source
        self.faults: list[Fault] = []
        self._most_faults = _FAULTS + len(content) // _BYTES_A_FAULT
        self._announce, self._progress = announce, progress
        parsed = self._parse(content)
        self.categories: dict[int, str] = {}
        for category in parsed["categories"]:
            self._add_category(category)
        self.images: dict[int, ImageRecord] = {}
        parsed["images"].reverse()
        while parsed["images"]:
            self._add_image(parsed["images"].pop())
        self._index(parsed["annotations"])

    def count(self, image_id: int) -> int:
        """The number of annotations of an image."""
        first, last = self._rows.get(image_id, (0, 0))
        return last - first

    def segments(self, image_id: int) -> list[Segment]:
        """The annotations of an image in file order; empty when there are none."""
        first, last = self._rows.get(image_id, (0, 0))
        return self._annotations[first:last]

    def _parse(self, content: Buffer) -> dict[str, list[Any]]:
        content = without_mark(content)
        self._progress(0, len(content))
        try:
            parsed = msgspec.json.decode(content, type=AnnotationLists)
            self._check_categories(len(parsed.categories))
            categories = msgspec.json.decode(parsed.categories, type=list[Category] | None)
        except REFUSED:
            refuse_other_encodings(content, self.name)
            try:
                return self._read_leniently(as_text(content))
            except ValueError as error:
                name = foreign_format(bytes(content[:FORMAT_BYTES]))
                raise DataError(f"{self.name}: cannot be read as JSON: {f'it is {name}' if name else error}") from None
        ends = [row.segmentation for row in parsed.annotations[:: max(1, len(parsed.annotations) - 1)]]
        if may_repeat(content, RECORD_TYPES, ends):
            self._report_repeated(key for key, _, _ in values(as_text(content), RECORD_TYPES))
        return {"images": parsed.images, "annotations": parsed.annotations, "categories": categories or []}

    def _report_repeated(self, keys: Iterable[str]) -> None:
        for key, count in Counter(keys).items():
            if count > 1:
                self._fault("repeated key", None, None, f"the file has {count} lists {key!r}; the last one counts")

    def _read_leniently(self, text: np.ndarray) -> dict[str, list[Any]]:
        """Read the file record by record, so that a NaN or a wrong type only affects the record that contains it.

        Adjacent records are parsed together unless one of them is refused. No objects are created for the rest of the file.
        """
        by_list: dict[str, list[Any]] = {key: [] for key in RECORD_TYPES}
        located = values(text, RECORD_TYPES)
        for key, at, end in located:
            if text[at] != ord("["):
                raise DataError(f"{self.name}: its {key} are {described(text[at:end].data)}; expected a list")
        offsets = {key: at for key, at, _ in located}
        for key in ("images", "annotations"):
            if key not in offsets:
                raise DataError(f"{self.name}: has no list {key!r}; expected an annotation file of COCO-Stuff or LVIS")
        odd = "contains something that the official files do not"
        self._announce(f"{self.name}: {odd}; it is read record by record, which takes several times as long")
        self._report_repeated(key for key, _, _ in located)
        categories = 0
        for key, at in offsets.items():
            for spans in elements(text, at):
                for first, last in _blocks(spans):
                    start, end = int(spans[first, 0]), int(spans[last - 1, 1])
                    self._progress(end, len(text))
                    if key == "categories":
                        categories += end - start
                        self._check_categories(categories)
                    block = b"[%b]" % text[start:end].tobytes() if end - start <= _BLOCK else b""
                    by_list[key] += self._read_block(key, text, block, spans[first:last])
        return by_list

    def _read_block(self, key: str, text: np.ndarray, block: bytes, spans: np.ndarray) -> Iterable[records.Record]:
        """The records of a block: parsed together, with whole numbers as ints or floats, otherwise one by one."""
        try:
            return msgspec.json.decode(block, type=LIST_TYPES[key])
        except REFUSED:
            pass
        try:
            return records.loose(key, block)
        except (*REFUSED, ValueError):
            return filter(None, (self._read(key, text, *span) for span in spans.tolist()))

    def _read(self, key: str, text: np.ndarray, start: int, end: int) -> records.Record | None:
        """The record between two offsets of the text; None, and a fault, if it is malformed."""
        try:
            return records.read(key, text, start, end)
        except records.Malformed as error:
            if key == "categories":
                which = "a category" if error.ids[1] is None else f"category {error.ids[1]}"
                raise DataError(f"{self.name}: {which} cannot be read: {error}") from None
            self._fault(f"malformed {key[:-1]}", *error.ids, str(error))
            return None

    def _check_categories(self, size: int) -> None:
        if size > _LONGEST_CATEGORIES:
            raise DataError(f"{self.name}: its categories have {size:,} bytes; at most {_LONGEST_CATEGORIES:,} are read")

    def _fault(self, kind: str, image_id: int | None, annotation_id: int | None, reason: str) -> None:
        if len(self.faults) == self._most_faults:
            many = f"has more than {self._most_faults:,} faults, the last of them {kind}: {reason}"
            raise DataError(f"{self.name}: {many}; expected an annotation file of COCO-Stuff or LVIS")
        self.faults.append(Fault(kind, self.source, image_id, annotation_id, sys.intern(reason)))

    def _add_category(self, category: Category) -> None:
        before = self.categories.get(category.id)
        if before is None:
            self.categories[category.id] = category.name
        elif before == category.name:
            self._fault("duplicate category", None, None, f"category {category.id} {before!r} is listed more than once")
        else:
            raise DataError(f"{self.name}: lists category {category.id} twice, as {before!r} and as {category.name!r}")

    def _add_image(self, image: ListedImage) -> None:
        if image.id in self.images:
            self._fault("duplicate image", image.id, None, "an earlier image has the same id; only that one is used")
        elif not 0 <= image.id < 2**62:
            self._fault("malformed image", image.id, None, f"its id is {image.id}; expected at least 0 and less than 2**62")
        elif image.height < 1 or image.width < 1 or image.height * image.width > MAX_PIXELS:
            size = f"its height is {image.height} and its width {image.width}"
            self._fault("malformed image", image.id, None, f"{size}; expected 1 or more, at most {MAX_PIXELS:,} pixels")
        else:
            try:
                self.images[image.id] = image.record()
            except ValueError as error:
                self._fault("malformed image", image.id, None, str(error))

    def _index(self, annotations: list[Segment]) -> None:
        """Sort the annotations by image, keeping the file order within each."""
        try:
            image_ids = _column(annotations, "image_id")
            listed = bool(np.isin(image_ids, np.array(list(self.images), np.int64)).all())
        except OverflowError:
            listed = False
        if not listed:
            annotations = self._of_listed_images(annotations)
            image_ids = _column(annotations, "image_id")
        self._report_ids(annotations)
        if np.any(image_ids[1:] < image_ids[:-1]):
            order = image_ids.argsort(kind="stable")
            annotations, image_ids = [annotations[i] for i in order.tolist()], image_ids[order]
        self._annotations = annotations
        first = np.ones(len(image_ids), bool)  # of its image
        first[1:] = image_ids[1:] != image_ids[:-1]
        bounds = pairwise([*np.flatnonzero(first).tolist(), len(annotations)])
        self._rows = dict(zip(image_ids[first].tolist(), bounds, strict=True))

    def _of_listed_images(self, annotations: list[Segment]) -> list[Segment]:
        """The annotations of listed images; the others become faults. Empties ``annotations`` to free their memory."""
        annotations.reverse()
        kept = []
        while annotations:
            row = annotations.pop()
            if row.image_id in self.images:
                kept.append(row)
            else:
                self._fault("unlisted image", row.image_id, row.annotation_id, "the file lists no usable image with this id")
        return kept

    def _report_ids(self, annotations: list[Segment]) -> None:
        """Add one fault for all annotations without an id, and one for all that repeat an earlier id; all are painted."""
        try:
            if _distinct(_column(annotations, "annotation_id")):
                return
        except (TypeError, OverflowError):
            pass
        missing = [row for row in annotations if row.annotation_id is None]
        ids: set[int] = set()
        repeated = []
        for row in annotations:
            if row.annotation_id is not None:
                repeated += [row] if row.annotation_id in ids else []
                ids.add(row.annotation_id)
        if missing:
            which = f"{len(missing):,}, the first in image {missing[0].image_id}"
            self._fault("missing annotation id", None, None, f"annotations without an id: {which}; they are painted anyway")
        if repeated:
            which = f"{len(repeated):,}, the first with id {repeated[0].annotation_id} in image {repeated[0].image_id}"
            reason = f"annotations with the id of an earlier one: {which}; they are painted anyway"
            self._fault("duplicate annotation id", None, None, reason)


def _column(annotations: list[Segment], name: str) -> np.ndarray:
    """A field of all annotations, (n,) int64; raises OverflowError if a value does not fit, TypeError if it is None."""
    return np.fromiter(map(attrgetter(name), annotations), np.int64, len(annotations))


def _distinct(values: np.ndarray) -> bool:
    ordered = np.sort(values)
    return not np.any(ordered[1:] == ordered[:-1])


def _blocks(spans: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of consecutive records of together at most ``_BLOCK`` bytes; a longer record is a block of its own."""
    first = 0
    while first < len(spans):
        last = max(first + 1, int(np.searchsorted(spans[:, 1], spans[first, 0] + _BLOCK, "right")))
        yield first, last
        first = last
