"""Determines the folder and file name of a picture from the record of its image, and refuses unsafe names."""

import re
from collections.abc import Iterator
from urllib.parse import unquote

from cocolvis.errors import DataError
from cocolvis.sources.locations import FOLDERS

_USUAL = re.compile(r"http://images\.cocodataset\.org/(train2017|val2017)/(\d{12}\.jpg)", re.ASCII)
"""The URLs of the official files, which need no further check."""

_COCO_URL = re.compile(r"https?://(?:[\w.-]+\.)?cocodataset\.org/(?:[^?#%\\]*/)?([^/?#%\\]+)/([^/?#%\\]+)", re.ASCII)
"""A URL of the form that COCO and LVIS use, which ends in folder and file name."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/?#]*([^?#]*)")
"""Any URL, with its path; a scheme of a single letter would be a drive."""

_DRIVE = re.compile(r"[A-Za-z]:")
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufffd]")
"""Characters that no file name may contain: control characters, line ends, lone surrogates, the replacement character."""

_LONGEST_PART, _LONGEST_NAME = 255, 1000
"""The most bytes of one part of a path that file systems accept, and the most characters of a path that a data set accepts."""

Location = tuple[str | None, str]
"""(folder or None, file name) of a picture."""


def location(coco_url: str | None, file_name: str | None) -> Location:
    """(folder, file name) of a picture; the folder is None if the record names none.

    They come from the end of ``coco_url`` if that is a URL of COCO's own, otherwise from ``file_name``, otherwise from the end
    of any other URL. If ``file_name`` has no folder, a URL that ends in the same name provides it. Folders above train2017 or
    val2017 are dropped. Raises DataError if neither names a file inside the image folder.
    """
    if coco_url and (usual := _USUAL.fullmatch(coco_url)):
        return usual[1], usual[2]
    official = bool(coco_url and _COCO_URL.fullmatch(coco_url))
    url, name = (_attempt(text) for text in (coco_url, file_name))
    for candidate in (url if official else None, name, url):
        if isinstance(candidate, tuple):
            if candidate[0] is None and isinstance(url, tuple) and url[1] == candidate[1] and url[0] in FOLDERS:
                return url
            return candidate
    refused = [error for error in (name, url) if isinstance(error, DataError)]
    raise refused[0] if refused else DataError("it has neither coco_url nor file_name")


def _attempt(text: str | None) -> Location | DataError | None:
    try:
        return _parsed(text) if text else None
    except DataError as error:
        return error


def _parsed(text: str) -> Location:
    """The last two parts of a URL's path, with escapes resolved; text that is not a URL is itself the path of a file."""
    match = _URL.match(text)
    if not match:
        return _checked(text, text)
    folder, name = _checked(text, unquote(match[1]).lstrip("/"))
    return (folder.rpartition("/")[2] if folder else None), name


def _checked(original: str, path: str) -> Location:
    """(folder or None, file name) of a path in the image folder.

    Raises DataError, which quotes ``original``, if the path is not allowed.
    """
    path = path.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for fault in _faults(path, parts):
        shown = repr(original if len(original) <= 200 else original[:200] + "...")
        raise DataError(f"file name {shown} {fault}")
    *folders, name = parts
    if folders and folders[-1] in FOLDERS:
        return folders[-1], name
    return "/".join(folders) or None, name


def _faults(path: str, parts: list[str]) -> Iterator[str]:
    """Yield the faults of a path; only the first is reported."""
    if match := _UNFIT.search(path):
        what = "which replaces bytes that are not UTF-8" if match[0] == "\ufffd" else "which no file name may contain"
        yield f"contains the character U+{ord(match[0]):04X}, {what}"
    if path.startswith("/"):
        yield "is an absolute path; expected one inside the image folder, such as train2017/000000000009.jpg"
    if parts and _DRIVE.match(parts[0]):
        yield "names a drive; expected a path inside the image folder, such as train2017/000000000009.jpg"
    if ".." in parts:
        yield "leads out of the image folder" if _leads_out(parts) else "contains '..'; expected a path without it"
    if not parts or path.endswith(("/", "/.")):
        yield "does not name a file"
    longest = max((len(part.encode()) for part in parts), default=0)
    if longest > _LONGEST_PART:
        yield f"has a part of {longest} bytes; file systems accept at most {_LONGEST_PART}"
    if len(path) > _LONGEST_NAME:
        yield f"has {len(path)} characters; at most {_LONGEST_NAME} are accepted"


def _leads_out(parts: list[str]) -> bool:
    """Whether the path is above its starting folder at any point."""
    depth = 0
    for part in parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return True
    return False
