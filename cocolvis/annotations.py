"""COCO-Stuff and LVIS JSON to typed records; segmentations stay raw bytes until they are rasterized."""

import re
import sys
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np

from cocolvis import checks
from cocolvis.archives import Buffer
from cocolvis.errors import DataError
from cocolvis.lenient import as_text, lists, strict
from cocolvis.runlength import MAX_PIXELS
from cocolvis.text import refuse_other_encodings, without_mark


class _Fault(NamedTuple):
    kind: str
    source: str
    image_id: int | None
    annotation_id: int | None
    reason: str


class Fault(_Fault):
    """Something that was skipped, or that is missing: it stands in the report of a build.

    ``reason`` is one printable line of bounded length, whatever the input made of it.
    """

    __slots__ = ()

    def __new__(cls, kind: str, source: str, image_id: int | None, annotation_id: int | None, reason: str) -> "Fault":
        """The fault with its reason as :func:`cocolvis.checks.line` has it."""
        return super().__new__(cls, kind, source, image_id, annotation_id, checks.line(reason))


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


_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd\\:]")
"""What no file name may hold: control characters, line ends, what UTF-8 cannot write and its stand-in, separators of other systems."""


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str


class _Image(msgspec.Struct, gc=False):
    """An :class:`ImageRecord` as it is read: lists stay bytes until their length has been looked at."""

    id: int
    height: int
    width: int
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"[]")

    def record(self) -> ImageRecord:
        """The record; a ValueError where its lists of categories are none, or hold far more than there are categories."""
        lists = []
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            raw = getattr(self, name)
            if len(raw) > _LONGEST_FIELD:
                raise ValueError(f"{name} takes {len(raw)} bytes; at most {_LONGEST_FIELD} are read")
            try:
                lists.append(_CATEGORY_IDS.decode(raw))
            except msgspec.MsgspecError as error:
                raise ValueError(f"{name}: {error}") from None
        return ImageRecord(self.id, self.height, self.width, self.coco_url, self.file_name, *lists)


class _File(msgspec.Struct, gc=False):
    images: list[_Image]
    annotations: list[Segment]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


class _Fields(msgspec.Struct, gc=False):
    """What is read of any record, whatever it holds; of a key that comes twice the last, as Python's json does it."""

    id: msgspec.Raw = msgspec.Raw(b"")
    image_id: msgspec.Raw = msgspec.Raw(b"")
    category_id: msgspec.Raw = msgspec.Raw(b"")
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    height: msgspec.Raw = msgspec.Raw(b"")
    width: msgspec.Raw = msgspec.Raw(b"")
    coco_url: msgspec.Raw = msgspec.Raw(b"")
    file_name: msgspec.Raw = msgspec.Raw(b"")
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"")
    name: msgspec.Raw = msgspec.Raw(b"")


_READ = {"images": _Image, "annotations": Segment, "categories": _Category}
"""What the elements of each list of a file become."""

_CATEGORY_IDS = msgspec.json.Decoder(tuple[int, ...])

_REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of text that it does not take."""

_LONGEST_FIELD = 2**16
"""Bytes of the longest field, but for the segmentation, that a record may have: LVIS's have some hundred."""

_LONGEST_CATEGORIES = 2**21
"""Bytes of the longest list of categories that is read: LVIS's has a few hundred thousand."""

_BLOCK = 2**18
"""Bytes of records that are parsed together where the file as a whole cannot be."""

_FAULTS, _BYTES_A_FAULT = 100_000, 100
"""Faults of a file that are reported at any rate, and bytes of it for each one more; what has so many is another kind of file."""


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
        self._most_faults = _FAULTS + len(content) // _BYTES_A_FAULT
        found = self._parse(content)
        self.categories = {c.id: c.name for c in found["categories"]}
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
        try:
            parsed = msgspec.json.decode(content, type=_File)
            self._check_categories(len(parsed.categories))
            categories = msgspec.json.decode(parsed.categories, type=list[_Category])
            return {"images": parsed.images, "annotations": parsed.annotations, "categories": categories}
        except _REFUSED:
            refuse_other_encodings(content, self.name)
        try:
            return self._read_tolerantly(as_text(content))
        except ValueError as error:
            raise DataError(f"{self.name}: cannot be read as JSON: {error}") from None

    def _read_tolerantly(self, text: np.ndarray) -> dict[str, list]:
        """Record by record, so that a NaN literal or a wrong type costs only the record that holds it.

        Records that lie together are parsed together until one is refused; nothing is built of what is not read.
        """
        found: dict[str, list] = {key: [] for key in _READ}
        seen, categories = set(), 0
        for key, spans in lists(text, _READ):
            seen.add(key)
            for first, last in _blocks(spans):
                start, end = spans[first, 0], spans[last - 1, 1]
                if key == "categories":
                    categories += int(end - start)
                    self._check_categories(categories)
                block = b"[%b]" % text[start:end] if end - start <= _BLOCK else b""
                try:
                    found[key] += msgspec.json.decode(block, type=list[_READ[key]])
                except _REFUSED:
                    found[key] += filter(None, (self._read(key, text, *span) for span in spans[first:last].tolist()))
        for key in ("images", "annotations"):
            if key not in seen:
                raise DataError(f"{self.name}: has no list {key!r}; expected an annotation file of COCO-Stuff or LVIS")
        return found

    def _read(self, key: str, text: np.ndarray, start: int, end: int) -> msgspec.Struct | None:
        """The record between two places of the text; None, and a fault, where it is none."""
        part, fields = text[start:end].data, _Fields()
        try:
            return _own(msgspec.json.decode(part, type=_READ[key]))
        except _REFUSED:
            pass
        try:
            fields = msgspec.json.decode(strict(text, start, end), type=_Fields)
            return _own(_typed(key, fields))
        except (*_REFUSED, ValueError) as error:
            if key == "categories":
                raise DataError(f"{self.name}: malformed category {bytes(part[:80])!r}: {error}") from None
            own, image = _integer(fields.id), _integer(fields.image_id)
            ids = (own, None) if key == "images" else (image, own)
            self._fault(f"malformed {key[:-1]}", *ids, str(error))

    def _check_categories(self, size: int) -> None:
        if size > _LONGEST_CATEGORIES:
            raise DataError(f"{self.name}: its categories take {size} bytes; at most {_LONGEST_CATEGORIES} are read")

    def _fault(self, kind: str, image_id: int | None, annotation_id: int | None, reason: str) -> None:
        if len(self.faults) == self._most_faults:
            said = f"has more than {self._most_faults:,} faults, the last a {kind}: {reason}"
            raise DataError(f"{self.name}: {said}; expected an annotation file of COCO-Stuff or LVIS")
        self.faults.append(Fault(kind, self.source, image_id, annotation_id, sys.intern(reason)))

    def _add_image(self, image: _Image) -> None:
        if image.id in self.images:
            self._fault("duplicate image", image.id, None, "the id occurs before; the first record counts")
        elif not 0 <= image.id < 2**62:
            self._fault("malformed image", image.id, None, f"image id {image.id} is not in 0..2**62")
        elif image.height < 1 or image.width < 1 or image.height * image.width > MAX_PIXELS:
            reason = f"size {image.height} x {image.width} is not in 1..{MAX_PIXELS} pixels"
            self._fault("malformed image", image.id, None, reason)
        else:
            try:
                self.images[image.id] = image.record()
            except ValueError as error:
                self._fault("malformed image", image.id, None, str(error))

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
        """Those of listed images, the first of each id, in the same list; the others become faults and are let go."""
        kept, ids = 0, set()
        for at, row in enumerate(annotations):
            annotations[at] = None
            if row.image_id not in self.images:
                self._fault("unlisted image", row.image_id, row.annotation_id, "the file lists no usable image with this id")
            elif row.annotation_id in ids:
                self._fault(
                    "duplicate annotation", row.image_id, row.annotation_id, "the id occurs before; the first record counts"
                )
            else:
                ids.add(row.annotation_id)
                annotations[kept] = row
                kept += 1
        del annotations[kept:]
        return annotations


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


def _typed(key: str, fields: _Fields) -> msgspec.Struct:
    """The record of these fields; a ValueError or what msgspec raises where one is absent or of another type."""
    if key == "annotations":
        for name in ("id", "image_id", "category_id", "segmentation"):
            if not len(getattr(fields, name)):
                raise ValueError(f"Object missing required field `{name}`")
        identity = (_decoded(name, getattr(fields, name)) for name in ("id", "image_id", "category_id"))
        return Segment(*identity, fields.segmentation)
    parts = []
    for name in _READ[key].__struct_fields__:
        raw = getattr(fields, name)
        if len(raw) > _LONGEST_FIELD:
            raise ValueError(f"{name} takes {len(raw)} bytes; at most {_LONGEST_FIELD} are read")
        if len(raw):
            parts.append(b'"%b":%b' % (name.encode(), bytes(raw)))
    return msgspec.json.decode(b"{%b}" % b",".join(parts), type=_READ[key])


def _decoded(name: str, raw: msgspec.Raw) -> int:
    try:
        return msgspec.json.decode(raw, type=int)
    except _REFUSED as error:
        raise ValueError(f"{error} - at `$.{name}`") from None


def _integer(raw: msgspec.Raw) -> int | None:
    """The integer that stands there, if there is one."""
    try:
        return msgspec.json.decode(raw, type=int)
    except _REFUSED:
        return None


def _own(record: msgspec.Struct) -> msgspec.Struct:
    """The record with a small segmentation in bytes of its own, so that what it was cut out of can be let go."""
    if isinstance(record, Segment) and len(record.segmentation) <= _BLOCK:
        record.segmentation = record.segmentation.copy()
    return record
