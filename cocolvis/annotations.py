"""COCO-Stuff and LVIS JSON to typed records; segmentations stay raw bytes until they are rasterized."""

import re
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np

from cocolvis.archives import Buffer
from cocolvis.errors import DataError
from cocolvis.lenient import KEY, records
from cocolvis.runlength import MAX_PIXELS
from cocolvis.text import refuse_other_encodings, without_mark


class Fault(NamedTuple):
    """Something that was skipped, or that is missing: it stands in the report of a build."""

    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class Segment(msgspec.Struct, gc=False):
    """One annotation of an image: its category and its segmentation, still as it stands in the file."""

    annotation_id: int = msgspec.field(name="id")
    image_id: int
    category_id: int
    segmentation: msgspec.Raw


class ImageRecord(msgspec.Struct, gc=False, frozen=True):
    """An entry of the ``images`` list; only what a build needs."""

    id: int
    height: int
    width: int
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()

    def location(self) -> tuple[str | None, str]:
        """(folder or None, file name) of the picture: the last two parts of coco_url, else file_name.

        A DataError when neither is there, or when the name would leave the image folder.
        """
        parts = (self.coco_url or self.file_name or "").split("/")
        folder = parts[-2] if self.coco_url and len(parts) > 1 else "/".join(parts[:-1])
        name = parts[-1]
        if not name:
            raise DataError("the record has neither coco_url nor file_name")
        if {name, *folder.split("/")} & {".", ".."} or folder.startswith("/") or _UNFIT.search(folder + name):
            raise DataError(f"file name {self.coco_url or self.file_name!r} leaves the image folder")
        return folder or None, name


_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\\:]")
"""What no file name may hold: control characters, line ends, what UTF-8 cannot write, separators of other systems."""


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _File(msgspec.Struct, gc=False):
    images: list[ImageRecord]
    annotations: list[Segment]
    categories: list[_Category] = []


class AnnotationFile:
    """One annotation JSON: its images by id, the segments of each, and what had to be skipped.

    ``content`` is its bytes, which live on in the segments; ``name`` is what messages call it; a DataError when it is none.
    ``categories`` maps id to name; it is empty when the file lists none. ``faults`` holds malformed and duplicate records and
    annotations of images that the file does not list.
    """

    def __init__(self, content: Buffer, name: str, source: str):
        self.name = name
        self.source = source
        self.faults: list[Fault] = []
        parsed = self._parse(content)
        self.categories = {c.id: c.name for c in parsed.categories}
        self.images: dict[int, ImageRecord] = {}
        for image in parsed.images:
            self._add_image(image)
        self._index(parsed.annotations)

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

    def _parse(self, content: Buffer) -> _File:
        content = without_mark(content)
        try:
            return msgspec.json.decode(content, type=_File)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError):
            refuse_other_encodings(content, self.name)
        try:
            return self._read_tolerantly(str(content, "utf-8", "replace"))
        except ValueError as error:
            raise DataError(f"{self.name}: cannot be read as JSON: {error}") from None

    def _read_tolerantly(self, text: str) -> _File:
        """Record by record, so that a NaN literal or a wrong type costs only the record that holds it."""
        found: dict[str, list] = {"images": [], "annotations": [], "categories": []}
        seen = set()
        for key, record in records(text):
            seen.add(key)
            if key in found and record is not KEY:
                try:
                    found[key].append(_typed(key, record))
                except (msgspec.ValidationError, TypeError, ValueError, KeyError, OverflowError) as error:
                    self._malformed(key, record, str(error))
        for key in ("images", "annotations"):
            if key not in seen:
                raise DataError(f"{self.name}: has no list {key!r}; expected an annotation file of COCO-Stuff or LVIS")
        return _File(**found)

    def _malformed(self, key: str, record: Any, reason: str) -> None:
        if key == "categories":
            raise DataError(f"{self.name}: malformed category {str(record)[:80]}: {reason}")
        ids = {k: v for k, v in record.items() if type(v) is int} if isinstance(record, dict) else {}
        image, annotation = (ids.get("id"), None) if key == "images" else (ids.get("image_id"), ids.get("id"))
        self._fault(f"malformed {key[:-1]}", image, annotation, reason)

    def _fault(self, kind: str, image_id: int | None, annotation_id: int | None, reason: str) -> None:
        self.faults.append(Fault(kind, self.source, image_id, annotation_id, reason))

    def _add_image(self, image: ImageRecord) -> None:
        if image.id in self.images:
            self._fault("duplicate image", image.id, None, "the id occurs before; the first record counts")
        elif not 0 <= image.id < 2**62:
            self._fault("malformed image", image.id, None, f"image id {image.id} is not in 0..2**62")
        elif image.height < 1 or image.width < 1 or image.height * image.width > MAX_PIXELS:
            reason = f"size {image.height} x {image.width} is not in 1..{MAX_PIXELS} pixels"
            self._fault("malformed image", image.id, None, reason)
        else:
            self.images[image.id] = image

    def _index(self, annotations: list[Segment]) -> None:
        """Group the annotations by image, in file order within an image."""
        try:
            image_ids = _column(annotations, "image_id")
            sound = (
                _distinct(_column(annotations, "annotation_id"))
                and np.isin(image_ids, np.array(list(self.images), np.int64)).all()
            )
        except OverflowError:
            sound = False
        if not sound:
            annotations = self._usable(annotations)
            image_ids = _column(annotations, "image_id")
        if np.any(image_ids[1:] < image_ids[:-1]):
            order = image_ids.argsort(kind="stable")
            annotations, image_ids = [annotations[i] for i in order.tolist()], image_ids[order]
        self._annotations = annotations
        self._image_ids = image_ids

    def _usable(self, annotations: list[Segment]) -> list[Segment]:
        """Those of listed images, the first of each id; the others become faults."""
        kept, ids = [], set()
        for row in annotations:
            if row.image_id not in self.images:
                self._fault("unlisted image", row.image_id, row.annotation_id, "the file lists no usable image with this id")
            elif row.annotation_id in ids:
                self._fault(
                    "duplicate annotation", row.image_id, row.annotation_id, "the id occurs before; the first record counts"
                )
            else:
                ids.add(row.annotation_id)
                kept.append(row)
        return kept


def _column(annotations: list[Segment], name: str) -> np.ndarray:
    """(n,) int64; an OverflowError when a value does not fit."""
    return np.fromiter(map(attrgetter(name), annotations), np.int64, len(annotations))


def _distinct(values: np.ndarray) -> bool:
    ordered = np.sort(values)
    return not np.any(ordered[1:] == ordered[:-1])


def _typed(key: str, record: Any) -> msgspec.Struct:
    if key == "images":
        return msgspec.convert(record, ImageRecord)
    if key == "categories":
        return msgspec.convert(record, _Category)
    identity = (msgspec.convert(record[name], int) for name in ("id", "image_id", "category_id"))
    return Segment(*identity, msgspec.Raw(msgspec.json.encode(record["segmentation"])))  # NaN becomes null
