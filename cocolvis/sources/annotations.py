"""One annotation file of COCO-Stuff or LVIS: typed records by image, and what had to be skipped.

Memory is bounded by the file, whatever it holds: some bytes for each of its own.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter

import msgspec
import numpy as np

from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.limits import MAX_PIXELS
from cocolvis.progress import Announce, Progress, ignore
from cocolvis.sources import records
from cocolvis.sources.lenient import as_text, elements, lists, may_repeat
from cocolvis.sources.records import READ, REFUSED, Category, ImageRecord, ListedImage, Segment
from cocolvis.text import Buffer, refuse_other_encodings, without_mark

_LONGEST_CATEGORIES = 2**20
"""Bytes of the longest list of categories that is read: LVIS's has a few hundred thousand."""

_BLOCK = 2**18
"""Bytes of records that are parsed together where the file as a whole cannot be."""

_FAULTS, _BYTES_A_FAULT = 100_000, 100
"""Faults of a file that are reported at any rate, and bytes of it for each one more; what has more is refused as a whole."""


class AnnotationFile:
    """One annotation JSON: its images by id, the segments of each, and what had to be skipped.

    ``content`` is its bytes, which live on in the segments; ``name`` is what messages call it; a DataError when it is none.
    ``categories`` maps id to name; it is empty when the file lists none. ``faults`` holds malformed and duplicate records,
    annotations of images that the file does not list, and what is odd and costs nothing: a key or a category that is there
    twice, annotations without an id of their own. ``read`` is told the bytes read and in all, ``announce`` why it is read
    record by record where it is.
    """

    def __init__(self, content: Buffer, name: str, source: str, announce: Announce = ignore, read: Progress = ignore):
        self.name = name
        self.source = source
        self.faults: list[Fault] = []
        self._most_faults = _FAULTS + len(content) // _BYTES_A_FAULT
        self._announce, self._progress = announce, read
        found = self._parse(content)
        self.categories: dict[int, str] = {}
        for category in found["categories"]:
            self._add_category(category)
        self.images: dict[int, ImageRecord] = {}
        found["images"].reverse()
        while found["images"]:
            self._add_image(found["images"].pop())
        self._index(found["annotations"])

    def count(self, image_id: int) -> int:
        """The number of annotations of an image."""
        first, last = self._rows(image_id)
        return last - first

    def segments(self, image_id: int) -> list[Segment]:
        """The annotations of an image in file order; empty when there are none."""
        first, last = self._rows(image_id)
        return self._annotations[first:last]

    def _rows(self, image_id: int) -> tuple[int, int]:
        return int(self._image_ids.searchsorted(image_id)), int(self._image_ids.searchsorted(image_id, "right"))

    def _parse(self, content: Buffer) -> dict[str, list]:
        content = without_mark(content)
        self._progress(0, len(content))
        try:
            parsed = msgspec.json.decode(content, type=records.File)
            self._check_categories(len(parsed.categories))
            categories = msgspec.json.decode(parsed.categories, type=list[Category] | None)
        except REFUSED:
            refuse_other_encodings(content, self.name)
            try:
                return self._read_tolerantly(as_text(content))
            except ValueError as error:
                raise DataError(f"{self.name}: cannot be read as JSON: {error}") from None
        if may_repeat(content, READ, [row.segmentation for row in parsed.annotations[:: max(1, len(parsed.annotations) - 1)]]):
            self._report_repeated(lists(as_text(content), READ))
        return {"images": parsed.images, "annotations": parsed.annotations, "categories": categories or []}

    def _report_repeated(self, found: list[tuple[str, int]]) -> None:
        for key, count in Counter(key for key, _ in found).items():
            if count > 1:
                self._fault("repeated key", None, None, f"the file has {count} lists {key!r}; the last one counts")

    def _read_tolerantly(self, text: np.ndarray) -> dict[str, list]:
        """Record by record, so that a NaN literal or a wrong type costs only the record that holds it.

        Records that lie together are parsed together until one is refused; nothing is built of what is not read.
        """
        found: dict[str, list] = {key: [] for key in READ}
        found_lists = lists(text, READ)
        places = dict(found_lists)
        for key in ("images", "annotations"):
            if key not in places:
                raise DataError(f"{self.name}: has no list {key!r}; expected an annotation file of COCO-Stuff or LVIS")
        odd = "holds something that COCO and LVIS do not write"
        self._announce(f"{self.name}: {odd}; it is read record by record, which takes several times as long")
        self._report_repeated(found_lists)
        categories = 0
        for key, at in places.items():
            for spans in elements(text, at):
                for first, last in _blocks(spans):
                    start, end = int(spans[first, 0]), int(spans[last - 1, 1])
                    self._progress(end, len(text))
                    if key == "categories":
                        categories += end - start
                        self._check_categories(categories)
                    block = b"[%b]" % text[start:end] if end - start <= _BLOCK else b""
                    found[key] += self._read_block(key, text, block, spans[first:last])
        return found

    def _read_block(self, key: str, text: np.ndarray, block: bytes, spans: np.ndarray) -> Iterable[msgspec.Struct]:
        """The records of a block: all at once, so too where whole numbers are written as floats, or else one by one."""
        try:
            return msgspec.json.decode(block, type=list[READ[key]])
        except REFUSED:
            pass
        try:
            return records.loose(key, block)
        except (*REFUSED, ValueError):
            return filter(None, (self._read(key, text, *span) for span in spans.tolist()))

    def _read(self, key: str, text: np.ndarray, start: int, end: int) -> msgspec.Struct | None:
        """The record between two places of the text; None, and a fault, where it is none."""
        try:
            return records.read(key, text, start, end)
        except records.Malformed as error:
            if key == "categories":
                which = "a category" if error.ids[1] is None else f"category {error.ids[1]}"
                raise DataError(f"{self.name}: {which} cannot be read: {error}") from None
            self._fault(f"malformed {key[:-1]}", *error.ids, str(error))

    def _check_categories(self, size: int) -> None:
        if size > _LONGEST_CATEGORIES:
            raise DataError(f"{self.name}: its categories take {size} bytes; at most {_LONGEST_CATEGORIES} are read")

    def _fault(self, kind: str, image_id: int | None, annotation_id: int | None, reason: str) -> None:
        if len(self.faults) == self._most_faults:
            said = f"has more than {self._most_faults:,} faults, at last {kind}: {reason}"
            raise DataError(f"{self.name}: {said}; expected an annotation file of COCO-Stuff or LVIS")
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
            self._fault("duplicate image", image.id, None, "an earlier image has this id; that one counts")
        elif not 0 <= image.id < 2**62:
            self._fault("malformed image", image.id, None, f"its id is {image.id}; expected 0 or more, and less than 2**62")
        elif image.height < 1 or image.width < 1 or image.height * image.width > MAX_PIXELS:
            size = f"its height is {image.height} and its width {image.width}"
            self._fault("malformed image", image.id, None, f"{size}; expected 1 or more, and at most {MAX_PIXELS:,} pixels")
        else:
            try:
                self.images[image.id] = image.record()
            except ValueError as error:
                self._fault("malformed image", image.id, None, str(error))

    def _index(self, annotations: list[Segment]) -> None:
        """Group the annotations by image, in file order within an image."""
        try:
            image_ids = _column(annotations, "image_id")
            listed = np.isin(image_ids, np.array(list(self.images), np.int64)).all()
        except OverflowError:
            listed = False
        if not listed:
            annotations = self._listed(annotations)
            image_ids = _column(annotations, "image_id")
        self._report_ids(annotations)
        if np.any(image_ids[1:] < image_ids[:-1]):
            order = image_ids.argsort(kind="stable")
            annotations, image_ids = [annotations[i] for i in order.tolist()], image_ids[order]
        self._annotations = annotations
        self._image_ids = image_ids

    def _listed(self, annotations: list[Segment]) -> list[Segment]:
        """Those of listed images, in the same list; the others become faults and are let go."""
        kept = 0
        for at, row in enumerate(annotations):
            annotations[at] = None
            if row.image_id in self.images:
                annotations[kept] = row
                kept += 1
            else:
                self._fault("unlisted image", row.image_id, row.annotation_id, "the file lists no usable image with this id")
        del annotations[kept:]
        return annotations

    def _report_ids(self, annotations: list[Segment]) -> None:
        """One fault each for all annotations that have no id, or one that an earlier annotation has: they are painted."""
        try:
            if _distinct(_column(annotations, "annotation_id")):
                return
        except (TypeError, OverflowError):
            pass
        ids: set[int] = set()
        missing, repeated, first = 0, 0, {}
        for row in annotations:
            if row.annotation_id is None:
                missing += 1
                first.setdefault("missing", row)
            elif row.annotation_id in ids:
                repeated += 1
                first.setdefault("repeated", row)
            else:
                ids.add(row.annotation_id)
        if missing:
            said = f"{missing:,} annotations have no id, the first of them one of image {first['missing'].image_id}"
            self._fault("missing annotation id", None, None, f"{said}; they are painted all the same")
        if repeated:
            row = first["repeated"]
            said = f"{repeated:,} annotations have the id of an earlier one, the first of them {row.annotation_id} of image"
            self._fault("duplicate annotation id", None, None, f"{said} {row.image_id}; they are painted all the same")


def _column(annotations: list[Segment], name: str) -> np.ndarray:
    """(n,) int64; an OverflowError when a value does not fit."""
    return np.fromiter(map(attrgetter(name), annotations), np.int64, len(annotations))


def _distinct(values: np.ndarray) -> bool:
    ordered = np.sort(values)
    return not np.any(ordered[1:] == ordered[:-1])


def _blocks(spans: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and behind the last of consecutive records of at most ``_BLOCK`` bytes together; one that is longer is alone."""
    first = 0
    while first < len(spans):
        last = max(first + 1, int(np.searchsorted(spans[:, 1], spans[first, 0] + _BLOCK, "right")))
        yield first, last
        first = last
