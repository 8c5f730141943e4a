"""The typed records of annotation files, and the reasons for refusing one: the field that is missing or wrong."""

from typing import Any

import msgspec
import numpy as np

from cocolvis.sources import picture_names
from cocolvis.sources.json_values import REFUSED, described, refusal, whole, whole_number
from cocolvis.sources.lenient import strict

_LONGEST_FIELD = 2**16
"""The most bytes of any field except the segmentation; fields of LVIS have a few hundred."""

_SMALL = 2**18
"""The most bytes of a segmentation that is copied, so that the rest of its record can be freed."""

_WHOLE, _IDS = "a whole number", "a list of whole numbers"


class Segment(msgspec.Struct, gc=False, kw_only=True):
    """One annotation of an image: its ids, and its segmentation as unparsed JSON."""

    annotation_id: int | None = msgspec.field(name="id", default=None)
    image_id: int
    category_id: int
    segmentation: msgspec.Raw


class ImageRecord(msgspec.Struct, gc=False, frozen=True):
    """An entry of the ``images`` list, reduced to the fields that a build needs."""

    id: int
    height: int
    width: int
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: tuple[int, ...] = ()
    not_exhaustive_category_ids: tuple[int, ...] = ()

    def location(self) -> picture_names.Location:
        """(folder or None, file name) of the picture, see :func:`cocolvis.sources.picture_names.location`."""
        return picture_names.location(self.coco_url, self.file_name)


class Category(msgspec.Struct, gc=False):
    """An entry of the ``categories`` list."""

    id: int
    name: str


class ListedImage(msgspec.Struct, gc=False):
    """An :class:`ImageRecord` whose lists are still JSON, so that their length can be checked before they are parsed."""

    id: int
    height: int
    width: int
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"[]")

    def record(self) -> ImageRecord:
        """The record with its lists parsed; raises ValueError if they are not lists of whole numbers or are too long."""
        neg = _category_ids("neg_category_ids", self.neg_category_ids)
        not_exhaustive = _category_ids("not_exhaustive_category_ids", self.not_exhaustive_category_ids)
        return ImageRecord(self.id, self.height, self.width, self.coco_url, self.file_name, neg, not_exhaustive)


Record = ListedImage | Segment | Category

RECORD_TYPES: dict[str, type[Record]] = {"images": ListedImage, "annotations": Segment, "categories": Category}
"""Name of each list of a file that is read -> the type of its elements."""

LIST_TYPES: dict[str, Any] = {"images": list[ListedImage], "annotations": list[Segment], "categories": list[Category]}


class AnnotationLists(msgspec.Struct, gc=False):
    """An annotation file, reduced to the lists that are read."""

    images: list[ListedImage]
    annotations: list[Segment]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


class _Fields(msgspec.Struct, gc=False):
    """The fields of any record as unparsed JSON; the last of repeated keys is used, as in Python's json module."""

    id: msgspec.Raw = msgspec.Raw(b"")
    image_id: msgspec.Raw = msgspec.Raw(b"")
    category_id: msgspec.Raw = msgspec.Raw(b"")
    segmentation: msgspec.Raw = msgspec.Raw(b"")
    height: msgspec.Raw = msgspec.Raw(b"")
    width: msgspec.Raw = msgspec.Raw(b"")
    coco_url: msgspec.Raw = msgspec.Raw(b"")
    file_name: msgspec.Raw = msgspec.Raw(b"")
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    name: msgspec.Raw = msgspec.Raw(b"")

    @classmethod
    def of(cls, record: memoryview) -> "_Fields":
        """The fields of a record in strict JSON; raises ValueError if it is not an object."""
        try:
            return msgspec.json.decode(record, type=cls)
        except REFUSED:
            raise ValueError(f"it is {described(record)}; expected an object") from None

    def typed(self, key: str) -> Record:
        """The record as an element of the list ``key``; raises ValueError if a field is missing or wrong."""
        if key == "categories":
            return self._category()
        return self._image() if key == "images" else self._segment()

    def _category(self) -> Category:
        number = self._number("id")
        _check_length("name", self.name)
        try:
            return Category(number, msgspec.json.decode(self.name, type=str))
        except REFUSED:
            raise refusal("name", self.name, "text") from None

    def _image(self) -> ListedImage:
        number, height, width = (self._number(name) for name in ("id", "height", "width"))
        for name in ("neg_category_ids", "not_exhaustive_category_ids"):
            _check_length(name, getattr(self, name))
        url, file_name = self._optional_text("coco_url"), self._optional_text("file_name")
        return ListedImage(number, height, width, url, file_name, self.neg_category_ids, self.not_exhaustive_category_ids)

    def _segment(self) -> Segment:
        annotation_id = None if bytes(memoryview(self.id)[:5]) in (b"", b"null") else self._number("id")
        image_id, category_id = self._number("image_id"), self._number("category_id")
        if not len(self.segmentation):
            raise refusal("segmentation", self.segmentation, "")
        return Segment(annotation_id=annotation_id, image_id=image_id, category_id=category_id, segmentation=self.segmentation)

    def _number(self, name: str) -> int:
        raw = getattr(self, name)
        value = whole_number(raw)
        if value is None:
            raise refusal(name, raw, _WHOLE)
        return value

    def _optional_text(self, name: str) -> str | None:
        raw = getattr(self, name)
        _check_length(name, raw)
        try:
            return msgspec.json.decode(raw, type=str | None) if len(raw) else None
        except REFUSED:
            raise refusal(name, raw, "text") from None


class Malformed(ValueError):
    """A malformed record; ``ids`` are its image id and annotation id, None if unknown."""

    def __init__(self, reason: str, ids: tuple[int | None, int | None] = (None, None)):
        super().__init__(reason)
        self.ids = ids


def read(key: str, text: np.ndarray, start: int, end: int) -> Record:
    """The record of the list ``key`` between two offsets of a text, see :mod:`lenient`; raises Malformed if it is refused.

    A segmentation is copied unless it is large, so that the rest of the record can be freed.
    """
    try:
        record: Record = msgspec.json.decode(text[start:end].data, type=RECORD_TYPES[key])
    except REFUSED:
        record = _of_fields(key, text, start, end)
    if isinstance(record, Segment) and len(record.segmentation) <= _SMALL:
        record.segmentation = record.segmentation.copy()
    return record


def _of_fields(key: str, text: np.ndarray, start: int, end: int) -> Record:
    fields = _Fields()
    try:
        fields = _Fields.of(strict(text, start, end))
        return fields.typed(key)
    except ValueError as error:
        record_id, image_id = whole_number(fields.id), whole_number(fields.image_id)
        raise Malformed(str(error), (record_id, None) if key == "images" else (image_id, record_id)) from None


class _LooseSegment(msgspec.Struct, gc=False, kw_only=True):
    """A :class:`Segment` whose whole numbers may be written as floats."""

    id: int | float | None = None
    image_id: int | float
    category_id: int | float
    segmentation: msgspec.Raw

    def record(self) -> Segment:
        return Segment(
            annotation_id=None if self.id is None else whole(self.id),
            image_id=whole(self.image_id),
            category_id=whole(self.category_id),
            segmentation=self.segmentation,
        )


class _LooseImage(msgspec.Struct, gc=False):
    """A :class:`ListedImage` whose whole numbers may be written as floats."""

    id: int | float
    height: int | float
    width: int | float
    coco_url: str | None = None
    file_name: str | None = None
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"[]")

    def record(self) -> ListedImage:
        number, height, width = whole(self.id), whole(self.height), whole(self.width)
        lists = self.neg_category_ids, self.not_exhaustive_category_ids
        return ListedImage(number, height, width, self.coco_url, self.file_name, *lists)


class _LooseCategory(msgspec.Struct, gc=False):
    """A :class:`Category` whose id may be written as a float."""

    id: int | float
    name: str

    def record(self) -> Category:
        return Category(whole(self.id), self.name)


_LOOSE: dict[str, Any] = {"images": list[_LooseImage], "annotations": list[_LooseSegment], "categories": list[_LooseCategory]}


def loose(key: str, block: bytes) -> list[Record]:
    """The records of a JSON list whose whole numbers may be written as floats.

    Raises ValueError or one of ``REFUSED`` for anything else.
    """
    return [row.record() for row in msgspec.json.decode(block, type=_LOOSE[key])]


_CATEGORY_IDS = msgspec.json.Decoder(tuple[int, ...] | None)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def _category_ids(name: str, raw: msgspec.Raw) -> tuple[int, ...]:
    """The category ids in a list, empty for null; raises ValueError for anything else."""
    _check_length(name, raw)
    try:
        return _CATEGORY_IDS.decode(raw) or ()
    except REFUSED:
        pass
    try:
        items = _ITEMS.decode(raw)
    except REFUSED:
        raise refusal(name, raw, _IDS) from None
    numbers = []
    for item in items:
        number = whole_number(item)
        if number is None:
            raise ValueError(f"its {name} contain {described(item)}; expected {_IDS}")
        numbers.append(number)
    return tuple(numbers)


def _check_length(name: str, raw: msgspec.Raw) -> None:
    if len(raw) > _LONGEST_FIELD:
        raise ValueError(f"its {name} has {len(raw):,} bytes; at most {_LONGEST_FIELD:,} are read")
