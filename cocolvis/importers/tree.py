"""Pictures and label files as they lie below a folder: found, paired and listed; every file is named by its path from there."""

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
"""Endings of pictures that every import takes, in any case."""

OWN_DATA = (
    "a data set of your own, whatever made it, is read by `cocolvis import folder`: images/{train,val}, masks/{train,val}"
    " and its list of classes"
)
"""What to do where a data set only looks like a published one: its classes are others."""

_UNREAD = (*PICTURES, ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".mat", ".npy", ".npz")
"""Endings of what may have been meant as a picture or a mask where it is not taken as one."""

_IDS = 2**62
"""Image ids are below this."""

Layout = tuple[Sequence[str], Sequence[str]]
"""The paths that pictures, and that label files, may have, with {} for a name, which may hold folders."""


class LabelledImage(NamedTuple):
    """An image: its id, and the paths of its picture and its label file from ``root``, either of which may be missing.

    ``missing`` is the reason in words where one of them is; ``folders`` are those that hold all pictures and all label files,
    where names hold folders of their own.
    """

    image_id: int
    root: str
    path: str
    labels_path: str
    missing: str = "does not exist"
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
class Told:
    """What is wrong with single files, and lines for the user, as they are found."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


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
    told: Told


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


def paired(root: Path, layout: Mapping[str, Layout], splits: Collection[str], told: Told) -> dict[str, list[LabelledImage]]:
    """The labelled images of each split, sorted by name; where all names are numbers, and none comes twice, these are the ids.

    Otherwise images are counted from 1 over all splits. Of two files of one name that with the first path of the ``layout``
    counts; what is not there has the first. Of other splits than ``splits`` nothing is told; a DataError where one of these has
    no picture with its labels, unless that is allowed (:func:`cocolvis.disk.reading.allowing_missing`).
    """
    found: dict[str, list[LabelledImage]] = {}
    for split, paths in layout.items():
        wanted = split in splits
        try:
            both = [_matching(root, either, told if wanted else Told()) for either in paths]
        except DataError as error:
            if wanted or isinstance(error, reading.UnreadableInput):  # its images are counted, too
                raise
            both = [_Matched(), _Matched()]
        pictures, labels = both
        names = sorted(pictures.named.keys() | labels.named.keys() | pictures.other.keys() | labels.other.keys())
        whole = pictures.named.keys() & labels.named.keys()
        similar = [either.unpaired(whole) for either in both] if len(whole) < len(names) else []
        found[split] = [_image(root, name, paths, both, similar) for name in names]
        if wanted and names and not whole and not reading.missing_allowed():
            first = found[split][0]
            absent = first.picture if names[0] in labels.named else first.labels
            why = reading.folder_problem(absent.folder) or f"{absent.path.removeprefix(f'{root}/')} {first.missing}"
            raise DataError(f"{root}: split {split} has no picture with its mask: {why}")
    return _numbered(found, told)


def listed(
    root: Path, lists: Mapping[str, tuple[str, Layout]], pattern: str, advice: str, told: Told
) -> dict[str, list[LabelledImage]]:
    """The labelled images of each split in the order of its list; the groups of ``pattern``, put together, are an image's id.

    ``lists`` has for each split the path of its list, and where the files may be. Only the first word of a line counts, without
    folder and ending. What is no name, or comes twice, is a fault; a DataError, with ``advice``, where no line is a name.
    """
    matched: dict[tuple[str, ...], _Matched] = {}
    found: dict[str, list[LabelledImage]] = {}
    for split, (names, layout) in lists.items():
        ids = _listed_ids(root, names, pattern, advice, told)
        for paths in map(tuple, layout):
            if paths not in matched:
                matched[paths] = _matching(root, paths, Told(notes=told.notes))  # files that no list names do no harm
        both = [matched[tuple(paths)] for paths in layout]
        whole = both[0].named.keys() & both[1].named.keys()
        similar = [either.unpaired(ids.keys()) for either in both] if ids.keys() - whole else []
        found[split] = [_image(root, name, layout, both, similar)._replace(image_id=ids[name]) for name in ids]
    return found


@dataclass(frozen=True)
class _Matched:
    """The files of a layout.

    ``named`` maps the name of each, composed, to its path; ``other`` does for files that have only another ending; ``rest`` are
    the paths of all that are not in ``named``.
    """

    named: dict[str, str] = field(default_factory=dict)
    other: dict[str, str] = field(default_factory=dict)
    rest: list[str] = field(default_factory=list)

    def unpaired(self, whole: Collection[str]) -> Similar:
        """The files that belong to no image among ``whole``, to be suggested."""
        return Similar(self.rest + [path for name, path in self.named.items() if name not in whole])


def _matching(root: Path, paths: Sequence[str], told: Told) -> _Matched:
    """The files that have one of these paths, the first path first; endings in upper and lower case alike."""
    matched = _Matched()
    for folder in dict.fromkeys(path.partition("{}")[0] for path in paths):
        endings = [path.partition("{}")[2].lower() for path in paths if path.startswith(folder + "{}")]
        files, notes = walk(root / folder)
        told.notes.extend(note for note in notes if note not in told.notes)
        by_ending: dict[str | None, list[str]] = {}
        for path in files:
            by_ending.setdefault(next((end for end in endings if path.lower().endswith(end)), None), []).append(path)
        for ending in endings:
            for path in by_ending.get(ending, ()):
                _take(matched, folder + path, nfc(path[: -len(ending)]), told)
        stems = {ending.rpartition(".")[0] for ending in endings}
        for path in filter(_recordable, by_ending.get(None, ())):
            matched.rest.append(folder + path)
            stem, suffix = os.path.splitext(path)
            for end in (end for end in stems if stem.lower().endswith(end) and suffix.lower() in _UNREAD):
                matched.other.setdefault(nfc(stem[: len(stem) - len(end)]), folder + path)
    return matched


def _take(matched: _Matched, path: str, name: str, told: Told) -> None:
    if not _recordable(path):
        told.faults.append(
            Fault("malformed image", "image", None, None, f"{path!a}: expected UTF-8 without control characters")
        )
    elif name in matched.named:
        told.faults.append(Fault("duplicate image", "image", None, None, f"{path}: {matched.named[name]} has the same name"))
        matched.rest.append(path)
    else:
        matched.named[name] = path


def _image(root: Path, name: str, layout: Layout, both: Sequence[_Matched], similar: Sequence[Similar]) -> LabelledImage:
    """The image of a name, its id still 0; what is missing has the first path of the layout, and a word on what is there."""
    first = [paths[0].format(name) for paths in layout]
    there = [matched.named.get(name, path) for matched, path in zip(both, first, strict=True)]
    image = LabelledImage(0, str(root), *there, folders=tuple(map(_folder, there, layout)))
    for side in (1, 0):  # a build looks for the label file first
        if name not in both[side].named:
            near = similar[side].find(layout[side][0].partition("{}")[0] + name)
            return image._replace(missing=f"does not exist; there is {_described(near, side == 1)}") if near else image
    return image


def _folder(path: str, paths: Sequence[str]) -> str:
    """The folder of a layout in which a path lies."""
    return next(folder for folder in (one.partition("{}")[0] for one in paths) if path.startswith(folder)).rstrip("/")


def _described(path: str, is_mask: bool) -> str:
    """A file's name, and why its format is not that of label files."""
    name = PurePosixPath(path)
    if not is_mask or name.suffix.lower() not in _UNREAD or name.suffix.lower() == ".png":
        return name.name
    lossy = name.suffix.lower() in (".jpg", ".jpeg")
    return f"{name.name}, but masks must be PNGs" + (": a JPEG is lossy, and its numbers are not those that were drawn" * lossy)


def _numbered(found: Mapping[str, list[LabelledImage]], told: Told) -> dict[str, list[LabelledImage]]:
    """The images with their ids: the numbers that are their names, else counted over all splits."""
    images = list(chain.from_iterable(found.values()))
    numbers = [_number(image.path) for image in images]
    if reason := _why_counted(numbers, images):
        if any(number is not None for number in numbers):
            told.notes.append(f"the images are counted from 1: {reason}")
        numbers = list(range(1, len(images) + 1))
    ids = iter(numbers)
    return {split: [image._replace(image_id=next(ids)) for image in own] for split, own in found.items()}


def _number(path: str) -> int | None:
    """The number that is a file's name; None where it is none, or too large for an id."""
    stem = PurePosixPath(path).stem
    number = int(stem) if re.fullmatch(r"\d{1,100}", stem, re.ASCII) else _IDS
    return number if number < _IDS else None


def _why_counted(numbers: Sequence[int | None], images: Sequence[LabelledImage]) -> str:
    """What keeps the numbers from being ids; "" where nothing does."""
    first: dict[int, str] = {}
    for number, image in zip(numbers, images, strict=True):
        if number is None:
            return f"the name of {image.path} is no number below {_IDS}"
        if number in first:
            return f"{first[number]} and {image.path} have the same number"
        first[number] = image.path
    return ""


def _listed_ids(root: Path, names: str, pattern: str, advice: str, told: Told) -> dict[str, int]:
    """Name -> id of the images of a list, in its order."""
    ids: dict[str, int] = {}
    lines = [line for line in read_lines(root / names) if line.strip()]
    for line in lines:
        name = PurePosixPath(line.split()[0].replace("\\", "/")).stem
        number = re.fullmatch(pattern, name, re.ASCII)
        if number and name not in ids:
            ids[name] = int("".join(number.groups()))
            continue
        kind, reason = ("duplicate image", "a second time") if number else ("malformed image", f"expected {pattern}")
        told.faults.append(Fault(kind, "image", None, None, f"{names}: {name[:100]!a}: {reason}"))
    if not lines:
        raise DataError(f"{root / names}: lists no images")
    if not ids:
        raise DataError(f"{root / names}: lists {lines[0].strip()[:100]!r}; {advice}")
    return ids


def _recordable(path: str) -> bool:
    """Whether a path can stand in a shard and on a screen: file names need not be text."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not re.search(r"[\x00-\x1f\x7f]", path)
