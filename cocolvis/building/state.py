"""The folder ``.build`` of an unfinished build: a record of the whole build, and a report for each finished shard."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from cocolvis.building import overwrite
from cocolvis.building.shard_plan import ShardPlan
from cocolvis.building.state_files import AnyBuildRecord, BuildRecord, FilesRecord, ShardReport, read
from cocolvis.disk.files import create_json, is_absent, pretty, reason, sweep, write_json
from cocolvis.disk.lock import Lease, is_of_lock
from cocolvis.errors import DataError
from cocolvis.masks.merge import MASK_RULE
from cocolvis.storage import dataset, report
from cocolvis.storage.index import MAX_INDEX, VERSION
from cocolvis.text import one_line
from cocolvis.vocabulary import Vocabulary, coco_lvis

OVERWRITE = "replace it with `cocolvis build --overwrite`, or `import`"
_UNKNOWN = f"the build that was begun here cannot be identified any more: {OVERWRITE}"


class BuildState:
    """The files of an unfinished build in ``out``: plan.json, files.json and the reports in ``.build``, and the shards.

    Nothing is written once the ``lease`` of the folder is lost.
    """

    def __init__(self, out: Path, lease: Lease):
        self.out = out
        self.folder = out / ".build"
        self.shards = out / "shards"
        self.lease = lease
        self.is_this_build = False
        """Whether plan.json is known to record the build that this process makes."""
        self._record_path, self._files_path = self.folder / "plan.json", self.folder / "files.json"
        self._record: dict[str, Any] | None = None

    def is_begun(self) -> bool:
        """Whether plan.json exists, readable or not."""
        return not is_absent(self._record_path)

    @property
    def record(self) -> dict[str, Any]:
        """The content of plan.json: {"description", "shards", "faults", "vocabulary", "unusable"}.

        Raises DataError if it cannot be read.
        """
        if self._record is None:
            try:
                self._record = self._checked(read(self._record_path, BuildRecord))
            except DataError as error:
                raise DataError(f"{error}; {_UNKNOWN}") from None
        return self._record

    def _checked(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record, unless shards were finished that it does not list."""
        finished = (path.stem for path in overwrite.state_files(self.out) if overwrite.is_report(path))
        if unlisted := [name for name in finished if name not in record["shards"]]:
            raise DataError(f"{self._record_path}: is damaged: does not list the finished shard {unlisted[0]}")
        return record

    def planned(self) -> dict[str, int]:
        """Shard name -> number of images if none is lost."""
        return {name: shard["images"] for name, shard in self.record["shards"].items()}

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes of the build; raises DataError if plan.json contradicts itself about them."""
        recorded, digest = self.record["vocabulary"], self.record["description"]["vocabulary"]
        try:
            vocabulary = coco_lvis() if recorded is None else Vocabulary.from_json(recorded)
            if vocabulary.digest != digest:
                raise DataError(f"the vocabulary has digest {vocabulary.digest}, the build was begun with {digest}")
        except DataError as error:
            raise DataError(f"{self._record_path}: {one_line(error)}; {OVERWRITE}") from None
        return vocabulary

    def check_maker(self) -> None:
        """Raise DataError if the build was begun by a version of cocolvis with another mask rule or format version."""
        try:
            begun = read(self._record_path, AnyBuildRecord)["description"]
        except DataError:
            begun = self.record["description"]  # raises the error that says what to do
        if made_by(begun) != (MASK_RULE, VERSION):
            finished = sum(overwrite.is_report(path) for path in overwrite.state_files(self.out))
            refuse_other_version(self.out, f"was begun, with {finished} finished shards,", made_by(begun))

    @property
    def records_instances(self) -> bool:
        """Whether the shards of this build record instances, which builds of earlier versions do not."""
        return bool(self.record["description"].get("instances"))

    def check_shards(self, plan: ShardPlan) -> None:
        """Raise DataError if the record of the same build lists other shards than the plan makes."""
        if self.record["shards"].keys() != plan.shard_counts().keys():  # repaired files may change the rows
            raise DataError(f"{self._record_path}: is damaged: does not list the shards of this build; {_UNKNOWN}")

    def check_size(self, plan: ShardPlan) -> None:
        """Raise DataError if plan.json would be too large to be read again."""
        if (size := len(pretty(_content(plan)))) > MAX_INDEX:
            many = f"the input has too many faults, {len(plan.faults):,}; repair it first"
            raise DataError(f"{self._record_path}: would have {size:,} bytes, at most {MAX_INDEX:,} are read: {many}")

    def create(self, plan: ShardPlan) -> bool:
        """Create the folders and write plan.json; return False if it exists, because another part may just have written it."""
        self.lease.check()
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.out}: cannot be written: {reason(error)}") from None
        self.is_this_build = create_json(self._record_path, _content(plan), self.lease.check)
        return self.is_this_build

    def files_record(self) -> dict[str, Any] | None:
        """The content of files.json, None if there is no such file; raises DataError if it is damaged."""
        if is_absent(self._files_path):
            return None
        try:
            return read(self._files_path, FilesRecord)
        except DataError as error:
            raise DataError(f"{error}; {_UNKNOWN}") from None

    def write_files_record(self, plan: ShardPlan) -> None:
        """Write files.json if the plan keeps a record of its input files."""
        if (content := plan.files_record()) is not None:
            write_json(self._files_path, content, self.lease.check)

    def replace(self, names: Collection[str], announce: Callable[[str], None]) -> None:
        """Remove the present data set or unfinished build before a new one with the named shards is begun."""
        files = overwrite.inventory(self.out)
        files.refuse_foreign(names)
        files.remove(announce, self.lease.check)
        self._record = None

    def shard(self, name: str) -> Path:
        """The path of a shard."""
        return self.shards / f"{name}.h5"

    def reports(self) -> dict[str, dict[str, Any]]:
        """Shard name -> report, for all shards with a readable report; the shards themselves are not checked."""
        reports = {name: self.report(name) for name in self.record["shards"]}
        return {name: content for name, content in reports.items() if content is not None}

    def report(self, name: str) -> dict[str, Any] | None:
        """The report of a shard; None if it is missing or unreadable."""
        try:
            return read(self.folder / f"{name}.json", ShardReport)
        except DataError:
            return None

    def made_from(self, name: str) -> str:
        """SHA-256 of everything that a shard is made from: the description of the build, and which images the shard holds."""
        text = json.dumps([self.record["description"], name, self.record["shards"][name]["rows"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def finish(self, name: str, written: Mapping[str, Any]) -> dict[str, Any]:
        """Store the report of a shard that was ``written``, and return it.

        Raises DataError if another version wrote the shard.
        """
        if made_by(written) != (MASK_RULE, VERSION):
            refuse_other_version(self.shard(name), "was built by a worker", made_by(written))
        if bool(written.get("instances")) != self.records_instances:
            said = "records instances, which this build does not" if written.get("instances") else "does not record instances"
            raise DataError(f"{self.shard(name)}: was built by a worker that {said}; all need the same version of cocolvis")
        return self._write_report(name, {**written, "build": self.made_from(name)})

    def build_again(self, names: Collection[str], reports: Mapping[str, Mapping[str, Any]]) -> None:
        """Record that finished shards have to be built again, so that a later process does so if this one is stopped."""
        for name in names:
            self._write_report(name, {**reports[name], "again": True})

    def _write_report(self, name: str, content: dict[str, Any]) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
        write_json(path, content, self.lease.check)
        return content

    @contextmanager
    def swept(self, names: Collection[str] | None = None) -> Iterator[None]:
        """Remove, before and after, the temporary files that killed processes left, of the named shards or of the whole folder.

        No other process may be writing them. Single shards are swept only if the recorded build is this one, because parts of
        another build may be writing shards with the same names.
        """
        try:
            self._sweep(names)
            yield
        finally:
            if not self.lease.lost():
                self._sweep(names)

    def _sweep(self, names: Collection[str] | None) -> None:
        if names is not None and not self.is_this_build:
            return
        sweep(self.shards, lambda name: names is None or name.removesuffix(".h5") in names)
        sweep(self.folder, lambda name: names is None or name.removesuffix(".json") in names)
        if names is None:
            sweep(self.out, lambda name: name in (dataset.INDEX, report.FILE) or is_of_lock(name))


def _content(plan: ShardPlan) -> dict[str, Any]:
    """The content of plan.json."""
    rows = plan.shard_rows()
    return {
        "description": plan.description(),
        "shards": {name: {"images": images, "rows": rows[name]} for name, images in plan.shard_counts().items()},
        "faults": plan.faults,
        "unusable": plan.unusable(),
        "vocabulary": None if plan.vocabulary.digest == coco_lvis().digest else plan.vocabulary.to_json(),
    }


def made_by(content: Mapping[str, Any]) -> tuple[object, object]:
    """The mask rule and the format version that a record or a report contains."""
    return content.get("mask_rule", "not recorded"), content.get("version", "not recorded")


def refuse_other_version(path: Path, made: str, maker: tuple[object, object]) -> NoReturn:
    """Raise DataError about the work of another version of cocolvis; ``made`` is the predicate, such as "was begun"."""
    raise DataError(
        f"{path}: {made} by mask rule {maker[0]} and format version {maker[1]}, this cocolvis has {MASK_RULE} and {VERSION}: "
        f"continue with the version of cocolvis that began it, or {OVERWRITE}"
    )
