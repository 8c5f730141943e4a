"""Walking users' folders: links are followed, system files are skipped, and names match in any Unicode normal form."""

import os
import re
from collections import deque
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.text import nfc, replace_unprintable

_LITTER = {
    *("@eadir", "@recycle", "#recycle", "@recently-snapshot", "#snapshot", "lost+found"),
    *("$recycle.bin", "system volume information", "recycler", "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"),
}
"""Files and folders that NAS devices, Windows and macOS create, in lower case; all others begin with a dot."""

_LONGEST_PATH = 2**12
"""Bytes of the longest path that operating systems accept."""


class Walk(NamedTuple):
    """The ``files`` below a folder, sorted, as paths relative to it; ``notes`` say what was not followed or read."""

    files: list[str]
    notes: list[str]


def walk(folder: str | Path, tolerant: bool = False) -> Walk:
    """All files below a folder, linked folders included; an empty list if the folder does not exist.

    Each folder is read once: under its own name if it is below ``folder``, otherwise under the name of the first link to it.
    Loops of links therefore end. Hidden files and system files are skipped. Raises DataError if a folder cannot be read after
    the retries of :mod:`cocolvis.disk.reading`; with ``tolerant`` it becomes a note instead, unless it is ``folder`` itself.
    """
    with reading.allowing_missing(tolerant or reading.missing_allowed()):
        return _walk(folder, tolerant)


def _walk(folder: str | Path, tolerant: bool) -> Walk:
    top = os.path.realpath(folder)
    above = {os.path.realpath(path): path for path in (*Path(top).parents, *Path(os.path.abspath(folder)).parents)}
    outside = {real: path for real, path in above.items() if os.path.commonpath((real, top)) != top}
    seen = {real: f"leads back to {path} and is not followed" for real, path in outside.items()}
    files: list[str] = []
    problems: dict[str, list[tuple[str, str]]] = {}
    folders, links = deque([""]), deque[str]()
    while folders or links:  # links last, so that folders below the top one keep their own names
        here = (folders or links).popleft()
        path = os.path.join(folder, here) if here else str(folder)
        real = os.path.realpath(path)
        if real in seen:
            problems.setdefault("repeated", []).append((path, seen[real]))
            continue
        seen[real] = f"leads to {path}, which is read under that name only"
        try:
            entries = reading.with_retries(partial(_entries, path), path, reading.system_reason)
        except OSError as error:
            why = f"cannot be read: {reading.strerror(error)}"
            if not (tolerant and here):
                raise DataError(f"{path}: {why}") from None
            problems.setdefault("unreadable", []).append((path, why))
            continue
        for entry in entries:
            name = os.path.join(here, entry.name)
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(name)
                continue
            files.append(name)
            if lost := _lost_link(entry):
                problems.setdefault("lost", []).append((entry.path, lost))
    return Walk(sorted(files), [_line(*min(met), len(met)) for met in problems.values()])


def passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden or was created by the system."""
    return name.startswith(".") or name.casefold() in _LITTER


def on_disk(path: Path) -> Path:
    """``path``, or the existing path whose names differ from it only in their Unicode normal form."""
    if str(path).isascii() or os.path.lexists(path) or path.parent == path:
        return path
    parent = on_disk(path.parent)
    try:
        names = sorted(os.listdir(parent))
    except (OSError, ValueError):
        return path
    return next((parent / name for name in names if nfc(name) == nfc(path.name)), path)


class Similar:
    """An index of files by similar names: "a" finds a.tif, A.png, a_mask.png and mask-a.png; "a_mask" finds a.png."""

    def __init__(self, paths: Iterable[str]):
        self._whole: dict[str, str] = {}
        self._parts: dict[str, str] = {}
        for path in paths:
            name = path[: -len(suffix)] if (suffix := os.path.splitext(path)[1]) else path
            whole, parts = _keys(name)
            self._whole.setdefault(whole, path)
            for part in parts:
                self._parts.setdefault(part, path)

    def find(self, name: str) -> str | None:
        """The path of a file with a similar name in the same folder, or None; ``name`` is a path without a suffix."""
        whole, parts = _keys(name)
        near = (self._whole.get(whole), self._parts.get(whole), *(self._whole.get(part) for part in parts))
        return next(filter(None, near), None)


def _keys(name: str) -> tuple[str, list[str]]:
    """A path in lower case, and what remains of it, longest first, when its name is cut at a separator such as "_"."""
    folder, slash, stem = nfc(name).casefold().rpartition("/")
    cuts = [(match.start(), match.end()) for match in re.finditer(r"[_.\- ]+", stem)]
    parts = {part for start, end in cuts for part in (stem[:start], stem[end:]) if part}
    return folder + slash + stem, [folder + slash + part for part in sorted(parts, key=lambda part: (-len(part), part))]


def _entries(folder: str) -> list[os.DirEntry]:
    """The entries of a folder, sorted by name; an empty list if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not passed_over(entry.name)), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return reading.with_retries(entry.is_dir, entry.path, reading.system_reason)
    except OSError:  # a link to itself, or one that may not be followed
        return False


def _lost_link(entry: os.DirEntry) -> str | None:
    """The fault of a dangling link, or of a text file that replaced a link on a system without links; None if there is none."""
    if entry.is_symlink():
        return None if os.path.exists(entry.path) else f"is a link to {os.readlink(entry.path)}, which cannot be read"
    if "." in entry.name or not entry.is_file(follow_symlinks=False):
        return None
    try:
        if entry.stat().st_size > _LONGEST_PATH:
            return None
        with open(entry.path, "rb") as file:
            target = os.fsdecode(file.read(_LONGEST_PATH)).strip()
        if target and "\0" not in target and os.path.isdir(os.path.join(os.path.dirname(entry.path), target)):
            return f"is a text file that names the folder {target}, as some systems copy a link; it is not followed"
    except OSError:
        pass
    return None


def _line(path: str, reason: str, count: int) -> str:
    return replace_unprintable(f"{path}: {reason}" + (f" (and {count - 1} more like it)" if count > 1 else ""))
