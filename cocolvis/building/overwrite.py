"""What of a folder cocolvis wrote, so that ``--overwrite`` removes that and nothing else."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cocolvis.disk.files import is_absent, reason, regular_file
from cocolvis.disk.lock import is_lock
from cocolvis.errors import DataError
from cocolvis.storage import dataset, report
from cocolvis.storage.index import MAX_INDEX
from cocolvis.storage.shard_reader import is_shard
from cocolvis.text import one_line

_SHARD = re.compile(r"\w[\w-]*-\d{5,}\.h5")
_REPORT = re.compile(r"\w[\w-]*-\d{5,}\.json")
_STATE = re.compile(rf"(plan|files|vocabulary)\.json|{_REPORT.pattern}")
_HALF = re.compile(r"\..*\.[0-9a-f]{12}\.tmp")
_MARK = re.compile(rb'\s*\{\s*"format"\s*:\s*"cocolvis"')
"""How dataset.json begins, also where its rest is damaged."""

_NAMED = 5
"""Files of others that a line names."""


@dataclass(frozen=True)
class Inventory:
    """The files of a folder: ``ours`` in the order of their removal, the index first and the plan last; ``others`` stay."""

    out: Path
    ours: list[Path]
    others: list[Path]

    @property
    def bytes(self) -> int:
        """What removing ``ours`` frees."""
        return sum(path.lstat().st_size for path in self.ours)

    def refuse_foreign(self, names: Collection[str]) -> None:
        """A DataError where a build of shards with these names would replace a file that is not ours."""
        places = [self.out / name for name in (dataset.INDEX, report.FILE, ".build/plan.json", ".build/files.json")]
        places += [self.out / "shards" / f"{name}.h5" for name in names]
        foreign = next((path for path in places if path in set(self.others)), None)
        if foreign:
            advice = "move it away, or choose another --out"
            raise DataError(f"{foreign}: is not known to be cocolvis's own, and the build would replace it; {advice}")

    def remove(self, announce: Callable[[str], None]) -> None:
        """Remove what is ours, and name what stays."""
        if self.others:
            named = ", ".join(one_line(str(path.relative_to(self.out))) for path in self.others[:_NAMED])
            more = f", ... ({len(self.others)} in all)" if len(self.others) > _NAMED else ""
            announce(f"--overwrite leaves alone what cocolvis did not write: {named}{more}")
        try:
            for path in self.ours:
                path.unlink(missing_ok=True) if path.is_symlink() or not path.is_dir() else path.rmdir()
        except OSError as error:
            raise DataError(f"{self.out}: cannot be written: {reason(error)}") from None


def inventory(out: Path) -> Inventory:
    """Who wrote what in a folder. A DataError where ``shards`` or ``.build`` leads elsewhere or is no folder.

    A shard is ours if a readable dataset.json or plan.json lists it. Where neither can be read, it is ours if it has the name
    of a shard and says of itself that it is one. An index that cannot be read is ours if it begins like one, or lies beside a
    plan or such shards.
    """
    shards, state = out / "shards", out / ".build"
    for folder in (shards, state):
        if folder.is_symlink():
            why = "is a symbolic link, which --overwrite does not follow"
            raise DataError(f"{folder}: {why}; remove it, or choose another --out")
    inside = {folder: sorted(_inside(folder)) for folder in (shards, state)}
    lists = [_listed(out / dataset.INDEX, _of_index), _listed(state / "plan.json", _of_plan)]
    listed = {name for names in lists for name in names or ()}
    known = any(names is not None for names in lists)
    named = [path for path in inside[shards] if _SHARD.fullmatch(path.name) and not path.is_dir()]
    mine = [path for path in named if (path.name in listed if known else is_shard(path))]
    beside = bool(mine) or lists[1] is not None
    top = [out / dataset.INDEX] if lists[0] is not None or _is_index(out / dataset.INDEX, beside) else []
    top += [out / report.FILE] if (top or beside) and os.path.isfile(out / report.FILE) else []
    ours = [*top, *mine, *state_files(out)]
    there = (path for path in sorted(_inside(out)) if path not in inside and not is_lock(path))
    others = [path for path in (*there, *inside[shards], *inside[state]) if path not in set(ours)]
    return Inventory(out, ours, others)


def state_files(out: Path) -> list[Path]:
    """The files of ``.build`` that are ours, the plan last; a folder that has the name of one is, where it is empty."""
    found = []
    for path in sorted(_inside(out / ".build")):
        blocked = not path.is_symlink() and path.is_dir() and any(path.iterdir())
        if (_STATE.fullmatch(path.name) or _HALF.fullmatch(path.name)) and not blocked:
            found.append(path)
    return sorted(found, key=lambda path: path.name == "plan.json")


def is_report(path: Path) -> bool:
    """Whether a path has the name of a finished shard's report."""
    return _REPORT.fullmatch(path.name) is not None


def forget(out: Path) -> None:
    """Remove what is ours of ``.build``, and the folder where nothing is left in it; what cannot be removed stays."""
    with suppress(OSError, DataError):
        Inventory(out, state_files(out), []).remove(lambda line: None)
        (out / ".build").rmdir()


def _inside(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {reason(error)}; move it away, or choose another --out") from None


def _listed(path: Path, names: Callable[[Any], Collection[Any]]) -> set[str] | None:
    """The names of the files in shards/ that a readable index or plan lists, else None."""
    try:
        if regular_file(path).st_size > MAX_INDEX:
            return None
        return {name for name in names(msgspec.json.decode(path.read_bytes())) if isinstance(name, str)}
    except (DataError, OSError, msgspec.DecodeError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _of_index(content: dict) -> list:
    if content["format"] != dataset.FORMAT:
        raise ValueError
    files = [entry["file"] for entry in content["shards"]]
    return [file.removeprefix("shards/") for file in files if file.startswith("shards/")]


def _of_plan(content: dict) -> list:
    return [f"{name}.h5" for name in dict(content["shards"]) if "options" in content["description"]]


def _is_index(path: Path, beside: bool) -> bool:
    """Whether a dataset.json that cannot be understood is ours."""
    if is_absent(path) or (path.is_dir() and not path.is_symlink()):
        return False
    try:
        regular_file(path)
        with path.open("rb") as file:
            start = file.read(200)
    except (DataError, OSError):
        return beside
    return beside or not start or _MARK.match(start) is not None
