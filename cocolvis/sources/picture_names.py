"""Which folder and file name an image record gives its picture, and in which words a name is refused."""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from cocolvis.errors import DataError
from cocolvis.sources.locations import FOLDERS

_COCO_URL = re.compile(r"https?://(?:[\w.-]+\.)?cocodataset\.org/(?:[^?#%\\]*/)?([^/?#%\\]+)/([^/?#%\\]+)", re.ASCII)
"""An address as COCO and LVIS have them: it names folder and file."""

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/?#]*([^?#]*)")
"""Any address with its path; a scheme of one letter would be a drive."""

_DRIVE = re.compile(r"[A-Za-z]:")
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd]")
"""What no file name may hold: control characters, line ends, what UTF-8 cannot write and its stand-in."""

_LONGEST_PART, _LONGEST_NAME = 255, 1000
"""Bytes of a file's or folder's name that file systems take, and characters of the whole that a data set takes."""

Place = tuple[str | None, str]


def location(coco_url: str | None, file_name: str | None) -> Place:
    """(folder or None, file name) of a picture.

    Those at the end of an address of COCO's, else those of ``file_name``, else those at the end of any other address. Without
    a folder in ``file_name``, an address that ends in the same name gives it. A DataError where none of them names a file
    inside the image folder.
    """
    official = bool(coco_url and _COCO_URL.fullmatch(coco_url))
    url, name = (_attempt(text) for text in (coco_url, file_name))
    for found in (url if official else None, name, url):
        if isinstance(found, tuple):
            if found[0] is None and isinstance(url, tuple) and url[1] == found[1] and url[0] in FOLDERS:
                return url
            return found
    raise name or url or DataError("it has neither coco_url nor file_name")


def _attempt(text: str | None) -> Place | DataError | None:
    try:
        return _of_address(text) if text else None
    except DataError as error:
        return error


def _of_address(text: str) -> Place:
    """The last two parts of the path in a web address, escapes resolved; what is no address is the path of a file itself."""
    found = _ADDRESS.match(text)
    if not found:
        return _checked(text, text)
    folder, name = _checked(text, unquote(found[1]).lstrip("/"))
    return (folder.rpartition("/")[2] if folder else None), name


def _checked(said: str, name: str) -> Place:
    """(folder or None, file name) of a path in the image folder; a DataError that says what is wrong with it."""
    shown = repr(said if len(said) <= 200 else said[:200] + "...")
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for fault in _faults(path, parts):
        raise DataError(f"file name {shown} {fault}")
    return "/".join(parts[:-1]) or None, parts[-1]


def _faults(path: str, parts: list[str]) -> Iterator[str]:
    """What is wrong with a path, in words; the first is reason enough."""
    if found := _UNFIT.search(path):
        what = {"\ufffd": "which stands for bytes that are not UTF-8"}.get(found[0], "which no file name may hold")
        yield f"holds the character U+{ord(found[0]):04X}, {what}"
    if path.startswith("/"):
        yield "is an absolute path; expected one inside the image folder, such as train2017/000000000009.jpg"
    if parts and _DRIVE.match(parts[0]):
        yield "names a drive; expected a path inside the image folder, such as train2017/000000000009.jpg"
    if ".." in parts:
        yield "leaves the image folder" if _leaves(parts) else "holds '..'; expected a path without it"
    if not parts or path.endswith(("/", "/.")):
        yield "names no file"
    longest = max((len(part.encode()) for part in parts), default=0)
    if longest > _LONGEST_PART:
        yield f"has a part of {longest} bytes; file systems take {_LONGEST_PART}"
    if len(path) > _LONGEST_NAME:
        yield f"has {len(path)} characters; at most {_LONGEST_NAME} are taken"


def _leaves(parts: list[str]) -> bool:
    """Whether the path is above its start at any point."""
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
