"""Pictures and label files as they lie below a folder: found, paired and listed; every file is named by its path from there."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cocolvis import checks, reading
from cocolvis.annotations import Fault
from cocolvis.archives import Place
from cocolvis.errors import DataError
from cocolvis.vocabulary import Vocabulary

_LARGEST_TEXT = 2**24
"""Bytes of the largest list of images or classes that is read."""


class LabelledImage(NamedTuple):
    """An image: its id, and the paths of its picture and its label file from ``root``, either of which may be missing.

    ``folders`` are those that hold all pictures and all label files, where names hold folders of their own.
    """

    image_id: int
    root: str
    path: str
    labels_path: str
    folders: tuple[str, str] = ("", "")

    @property
    def picture(self) -> Place:
        """Where the picture lies."""
        return self._place(self.path, self.folders[0])

    @property
    def labels(self) -> Place:
        """Where the label file lies."""
        return self._place(self.labels_path, self.folders[1])

    def _place(self, path: str, folder: str) -> Place:
        return Place(f"{self.root}/{path}", folder=f"{self.root}/{folder}" if folder else "")


@dataclass(frozen=True)
class Tree:
    """A data set as it was found.

    ``images`` holds those of each split in order; ``source`` is the numbering of ``vocabulary`` that the label files use;
    ``notes`` are lines for the user.
    """

    root: Path
    vocabulary: Vocabulary
    source: str
    images: Mapping[str, Sequence[LabelledImage]]
    faults: list[Fault] = field(default_factory=list)
    notes: Sequence[str] = ()


def find_root(src: Path, needed: Iterable[str], inside: Sequence[str], expected: str) -> Path:
    """``src``, or the folder ``inside`` it, that holds everything ``needed``; a DataError that says what is missing.

    ``expected`` is the layout in words.
    """
    if not reading.is_folder(src):
        raise DataError(f"{src}: is no folder; expected {expected}")
    needed = list(needed)
    roots = [src, *(src / name for name in inside)]
    missing = {root: [name for name in needed if not reading.exists(root / name)] for root in roots}
    root = min(roots, key=lambda root: len(missing[root]))
    if missing[root]:
        raise DataError(f"{root}: holds no {', '.join(missing[root])}; expected {expected}; --split builds one split alone")
    return root.resolve()


def paired(root: Path, layout: Mapping[str, tuple[Sequence[str], Sequence[str]]], faults: list[Fault]) -> dict[str, list]:
    """The labelled images of each split, sorted by name; ids count from 1 over all splits.

    ``layout`` has the paths that pictures, and that label files, of a split may have, with {} for a name, which may hold
    folders. Of two files of one name that with the first path counts; what is not there has the first. Hidden files are none.
    """
    numbers, found = count(1), {}
    for split, paths in layout.items():
        pictures, labels = (_matching(root, either, faults) for either in paths)
        found[split] = []
        folders = tuple(either[0].partition("{}")[0].rstrip("/") for either in paths)
        for name in sorted(pictures.keys() | labels.keys()):
            absent = [either[0].format(name) for either in paths]
            both = pictures.get(name, absent[0]), labels.get(name, absent[1])
            found[split].append(LabelledImage(next(numbers), str(root), *both, folders))
    return found


def listed(root: Path, names: str, pattern: str, picture: str, labels: Sequence[str], faults: list[Fault]) -> list:
    """The labelled images of the list ``names``, in its order; the groups of ``pattern``, put together, are an image's id.

    Only the first word of a line counts, without folder and ending. ``picture`` and ``labels`` are paths with {} for the name;
    the first of ``labels`` that is there counts. What is no name, or comes twice, is a fault.
    """
    found: dict[str, LabelledImage] = {}
    for line in read_text(root / names).splitlines():
        name = PurePosixPath(line.split()[0]).stem if line.strip() else ""
        number = re.fullmatch(pattern, name, re.ASCII)
        if name in found or (name and not number):
            kind, reason = ("duplicate image", "a second time") if name in found else ("malformed image", f"expected {pattern}")
            faults.append(Fault(kind, "image", None, None, f"{names}: {name[:100]!a}: {reason}"))
        elif number:
            places = [path.format(name) for path in labels]
            there = next((path for path in places if reading.exists(root / path)), places[0])
            found[name] = LabelledImage(int("".join(number.groups())), str(root), picture.format(name), there)
    return list(found.values())


def read_text(path: Path) -> str:
    """A small text file; a DataError that names it when it is absent, too large or no UTF-8."""
    size = checks.regular_file(path).st_size
    if size > _LARGEST_TEXT:
        raise DataError(f"{path}: has {size} bytes; at most {_LARGEST_TEXT} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text: {error.reason} at byte {error.start}") from None


def _matching(root: Path, paths: Sequence[str], faults: list[Fault]) -> dict[str, str]:
    """Name -> path of the files that have one of these paths; endings in upper and lower case alike."""
    found: dict[str, str] = {}
    for folder, _, ending in (path.partition("{}") for path in paths):
        for path in sorted(path for path in _files(root, folder) if path.lower().endswith(ending.lower())):
            name = path[len(folder) : -len(ending)]
            if not _recordable(path):
                reason = f"{path!a}: expected UTF-8 without control characters"
                faults.append(Fault("malformed image", "image", None, None, reason))
            elif name in found:
                faults.append(Fault("duplicate image", "image", None, None, f"{path}: {found[name]} has the same name"))
            else:
                found[name] = path
    return found


def _files(root: Path, folder: str) -> list[str]:
    """The paths from ``root`` of all files below a folder that are not hidden; none where there is no folder."""
    top = root / folder
    try:
        return reading.patiently(lambda: list(_walk(root, top)), str(top), reading.of_the_system) if reading.exists(top) else []
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {reading.strerror(error)}") from None


def _walk(root: Path, top: Path) -> Iterator[str]:
    for here, folders, files in os.walk(top, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.relpath(os.path.join(here, name), root) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise error


def _recordable(path: str) -> bool:
    """Whether a path can stand in a shard and on a screen: file names need not be text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x1f\x7f]", path)
