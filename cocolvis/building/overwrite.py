"""Which files of a folder cocolvis wrote: ``--overwrite`` removes these and no others."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cocolvis.disk.files import is_absent, parse_json, reason, regular_file
from cocolvis.disk.lock import LockLost, is_lock
from cocolvis.errors import DataError
from cocolvis.storage import dataset, report
from cocolvis.storage.index import MAX_INDEX
from cocolvis.storage.shard_reader import is_shard
from cocolvis.text import one_line

_SHARD = re.compile(r"\w[\w-]*-\d{5,}\.h5")
_REPORT = re.compile(r"\w[\w-]*-\d{5,}\.json")
_STATE = re.compile(rf"(plan|files|vocabulary)\.json|{_REPORT.pattern}")
_HALF_WRITTEN = re.compile(r"\..*\.[0-9a-f]{12}\.tmp")
_INDEX_START = re.compile(rb'\s*\{\s*"format"\s*:\s*"cocolvis"')
"""The beginning of dataset.json, by which a damaged one is recognized."""

_NAMED = 5
"""How many of the remaining files a message names."""


@dataclass(frozen=True)
class Inventory:
    """The files of a folder: ``ours``, which cocolvis wrote, and ``others``.

    ``ours`` is in the order of removal, dataset.json first and plan.json last; ``others`` stay.
    """

    out: Path
    ours: list[Path]
    others: list[Path]

    @property
    def bytes(self) -> int:
        """The number of bytes that removing ``ours`` frees."""
        return sum(path.lstat().st_size for path in self.ours)

    def refuse_foreign(self, names: Collection[str]) -> None:
        """Raise DataError if a build of shards with these names would replace a file that is not ours."""
        places = [self.out / name for name in (dataset.INDEX, report.FILE, ".build/plan.json", ".build/files.json")]
        places += [self.out / "shards" / f"{name}.h5" for name in names]
        foreign = next((path for path in places if path in set(self.others)), None)
        if foreign:
            advice = "move it away, or choose another --out"
            raise DataError(f"{foreign}: does not seem to be cocolvis's own, and the build would replace it; {advice}")

    def remove(self, announce: Callable[[str], None], permit: Callable[[], None]) -> None:
        """Remove ``ours``, and announce the files that stay; ``permit`` is called before each file and raises to keep it."""
        if self.others:
            named = ", ".join(one_line(str(path.relative_to(self.out))) for path in self.others[:_NAMED])
            more = f", ... ({len(self.others)} in all)" if len(self.others) > _NAMED else ""
            announce(f"--overwrite leaves alone what cocolvis did not write: {named}{more}")
        try:
            for path in self.ours:
                permit()
                path.unlink(missing_ok=True) if path.is_symlink() or not path.is_dir() else path.rmdir()
        except OSError as error:
            raise DataError(f"{self.out}: cannot be written: {reason(error)}") from None


def inventory(out: Path) -> Inventory:
    """Distinguish the files of cocolvis in a folder from all others.

    A shard is ours if a readable dataset.json or plan.json lists it. If neither can be read, a file with the name of a shard is
    ours if its content identifies it as one. An unreadable dataset.json is ours if it begins like one, or if a readable
    plan.json or one of our shards exists. Raises DataError if ``shards`` or ``.build`` is a symbolic link, or a file.
    """
    shards, state = out / "shards", out / ".build"
    for folder in (shards, state):
        if folder.is_symlink():
            why = "is a symbolic link, which --overwrite does not follow"
            raise DataError(f"{folder}: {why}; remove it, or choose another --out")
    inside = {folder: sorted(_inside(folder)) for folder in (shards, state)}
    in_index = _listed(out / dataset.INDEX, _shards_of_index)
    in_record = _listed(state / "plan.json", _shards_of_record)
    readable = in_index is not None or in_record is not None
    listed = {*(in_index or ()), *(in_record or ())}
    named = [path for path in inside[shards] if _SHARD.fullmatch(path.name) and not path.is_dir()]
    our_shards = [path for path in named if (path.name in listed if readable else is_shard(path))]
    has_build = bool(our_shards) or in_record is not None
    top = [out / dataset.INDEX] if in_index is not None or _is_index(out / dataset.INDEX, has_build) else []
    top += [out / report.FILE] if (top or has_build) and os.path.isfile(out / report.FILE) else []
    ours = [*top, *our_shards, *state_files(out)]
    at_top = (path for path in sorted(_inside(out)) if path not in inside and not is_lock(path))
    others = [path for path in (*at_top, *inside[shards], *inside[state]) if path not in set(ours)]
    return Inventory(out, ours, others)


def state_files(out: Path) -> list[Path]:
    """The files of ``.build`` that are ours, plan.json last, and empty folders with such names."""
    found = []
    for path in sorted(_inside(out / ".build")):
        blocked = not path.is_symlink() and path.is_dir() and any(path.iterdir())
        if (_STATE.fullmatch(path.name) or _HALF_WRITTEN.fullmatch(path.name)) and not blocked:
            found.append(path)
    return sorted(found, key=lambda path: path.name == "plan.json")


def is_report(path: Path) -> bool:
    """Whether a path has the name of the report of a finished shard."""
    return _REPORT.fullmatch(path.name) is not None


def remove_state(out: Path, permit: Callable[[], None]) -> None:
    """Remove our files from ``.build``, and the folder itself if it is then empty; files that cannot be removed stay.

    ``permit`` is that of :meth:`Inventory.remove`, and may raise LockLost.
    """
    try:
        Inventory(out, state_files(out), []).remove(lambda line: None, permit)
        (out / ".build").rmdir()
    except LockLost:
        raise
    except (OSError, DataError):
        pass


def _inside(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}; move it away, or choose another --out") from None


def _listed(path: Path, names: Callable[[Any], Collection[Any]]) -> set[str] | None:
    """The names of the files in shards/ that a JSON file lists; None if it cannot be read."""
    try:
        regular_file(path, MAX_INDEX)
        return {name for name in names(parse_json(path.read_bytes())) if isinstance(name, str)}
    except (DataError, OSError, msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _shards_of_index(content: dict[str, Any]) -> list[str]:
    if content["format"] != dataset.FORMAT:
        raise ValueError
    files = [entry["file"] for entry in content["shards"]]
    return [file.removeprefix("shards/") for file in files if file.startswith("shards/")]


def _shards_of_record(content: dict[str, Any]) -> list[str]:
    return [f"{name}.h5" for name in dict(content["shards"]) if "options" in content["description"]]


def _is_index(path: Path, has_build: bool) -> bool:
    """Whether a dataset.json that cannot be parsed is ours; ``has_build`` says whether the folder contains a build of ours."""
    if is_absent(path) or (path.is_dir() and not path.is_symlink()):
        return False
    try:
        regular_file(path)
        with path.open("rb") as file:
            start = file.read(200)
    except (DataError, OSError):
        return has_build
    return has_build or not start or _INDEX_START.match(start) is not None
