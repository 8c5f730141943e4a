"""Where the COCO and LVIS downloads keep their files: the official layout and its usual variants, unpacked or not."""

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
"""COCO's image folders."""

_STUFF_ZIPS = ("stuff_trainval2017.zip", "stuff_annotations_trainval2017.zip")
"""The two official archives of the stuff annotations: JSON alone, and JSON beside pixel maps."""


class Pictures:
    """The pictures of one COCO folder (train2017, val2017): a folder on disk, or a zip."""

    def __init__(self, folder: str, place: Path):
        self.folder = folder
        self.place = place
        self._members = None
        if place.suffix == ".zip":
            self._members = {name.rpartition("/")[2]: member for name, member in members(place).items()}
            unread = Counter(member.unread for member in self._members.values())
            if "" not in unread and unread:
                said = ", ".join(f"{count:,} are {words}" for words, count in unread.most_common())
                raise DataError(f"{place}: none of its pictures can be read: {said}; {UNPACK}")

    @property
    def root(self) -> Path:
        """The folder in which ``train2017/000000000009.jpg`` lies; a DataError for a zip, where no path leads to it."""
        if self._members is not None:
            raise DataError(f"{self.place}: a picture in a zip has no path; unpack it, or take --images embed")
        return self.place.parents[len(PurePosixPath(self.folder).parts) - 1]

    def find(self, name: str) -> Place:
        """Where a picture lies; reading the place fails when it is not there."""
        if self._members is None:
            return Place(str(self.place / name))
        return self._members.get(name, Place(str(self.place / name), folder=str(self.place.parent)))


def lvis_place(roots: Roots, split: str) -> Place:
    """``lvis_v1_{split}.json``, or the zip that holds it; a DataError that lists what was looked for."""
    name = f"lvis_v1_{split}.json"
    places = _annotation_places(roots, name, (f"{name}.zip",))
    return _first(places, f"LVIS annotations of split {split}", "--lvis or --split")


def stuff_place(roots: Roots, folder: str) -> Place:
    """``stuff_{folder}.json``, or the zip that holds it; a DataError that lists what was looked for."""
    places = _annotation_places(roots, f"stuff_{folder}.json", _STUFF_ZIPS)
    return _first(places, f"stuff annotations of {folder}", "--coco")


def has_stuff(roots: Roots, folder: str) -> bool:
    """Whether there are stuff annotations of ``folder``."""
    return any(place for place, _ in _annotation_places(roots, f"stuff_{folder}.json", _STUFF_ZIPS))


def pictures(roots: Roots, folder: str) -> Pictures:
    """The pictures of ``folder``; a DataError that lists what was looked for."""
    names = (folder, f"images/{folder}", f"{folder}.zip", f"images/{folder}.zip")
    looked = [path for name in names for path in _below(roots, name)]
    place = next((path for path in looked if (reading.is_file if path.suffix == ".zip" else reading.is_folder)(path)), None)
    if place is None:
        where = ", ".join(str(path) for path in looked) or f"{folder}.zip among the given zip files"
        raise DataError(f"no pictures of {folder}: looked for {where}; check --coco, or take --images none")
    return Pictures(folder, place)


def _below(roots: Roots, name: str) -> Iterator[Path]:
    """Where a file or folder of this name may be: in each folder, or, for a zip that was named itself, there."""
    for root in (Path(root).resolve() for root in ([roots] if isinstance(roots, str | Path) else roots)):
        if root.suffix == ".zip":
            yield from [root] if root.name == PurePosixPath(name).name else []
        else:
            yield root / name


def _annotation_places(roots: Roots, name: str, zips: Sequence[str]) -> Iterator[tuple[Place | None, str]]:
    """(the place or None, what was looked for) for each place where an annotation file may lie."""
    if not any(list(_below(roots, path)) for path in (name, *zips)):
        yield None, f"{' or '.join(zips)} among the given zip files"
    for folder in ("annotations/", ""):
        for path in _below(roots, folder + name):
            yield (Place(str(path)) if reading.is_file(path) else None), str(path)
    for folder in ("", "annotations/"):
        for archive in zips:
            for path in _below(roots, folder + archive):
                found = members(path) if reading.is_file(path) else {}
                member = next((place for inside, place in found.items() if inside.rpartition("/")[2] == name), None)
                yield member, f"{name} in {path}"


def _first(places: Iterator[tuple[Place | None, str]], what: str, option: str) -> Place:
    looked = []
    for place, description in places:
        if place is not None:
            return place
        looked.append(description)
    raise DataError(f"no {what}: looked for {', '.join(looked)}; check {option}")
