"""Finds the pictures and label files below a folder and pairs them; every file is named by its path from that folder."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from cocolvis.disk import reading
from cocolvis.disk.archives import Place
from cocolvis.disk.files import read_lines
from cocolvis.disk.folders import Similar, walk
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.text import nfc
from cocolvis.vocabulary import Vocabulary

PICTURES = (".jpg", ".jpeg", ".png")
"""File endings of pictures in every import, in upper or lower case."""

OWN_DATA = (
    "import a data set of your own with `cocolvis import folder`: images/{train,val}, masks/{train,val} and a list of classes"
)
"""The advice for a data set that only looks like a published one and has other classes."""

_UNREAD = (*PICTURES, ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".mat", ".npy", ".npz")
"""Endings of files that may have been meant as a picture or a mask although they are not read as one."""

_IDS = 2**62
"""Image ids are below this."""

Layout = tuple[Sequence[str], Sequence[str]]
"""The paths that pictures, and that label files, may have; {} stands for a name, which may contain folders."""


class Names(NamedTuple):
    """The names that the images of a published data set have: a regular expression whose groups, concatenated, are the id."""

    dataset: str
    pattern: str
    example: str


class LabelledImage(NamedTuple):
    """An image: its id, and the paths from ``root`` of its picture and its label file, either of which may be missing.

    ``missing`` says what is wrong with the missing one. ``folders`` are the folder of all pictures and that of all label files,
    if file names contain folders below them.
    """

    image_id: int
    root: str
    path: str
    labels_path: str
    missing: str = "does not exist"
    folders: tuple[str, str] = ("", "")

    @property
    def picture(self) -> Place:
        """The picture file."""
        return self._place(self.path, self.folders[0])

    @property
    def labels(self) -> Place:
        """The label file."""
        return self._place(self.labels_path, self.folders[1])

    def _place(self, path: str, folder: str) -> Place:
        return Place(f"{self.root}/{path}", folder=f"{self.root}/{folder}" if folder else "")


@dataclass(frozen=True)
class Findings:
    """The results of looking for files besides the images: faults of single files, and lines for the user."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Tree:
    """A data set found in a folder.

    ``images`` has the images of each split in order; ``source`` is the numbering of ``vocabulary`` that the label files use.
    """

    root: Path
    vocabulary: Vocabulary
    source: str
    images: Mapping[str, Sequence[LabelledImage]]
    findings: Findings


def find_root(src: Path, needed: Iterable[str], inside: Sequence[str], expected: str) -> Path:
    """``src``, or one of the folders ``inside`` it, whichever holds everything ``needed``.

    Raises DataError if both lack something; ``expected`` is the layout in words.
    """
    if not reading.is_folder(src):
        raise DataError(f"{src}: is not a directory; expected {expected}")
    needed = list(needed)
    roots = [src, *(src / name for name in inside)]
    missing = {root: [name for name in needed if not reading.exists(root / name)] for root in roots}
    root = min(roots, key=lambda root: len(missing[root]))
    if missing[root]:
        raise DataError(f"{root}: holds no {', '.join(missing[root])}; expected {expected}; --split builds one split alone")
    return root.resolve()


def paired(
    root: Path, layout: Mapping[str, Layout], splits: Collection[str], findings: Findings
) -> dict[str, list[LabelledImage]]:
    """The labelled images of each split, sorted by name.

    If all names are numbers, and no number occurs twice, these are the ids; otherwise images are counted from 1 over all
    splits. Of two files with the same name, the one whose path comes first in the ``layout`` is used. A missing file gets the
    first path. Findings are limited to ``splits``. Raises DataError if one of these has no picture with its labels, unless that
    is allowed (:func:`cocolvis.disk.reading.allowing_missing`).
    """
    by_split: dict[str, list[LabelledImage]] = {}
    for split, paths in layout.items():
        wanted, faults = split in splits, len(findings.faults)
        try:
            both = [_matching(root, either, findings if wanted else Findings()) for either in paths]
        except DataError as error:
            if wanted or isinstance(error, reading.UnreadableInput):  # its images are counted, too
                raise
            both = [_Matched(), _Matched()]
        pictures, labels = both
        names = sorted(pictures.named.keys() | labels.named.keys() | pictures.other.keys() | labels.other.keys())
        whole = pictures.named.keys() & labels.named.keys()
        similar = [either.unpaired(whole) for either in both] if len(whole) < len(names) else []
        by_split[split] = [_image(root, name, paths, both, similar) for name in names]
        if wanted and not names and len(findings.faults) > faults:
            raise DataError(f"{root}: split {split} has no file with a usable name: {findings.faults[faults].reason}")
        if wanted and names and not whole and not reading.missing_allowed():
            image = by_split[split][0]
            absent = image.picture if names[0] in labels.named else image.labels
            why = reading.folder_problem(absent.folder) or f"{absent.path.removeprefix(f'{root}/')} {image.missing}"
            raise DataError(f"{root}: split {split} has no picture with its mask: {why}")
    return _numbered(by_split, findings)


def listed(
    root: Path, lists: Mapping[str, tuple[str, Layout]], names: Names, findings: Findings
) -> dict[str, list[LabelledImage]]:
    """The labelled images of each split in the order of its list.

    ``lists`` has the path of the list of each split, and the layout of its files. Only the first word of a line counts, without
    folder and ending. A line that is not one of the ``names``, or repeats one, is a fault; raises DataError if no line is. An
    image in two lists is a fault too, but stays in both splits.
    """
    matched: dict[tuple[str, ...], _Matched] = {}
    by_split: dict[str, list[LabelledImage]] = {}
    split_of: dict[str, str] = {}
    for split, (path, layout) in lists.items():
        ids = _listed_ids(root, path, names, findings)
        for name in ids:
            if (other := split_of.setdefault(name, split)) != split:
                reason = f"{path}: {name} is in split {other} too; it is kept in both"
                findings.faults.append(Fault("image in two splits", "image", ids[name], None, reason))
        for paths in map(tuple, layout):
            if paths not in matched:
                matched[paths] = _matching(root, paths, Findings(notes=findings.notes))  # unlisted files may be faulty
        both = [matched[tuple(paths)] for paths in layout]
        whole = both[0].named.keys() & both[1].named.keys()
        similar = [either.unpaired(ids.keys()) for either in both] if ids.keys() - whole else []
        by_split[split] = [_image(root, name, layout, both, similar)._replace(image_id=ids[name]) for name in ids]
    return by_split


@dataclass(frozen=True)
class _Matched:
    """The files that match a layout.

    ``named`` maps the composed name of each to its path. ``other`` does the same for files that would match with another
    ending. ``rest`` has the paths of all files that are not in ``named``.
    """

    named: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    def unpaired(self, whole: Collection[str]) -> Similar:
        """The files that belong to none of the ``whole`` images, as suggestions for what is missing."""
        return Similar(self.rest + [path for name, path in self.named.items() if name not in whole])


def _matching(root: Path, paths: Sequence[str], findings: Findings) -> _Matched:
    """The files with one of these paths; earlier paths take precedence, and the case of endings does not matter."""
    matched = _Matched()
    for folder in dict.fromkeys(path.partition("{}")[0] for path in paths):
        endings = [path.partition("{}")[2].lower() for path in paths if path.startswith(folder + "{}")]
        files, notes = walk(root / folder)
        findings.notes.extend(note for note in notes if note not in findings.notes)
        by_ending: dict[str | None, list[str]] = {}
        for path in files:
            by_ending.setdefault(next((end for end in endings if path.lower().endswith(end)), None), []).append(path)
        for ending in endings:
            for path in by_ending.get(ending, ()):
                _take(matched, folder + path, nfc(path[: -len(ending)]), findings)
        stems = {ending.rpartition(".")[0] for ending in endings}
        for path in filter(_recordable, by_ending.get(None, ())):
            matched.rest.append(folder + path)
            stem, suffix = os.path.splitext(path)
            for end in (end for end in stems if stem.lower().endswith(end) and suffix.lower() in _UNREAD):
                matched.other.setdefault(nfc(stem[: len(stem) - len(end)]), folder + path)
    return matched


def _take(matched: _Matched, path: str, name: str, findings: Findings) -> None:
    if not _recordable(path):
        reason = f"{path!a}: expected UTF-8 without control characters"
        findings.faults.append(Fault("malformed image", "image", None, None, reason))
    elif name in matched.named:
        reason = f"{path}: {matched.named[name]} has the same name"
        findings.faults.append(Fault("duplicate image", "image", None, None, reason))
        matched.rest.append(path)
    else:
        matched.named[name] = path


def _image(root: Path, name: str, layout: Layout, both: Sequence[_Matched], similar: Sequence[Similar]) -> LabelledImage:
    """The image with this name, its id still 0. A missing file gets the first path of the layout and a hint."""
    picture, labels = (matched.named.get(name, paths[0].format(name)) for matched, paths in zip(both, layout, strict=True))
    folders = _folder(picture, layout[0]), _folder(labels, layout[1])
    image = LabelledImage(0, str(root), picture, labels, folders=folders)
    for side in (1, 0):  # a build looks for the label file first
        if name not in both[side].named:
            near = similar[side].find(layout[side][0].partition("{}")[0] + name)
            return image._replace(missing=f"does not exist; there is {_described(near, side == 1)}") if near else image
    return image


def _folder(path: str, paths: Sequence[str]) -> str:
    """The folder of a layout that contains a path."""
    return next(folder for folder in (one.partition("{}")[0] for one in paths) if path.startswith(folder)).rstrip("/")


def _described(path: str, is_mask: bool) -> str:
    """The name of a file; if that looks like a mask in another format, also the format that masks must have."""
    name = PurePosixPath(path)
    if not is_mask or name.suffix.lower() not in _UNREAD or name.suffix.lower() == ".png":
        return name.name
    lossy = name.suffix.lower() in (".jpg", ".jpeg")
    return f"{name.name}, but masks must be PNGs" + (": a JPEG is lossy, and its numbers are not those that were drawn" * lossy)


def _numbered(by_split: Mapping[str, list[LabelledImage]], findings: Findings) -> dict[str, list[LabelledImage]]:
    """The images with their ids: the numbers that are their names, or a count over all splits."""
    images = list(chain.from_iterable(by_split.values()))
    numbers = [_number(image.path) for image in images]
    named = [number for number in numbers if number is not None]
    ids = iter(named)
    if reason := _why_counted(numbers, images):
        ids = iter(range(1, len(images) + 1))
        if named:
            findings.notes.append(f"the images are counted from 1: {reason}")
    return {split: [image._replace(image_id=next(ids)) for image in of_split] for split, of_split in by_split.items()}


def _number(path: str) -> int | None:
    """The number that is the name of a file; None if the name is not a number, or one too large for an id."""
    stem = PurePosixPath(path).stem
    number = int(stem) if re.fullmatch(r"\d{1,100}", stem, re.ASCII) else _IDS
    return number if number < _IDS else None


def _why_counted(numbers: Sequence[int | None], images: Sequence[LabelledImage]) -> str:
    """Why the numbers cannot be ids; "" if they can."""
    paths: dict[int, str] = {}
    for number, image in zip(numbers, images, strict=True):
        if number is None:
            return f"the name of {image.path} is not a number below {_IDS}"
        if number in paths:
            return f"{paths[number]} and {image.path} have the same number"
        paths[number] = image.path
    return ""


def _listed_ids(root: Path, path: str, names: Names, findings: Findings) -> dict[str, int]:
    """Name -> id of the images of a list, in its order."""
    ids: dict[str, int] = {}
    lines = [line for line in read_lines(root / path) if line.strip()]
    for line in lines:
        name = PurePosixPath(line.split()[0].replace("\\", "/")).stem
        number = re.fullmatch(names.pattern, name, re.ASCII)
        if number and name not in ids:
            ids[name] = int("".join(number.groups()))
            continue
        expected = f"expected a name such as {names.example}"
        kind, reason = ("duplicate image", "a second time") if number else ("malformed image", expected)
        findings.faults.append(Fault(kind, "image", None, None, f"{path}: {name[:100]!a}: {reason}"))
    if not lines:
        raise DataError(f"{root / path}: lists no images")
    if not ids:
        refused = f"lists {lines[0].strip()[:100]!r}; images of {names.dataset} have names such as {names.example}"
        raise DataError(f"{root / path}: {refused}; {OWN_DATA}")
    return ids


def _recordable(path: str) -> bool:
    """Whether a path can be stored in a shard and printed: file names can be any bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x1f\x7f]", path)
