"""The records of annotation files as types: parsed as they stand, or from whatever fields a faulty one has."""

import re

import msgspec
import numpy as np

from cocolvis.errors import DataError
from cocolvis.lenient import strict


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
"""What no file name may hold: control characters, line ends, separators of other systems, and what is not UTF-8."""


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


class File(msgspec.Struct, gc=False):
    """An annotation file, but for what nobody reads."""

    images: list[ListedImage]
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


READ = {"images": ListedImage, "annotations": Segment, "categories": Category}
"""What the elements of each list of a file become."""

_CATEGORY_IDS = msgspec.json.Decoder(tuple[int, ...])

REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises of text that it does not take."""

_LONGEST_FIELD = 2**16
"""Bytes of the longest field, but for the segmentation, that a record may have: LVIS's have some hundred."""

_SMALL = 2**18
"""Bytes up to which a segmentation is copied out of a text that holds other things."""


class Malformed(ValueError):
    """A record that is none; ``ids`` are (image id, annotation id) as far as they can be told."""

    def __init__(self, reason: str, ids: tuple[int | None, int | None] = (None, None)):
        super().__init__(reason)
        self.ids = ids


def read(key: str, text: np.ndarray, start: int, end: int) -> ListedImage | Segment | Category:
    """The record of the list ``key`` between two places of a text, see :mod:`cocolvis.lenient`; Malformed where it is none.

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
        fields = msgspec.json.decode(strict(text, start, end), type=_Fields)
        return _typed(key, fields)
    except (*REFUSED, ValueError) as error:
        own, image = _integer(fields.id), _integer(fields.image_id)
        raise Malformed(str(error), (own, None) if key == "images" else (image, own)) from None


def _typed(key: str, fields: _Fields) -> msgspec.Struct:
    """The record of these fields; a ValueError or what msgspec raises where one is absent or of another type."""
    if key == "annotations":
        for name in ("id", "image_id", "category_id", "segmentation"):
            if not len(getattr(fields, name)):
                raise ValueError(f"Object missing required field `{name}`")
        identity = (_decoded(name, getattr(fields, name)) for name in ("id", "image_id", "category_id"))
        return Segment(*identity, fields.segmentation)
    parts = []
    for name in READ[key].__struct_fields__:
        raw = getattr(fields, name)
        if len(raw) > _LONGEST_FIELD:
            raise ValueError(f"{name} takes {len(raw)} bytes; at most {_LONGEST_FIELD} are read")
        if len(raw):
            parts.append(b'"%b":%b' % (name.encode(), bytes(raw)))
    return msgspec.json.decode(b"{%b}" % b",".join(parts), type=READ[key])


def _decoded(name: str, raw: msgspec.Raw) -> int:
    try:
        return msgspec.json.decode(raw, type=int)
    except REFUSED as error:
        raise ValueError(f"{error} - at `$.{name}`") from None


def _integer(raw: msgspec.Raw) -> int | None:
    """The integer that stands there, if there is one."""
    try:
        return msgspec.json.decode(raw, type=int)
    except REFUSED:
        return None
