"""The records of annotation files, typed; what each field must be, and in which words a record is refused."""

import msgspec
import numpy as np

from cocolvis.sources import picture_names
from cocolvis.sources.json_values import REFUSED, refusal, shown, whole, whole_number
from cocolvis.sources.lenient import strict

_LONGEST_FIELD = 2**16
"""Bytes of the longest field, but for the segmentation, that a record may have: LVIS's have some hundred."""

_SMALL = 2**18
"""Bytes up to which a segmentation is copied out of a text that holds other things."""

_WHOLE, _IDS = "a whole number", "a list of whole numbers"


class Segment(msgspec.Struct, gc=False, kw_only=True):
    """One annotation of an image: its category and its segmentation, still as it stands in the file."""

    annotation_id: int | None = msgspec.field(name="id", default=None)
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
        """(folder or None, file name) of the picture, as :func:`cocolvis.sources.picture_names.location` finds them."""
        return picture_names.location(self.coco_url, self.file_name)


class Category(msgspec.Struct, gc=False):
    """An entry of the ``categories`` list."""

    id: int
    name: str


class ListedImage(msgspec.Struct, gc=False):
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
        lists = (_category_ids(name, getattr(self, name)) for name in ("neg_category_ids", "not_exhaustive_category_ids"))
        return ImageRecord(self.id, self.height, self.width, self.coco_url, self.file_name, *lists)


class File(msgspec.Struct, gc=False):
    """An annotation file, but for what nobody reads."""

    images: list[ListedImage]
    annotations: list[Segment]
    categories: msgspec.Raw = msgspec.Raw(b"[]")


READ = {"images": ListedImage, "annotations": Segment, "categories": Category}
"""What the elements of each list of a file become."""


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
    neg_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    not_exhaustive_category_ids: msgspec.Raw = msgspec.Raw(b"[]")
    name: msgspec.Raw = msgspec.Raw(b"")

    @classmethod
    def of(cls, record: memoryview) -> "_Fields":
        """The fields of a record in strict JSON; a ValueError where it is not an object."""
        try:
            return msgspec.json.decode(record, type=cls)
        except REFUSED:
            raise ValueError(f"it is {shown(record)}; expected an object") from None

    def typed(self, key: str) -> msgspec.Struct:
        """The record as ``READ[key]``; a ValueError that says in words which field is missing or wrong."""
        if key == "categories":
            return Category(self._number("id"), self._text("name", required=True))
        if key == "images":
            numbers = (self._number(name) for name in ("id", "height", "width"))
            lists = (self.neg_category_ids, self.not_exhaustive_category_ids)
            for name, raw in zip(("neg_category_ids", "not_exhaustive_category_ids"), lists, strict=True):
                _check_length(name, raw)
            return ListedImage(*numbers, self._text("coco_url"), self._text("file_name"), *lists)
        own = None if bytes(memoryview(self.id)[:5]) in (b"", b"null") else self._number("id")
        image_id, category_id = self._number("image_id"), self._number("category_id")
        if not len(self.segmentation):
            raise refusal("segmentation", self.segmentation, "")
        return Segment(annotation_id=own, image_id=image_id, category_id=category_id, segmentation=self.segmentation)

    def _number(self, name: str) -> int:
        raw = getattr(self, name)
        value = whole_number(raw)
        if value is None:
            raise refusal(name, raw, _WHOLE)
        return value

    def _text(self, name: str, *, required: bool = False) -> str | None:
        raw = getattr(self, name)
        _check_length(name, raw)
        try:
            return msgspec.json.decode(raw if len(raw) or required else b"null", type=str if required else str | None)
        except REFUSED:
            raise refusal(name, raw, "text") from None


class Malformed(ValueError):
    """A record that is none; ``ids`` are (image id, annotation id) as far as they can be told."""

    def __init__(self, reason: str, ids: tuple[int | None, int | None] = (None, None)):
        super().__init__(reason)
        self.ids = ids


def read(key: str, text: np.ndarray, start: int, end: int) -> ListedImage | Segment | Category:
    """The record of the list ``key`` between two places of a text, see :mod:`lenient`; Malformed where it is none.

    A segmentation gets bytes of its own unless it is large, so that the others of the record can be let go.
    """
    try:
        record = msgspec.json.decode(text[start:end].data, type=READ[key])
    except REFUSED:
        record = _of_fields(key, text, start, end)
    if isinstance(record, Segment) and len(record.segmentation) <= _SMALL:
        record.segmentation = record.segmentation.copy()
    return record


def _of_fields(key: str, text: np.ndarray, start: int, end: int) -> ListedImage | Segment | Category:
    fields = _Fields()
    try:
        fields = _Fields.of(strict(text, start, end))
        return fields.typed(key)
    except ValueError as error:
        own, image = whole_number(fields.id), whole_number(fields.image_id)
        raise Malformed(str(error), (own, None) if key == "images" else (image, own)) from None


def loose(key: str, block: bytes) -> list[msgspec.Struct]:
    """The records of a JSON list in which whole numbers may be written as floats; a ValueError, or ``REFUSED``, for others."""
    parsed = msgspec.json.decode(block, type=list[_LOOSE[key]])
    if key == "annotations":
        return [
            Segment(
                annotation_id=None if row.id is None else whole(row.id),
                image_id=whole(row.image_id),
                category_id=whole(row.category_id),
                segmentation=row.segmentation,
            )
            for row in parsed
        ]
    if key == "categories":
        return [Category(whole(row.id), row.name) for row in parsed]
    lists = "neg_category_ids", "not_exhaustive_category_ids"
    return [
        ListedImage(
            *(whole(number) for number in (row.id, row.height, row.width)),
            row.coco_url,
            row.file_name,
            *(getattr(row, name) for name in lists),
        )
        for row in parsed
    ]


class _LooseSegment(msgspec.Struct, gc=False, kw_only=True):
    id: int | float | None = None
    image_id: int | float
    category_id: int | float
    segmentation: msgspec.Raw


class _LooseImage(ListedImage, gc=False):
    id: int | float
    height: int | float
    width: int | float


class _LooseCategory(Category, gc=False):
    id: int | float


_LOOSE = {"images": _LooseImage, "annotations": _LooseSegment, "categories": _LooseCategory}

_CATEGORY_IDS = msgspec.json.Decoder(tuple[int, ...] | None)
_ITEMS = msgspec.json.Decoder(list[msgspec.Raw])


def _category_ids(name: str, raw: msgspec.Raw) -> tuple[int, ...]:
    """Those of a list; none for null; a ValueError in words for everything else."""
    _check_length(name, raw)
    try:
        return _CATEGORY_IDS.decode(raw) or ()
    except REFUSED:
        pass
    try:
        items = _ITEMS.decode(raw)
    except REFUSED:
        raise refusal(name, raw, _IDS) from None
    found = tuple(whole_number(item) for item in items)
    if None in found:
        raise ValueError(f"its {name} hold {shown(items[found.index(None)])}; expected {_IDS}")
    return found


def _check_length(name: str, raw: msgspec.Raw) -> None:
    if len(raw) > _LONGEST_FIELD:
        raise ValueError(f"its {name} takes {len(raw):,} bytes; at most {_LONGEST_FIELD:,} are read")
