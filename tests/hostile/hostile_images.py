"""Named cases of hostile image records, file names, pictures and whole annotation files."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from hostile_annotations import DEEP, IMAGE, MANY_DIGITS, NAME, STUFF, THING, Case, short
from PIL import Image


def _image(height="8", width="8", *, identity=IMAGE, more="") -> str:
    url = f'"http://x/train2017/{NAME}.jpg"'
    return f'{{"id": {identity}, "height": {height}, "width": {width}, "coco_url": {url}{more}}}'


_REFUSED = ("malformed image", "lvis", IMAGE, None)
_LOST = (_REFUSED, ("unlisted image", "lvis", IMAGE, THING))
_NO_STUFF = (
    ("malformed image", "stuff", IMAGE, None),
    ("unlisted image", "stuff", IMAGE, STUFF),
    ("no stuff", "stuff", IMAGE, None),
)
_HEIGHTS = ("NaN", "8.5", '"8"', "null", "{}", "0", "4294967304", "134217729", DEEP)
_WIDTHS = ("Infinity", "1e999", "8e300", "true", "[8]", "-8", "18446744073709551624", MANY_DIGITS)
_LISTED_HEIGHTS = ("NaN", "0", '"8"', "134217729")
_CATEGORIES = ("7", '["7"]', "[7.5]", "[NaN]", "[true]", '{"7": 7}')


def _sizes() -> list[Case]:
    records = {f"height {short(value)}": _image(value) for value in _HEIGHTS}
    records |= {f"width {short(value)}": _image("8", value) for value in _WIDTHS}
    records |= {f"no {key}": _image().replace(key, "other") for key in ("height", "width")}
    records["image of 100000 x 100000"] = _image("100000", "100000")
    cases = [Case(name=name, image=text, faults=_LOST, left="nothing") for name, text in records.items()]
    listed = {f"listed height {short(value)}": _image(value) for value in _LISTED_HEIGHTS}
    listed["listed image of 100000 x 100000"] = _image("100000", "100000")
    return cases + [Case(name=name, listing=text, faults=_NO_STUFF, left="things") for name, text in listed.items()]


def _records() -> list[Case]:
    nameless = ("malformed image", "lvis", None, None)
    cases = []
    for value in ("NaN", "1.5", "-1e19", "true", f'"{IMAGE}"', "null", "[1]", MANY_DIGITS, DEEP):
        faults = (nameless, _LOST[1])
        cases.append(
            Case(name=f"image whose id is {short(value)}", image=_image(identity=value), faults=faults, left="nothing")
        )
    for text in ("17", "null", '"text"', "[]", "{}"):
        cases.append(Case(name=f"image that is {text}", added_image=text, faults=(nameless,)))
    for identity in (-1, 2**62, 2**70):
        faults = (("malformed image", "lvis", identity, None),)
        cases.append(Case(name=f"image of the id {identity}", added_image=_image(identity=str(identity)), faults=faults))
    for value in _CATEGORIES:
        text = _image(more=f', "neg_category_ids": {value}')
        cases.append(Case(name=f"categories verified absent are {value}", image=text, faults=_LOST, left="nothing"))
    text = _image(more=', "not_exhaustive_category_ids": "all"')
    absent = _image(more=f', "neg_category_ids": [0, -1, 5000, {2**70}]')
    more = _image(more=f', "license": NaN, "note": [1e999, {MANY_DIGITS}, {DEEP}]')
    return [
        *cases,
        Case(name="categories not exhaustive are text", image=text, faults=_LOST, left="nothing"),
        Case(name="unknown categories verified absent", image=absent),
        Case(name="image with extra keys", image=more),
        Case(name="image whose numbers are floats", image=_image("8.0", "0.8e1", identity=f"{IMAGE}.0")),
        Case(name="categories verified absent are null", image=_image(more=', "neg_category_ids": null')),
        Case(name="image id twice", added_image=_image("4", "4"), faults=(("duplicate image", "lvis", IMAGE, None),)),
        Case(name="listed id twice", added_listing=_image("4", "4"), faults=(("duplicate image", "stuff", IMAGE, None),)),
    ]


_NAMES = {
    "nothing": '""',
    "..": '"../secret.jpg"',
    ".. inside": '"train2017/../../secret.jpg"',
    ".. at its end": '"train2017/.."',
    "an absolute path": '"/etc/passwd"',
    "two slashes": '"//host/share.jpg"',
    "backslashes": r'"..\\..\\secret.jpg"',
    "a drive letter": '"C:/secret.jpg"',
    "a drive letter and no slash": '"C:secret.jpg"',
    "NUL": r'"a\u0000.jpg"',
    "a line break": r'"a\nb.jpg"',
    "escape": r'"\u001b[31mred.jpg"',
    "a control character beyond ASCII": r'"a\u009b31mred.jpg"',
    "a line separator": r'"a\u2028b.jpg"',
    "a lone surrogate": r'"a\ud800.jpg"',
    "a folder alone": '"train2017/"',
    "a folder without stuff": '"elsewhere/a.jpg"',
    "a file for a folder": '"train2017/000000000001.jpg/a.jpg"',
    "a long folder": f'"{"d" * 5000}/a.jpg"',
    "a lone surrogate for a folder": r'"\udc80/a.jpg"',
}
_URLS = {
    "..": '"http://x/../a.jpg"',
    ".. at its end": '"http://x/train2017/.."',
    "backslashes": r'"http://x/..\\..\\a.jpg"',
    "a drive letter": '"http://x/C:/a.jpg"',
    "a folder without stuff": '"http://x/elsewhere/a.jpg"',
    "a long folder": f'"http://x/{"d" * 5000}/a.jpg"',
    "NUL for a folder": r'"http://x/\u0000/a.jpg"',
    "no name": '"http://x/train2017/"',
}
_NO_NAMES = {"file_name": ("5", "true", '["a.jpg"]', "NaN"), "coco_url": ("7.5", '{"name": "a.jpg"}')}


def _names() -> list[Case]:
    def named(key: str, value: str) -> str:
        return f'{{"id": {IMAGE}, "height": 8, "width": 8, "{key}": {value}}}'

    cases = [Case(name="neither coco_url nor file_name", image=named("date", "1"), faults=(_REFUSED,), left="nothing")]
    for key, names in (("file_name", _NAMES), ("coco_url", _URLS)):
        for name, value in names.items():
            cases.append(Case(name=f"{key} with {name}", image=named(key, value), faults=(_REFUSED,), left="nothing"))
        for value in _NO_NAMES[key]:
            cases.append(Case(name=f"{key} is {value}", image=named(key, value), faults=_LOST, left="nothing"))
    for name, value, kind in (
        ("of 5000 characters", f'"train2017/{"n" * 5000}.jpg"', "malformed image"),
        ("of 300 characters", f'"train2017/{"n" * 300}.jpg"', "malformed image"),
        ("with %2e%2e", '"train2017/%2e%2e%2fsecret.jpg"', "missing image"),
        ("with colons", '"train2017/12:30:00.jpg"', "missing image"),
    ):
        source = "lvis" if kind == "malformed image" else "image"
        faults = ((kind, source, IMAGE, None),)
        cases.append(Case(name=f"file_name {name}", image=named("file_name", value), faults=faults, left="nothing"))
    return cases


_PIXELS = np.random.default_rng(5).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def _encoded(height: int = 8, width: int = 8, extension: str = ".jpg") -> bytes:
    return cv2.imencode(extension, np.resize(_PIXELS, (height, width, 3)))[1].tobytes()


def _turned(height: int, width: int) -> bytes:
    """A JPEG that is stored in this size and displayed rotated by 90 degrees."""
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(np.resize(_PIXELS, (height, width, 3))).save(out, "JPEG", exif=exif)
    return out.getvalue()


def _png(height: int, width: int) -> bytes:
    """A PNG of a few bytes whose header declares this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _declared(height: int, width: int) -> bytes:
    """A JPEG of 8 x 8 pixels whose frame header declares another size."""
    content = bytearray(_encoded())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _file(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(target: str) -> Callable[[Path], object]:
    """Replace a picture with a link to a file in the same folder; NAME stands for its own name."""

    def change(path: Path) -> None:
        path.unlink()
        path.symlink_to(target.replace("NAME", path.name))

    return change


_JPEG, _PNG = _encoded(), _encoded(extension=".png")
_PICTURES = {
    "unreadable image": {
        "zero bytes": _file(b""),
        "text": _file(b"This is not a picture.\n"),
        "NULs": _file(bytes(10_000)),
        "another format": _file(_encoded(extension=".webp")),
        "a JPEG cut in the middle": _file(_JPEG[: len(_JPEG) // 2]),
        "a JPEG cut at the end": _file(_JPEG[:-2]),
        "a JPEG cut in its header": _file(_JPEG[:30]),
        "a JPEG of two bytes": _file(_JPEG[:2]),
        "a JPEG with garbage for segments": _file(_JPEG[:20] + b"garbage " * 99 + b"\xff\xd9"),
        "a JPEG with segments of no length": _file(b"\xff\xd8" + b"\xff\xe0\x00\x00" * 5000 + b"\xff\xd9"),
        "a PNG cut in the middle": _file(_PNG[:60]),
        "a PNG cut in its header": _file(_PNG[:20]),
        "a folder": _folder,
        "a loop of links": _link("NAME"),
    },
    "wrong image size": {
        "a larger picture": _file(_encoded(16, 16)),
        "a smaller picture": _file(_encoded(4, 4)),
        "a picture of as many pixels": _file(_encoded(4, 16)),
        "a wide picture turned by EXIF": _file(_turned(4, 16)),
        "a PNG bomb": _file(_png(60_000, 60_000)),
        "the largest PNG": _file(_png(2**32 - 1, 2**32 - 1)),
        "a JPEG bomb": _file(_declared(60_000, 60_000)),
        "a JPEG without height": _file(_declared(0, 8)),
    },
    "missing image": {"no file": Path.unlink, "a dead link": _link("nowhere.jpg")},
    None: {
        "a PNG by the name of a JPEG": _file(_PNG),
        "a JPEG with garbage behind it": _file(_JPEG + b"garbage" * 100),
        "a square picture turned by EXIF": _file(_turned(8, 8)),
    },
}
"""Kind of fault -> what replaces a picture; None for what is fine."""


def _pictures() -> list[Case]:
    cases = []
    for kind, pictures in _PICTURES.items():
        faults, left = (((kind, "image", IMAGE, None),), "nothing") if kind else ((), "all")
        cases += [Case(name=f"picture: {n}", picture=change, faults=faults, left=left) for n, change in pictures.items()]
    return cases


IMAGES = _sizes() + _records() + _names() + _pictures()

_HEAD = b'{"images": [{"id": 1, "height": 8, "width": 8, "coco_url": "http://x/train2017/000000000001.jpg"}], '
_NONE = _HEAD + b'"annotations": [], '
_WHOLE = _HEAD + b'"annotations": [{"id": 1, "image_id": 1, "category_id": 7, "segmentation": [[0, 0, 8, 0, 8, 8]]}]}'

FILES = {
    "empty": b"",
    "one space": b" ",
    "cut in the middle": _WHOLE[: len(_WHOLE) // 2],
    "cut before its last character": _WHOLE[:-1],
    "cut in a text": _HEAD[:60],
    "list": b"[" + _WHOLE + b"]",
    "text": b'"annotations"',
    "number": b"7",
    "null": b"null",
    "NaN": b"NaN",
    "empty object": b"{}",
    "no annotations": _HEAD.rstrip(b", ") + b"}",
    "no images": b'{"annotations": []}',
    "annotations null": _HEAD + b'"annotations": null}',
    "annotations an object": _HEAD + b'"annotations": {"1": {"id": 1}}}',
    "annotations a text": _HEAD + b'"annotations": "none"}',
    "images a number": b'{"images": 7, "annotations": []}',
    "category without name": _NONE + b'"categories": [{"id": 1}]}',
    "category with line breaks": _NONE + b'"categories": [{"id": 1, "name": "a\\nb\\u2028c"}]}',
    "category with a lone surrogate": _NONE + b'"categories": [{"id": 1, "name": "\\ud800"}]}',
    "category that is null": _NONE + b'"categories": [null]}',
    "missing comma": _WHOLE.replace(b', "annotations"', b' "annotations"'),
    "missing colon": _WHOLE.replace(b'"annotations":', b'"annotations"'),
    "vertical tab for a space": _WHOLE.replace(b": ", b":\x0b"),
    "single quotes": _WHOLE.replace(b'"', b"'"),
    "twice": _WHOLE + _WHOLE,
    "garbage behind it": _WHOLE + b"\x00\xff garbage",
    "lists without end": b"[" * 100_000,
    "objects without end": b'{"a":' * 100_000,
    "UTF-16": _WHOLE.decode().encode("utf-16"),
    "UTF-32": _WHOLE.decode().encode("utf-32"),
    "NULs": bytes(1000),
    "binary junk": np.random.default_rng(8).bytes(4000),
    "compressed": zlib.compress(_WHOLE),
    "picture": _JPEG,
    "folder": None,
}
"""What may be in place of an annotation file although it is not one; None is a folder."""
