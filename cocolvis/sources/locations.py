"""Finds the files of COCO and LVIS in the official layout and its usual variants, unpacked or in zips."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from cocolvis.disk import reading
from cocolvis.disk.archives import UNPACK, Place, members
from cocolvis.errors import DataError

Roots = Path | Sequence[Path]
"""A folder, or folders and zip files."""

SPLITS = ("train", "val")

FOLDERS = tuple(f"{split}2017" for split in SPLITS)
"""COCO's picture folders."""

_STUFF_ZIPS = ("stuff_trainval2017.zip", "stuff_annotations_trainval2017.zip")
"""The two official archives of the stuff annotations: JSON only, and JSON with pixel maps."""


class Pictures:
    """The pictures of one COCO folder (train2017, val2017), on disk or in a zip.

    Raises DataError if the zip cannot be read, or if all of its members are packed in an unsupported way.
    """

    def __init__(self, folder: str, place: Path):
        self.folder = folder
        self.place = place
        self._members: dict[str, Place] | None = None
        if is_zip(place):
            found = sorted(members(place).items(), key=lambda member: _is_in(folder, member[0]))  # the last one wins
            self._members = {name.rpartition("/")[2]: member for name, member in found}
            unread = Counter(member.unread for member in self._members.values())
            if "" not in unread and unread:
                packing = ", ".join(f"{count:,} are {words}" for words, count in unread.most_common())
                raise DataError(f"{place}: none of its pictures can be read: {packing}; {UNPACK}")

    @property
    def root(self) -> Path:
        """The folder that contains ``train2017/000000000009.jpg``; raises DataError for a zip, whose pictures have no path."""
        if self._members is not None:
            raise DataError(f"{self.place}: a picture in a zip has no path; unpack the zip, or use --images embed")
        return self.place.parents[len(PurePosixPath(self.folder).parts) - 1]

    def find(self, name: str) -> Place:
        """The location of a picture; reading it fails if the picture does not exist."""
        if self._members is None:
            return Place(str(self.place / name))
        return self._members.get(name, Place(str(self.place / name), folder=str(self.place.parent)))


def _is_in(folder: str, name: str) -> bool:
    """Whether a member of a zip is in a folder of this name, at any depth."""
    return f"/{name}".rpartition("/")[0].endswith(f"/{folder}")


def is_zip(path: Path) -> bool:
    """Whether a path ends in .zip, in lower or upper case, and is not a folder of that name."""
    return path.suffix.lower() == ".zip" and not reading.is_folder(path)


def check_roots(roots: Roots, option: str) -> None:
    """Raise DataError if one of them is a file other than a zip; ``option`` is what they were given with."""
    for root in map(Path, [roots] if isinstance(roots, str | Path) else roots):
        if not is_zip(root) and reading.is_file(root):
            raise DataError(
                f"{root}: is neither a folder nor a file ending in .zip; give {option} the folder that holds it, or unpack it"
            )


def lvis_place(roots: Roots, split: str) -> Place:
    """The location of ``lvis_v1_{split}.json``, possibly in a zip.

    Raises DataError, listing the places searched, if it is absent.
    """
    name = f"lvis_v1_{split}.json"
    places = _annotation_places(roots, name, (f"{name}.zip",))
    return _first(places, f"LVIS annotations of split {split}", "--lvis or --split")


def stuff_place(roots: Roots, folder: str) -> Place:
    """The location of ``stuff_{folder}.json``, possibly in a zip.

    Raises DataError, listing the places searched, if it is absent.
    """
    places = _annotation_places(roots, f"stuff_{folder}.json", _STUFF_ZIPS)
    return _first(places, f"stuff annotations of {folder}", "--coco")


def has_stuff(roots: Roots, folder: str) -> bool:
    """Whether there are stuff annotations for the images in ``folder``."""
    return any(place for place, _ in _annotation_places(roots, f"stuff_{folder}.json", _STUFF_ZIPS))


def pictures(roots: Roots, folder: str) -> Pictures:
    """The pictures of ``folder``; raises DataError, listing the places searched, if they do not exist."""
    names = (folder, f"images/{folder}", f"{folder}.zip", f"images/{folder}.zip")
    looked = [path for name in names for path in _below(roots, name)]
    place = next((path for path in looked if (reading.is_file if is_zip(path) else reading.is_folder)(path)), None)
    if place is None:
        where = ", ".join(str(path) for path in looked) or f"{folder}.zip among the given zip files"
        raise DataError(f"no pictures of {folder}: looked for {where}; check --coco, or use --images none")
    return Pictures(folder, place)


def _below(roots: Roots, name: str) -> Iterator[Path]:
    """The paths that ``name`` may have: one in each folder, and a zip that was given by its own path; .ZIP counts as .zip."""
    for root in map(Path, [roots] if isinstance(roots, str | Path) else roots):
        real = Path(os.path.realpath(root))
        if is_zip(root):  # its own name is kept: that of the file to which a link leads may have no ending
            names = {path.name.lower() for path in (root, real)}
            yield from [root.absolute()] if PurePosixPath(name).name in names else []
        else:
            capital = real / f"{name.removesuffix('.zip')}.ZIP"
            yield capital if name.endswith(".zip") and reading.is_file(capital) else real / name


def _annotation_places(roots: Roots, name: str, zips: Sequence[str]) -> Iterator[tuple[Place | None, str]]:
    """(location or None, its description) for each path where an annotation file may be."""
    if not any(list(_below(roots, path)) for path in (name, *zips)):
        yield None, f"{' or '.join(zips)} among the given zip files"
    for folder in ("annotations/", ""):
        for path in _below(roots, folder + name):
            yield (Place(str(path)) if reading.is_file(path) else None), str(path)
    for folder in ("", "annotations/"):
        for archive in zips:
            for path in _below(roots, folder + archive):
                inside_zip = members(path) if reading.is_file(path) else {}
                member = next((place for inside, place in inside_zip.items() if inside.rpartition("/")[2] == name), None)
                yield member, f"{name} in {path}"


def _first(places: Iterator[tuple[Place | None, str]], what: str, option: str) -> Place:
    looked = []
    for place, description in places:
        if place is not None:
            return place
        looked.append(description)
    raise DataError(f"no {what}: looked for {', '.join(looked)}; check {option}")
