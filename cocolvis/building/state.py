"""The folder of a build on its way: what is being built, which shards are whole, and in the end the index."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from cocolvis.building import overwrite
from cocolvis.building.base import ShardPlan
from cocolvis.building.lost_images import lossy, split_of
from cocolvis.building.state_files import Begun, Files, Plan, Report, read
from cocolvis.disk.files import create_json, is_absent, regular_file, sha256, sweep, write_json
from cocolvis.disk.lock import Lease, is_of_lock
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.masks.merge import MASK_RULE
from cocolvis.progress import Phase, count_bytes, ignore
from cocolvis.storage import dataset, digest, report
from cocolvis.storage.columns import VERSION
from cocolvis.storage.index import check_index
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.text import one_line
from cocolvis.vocabulary import Vocabulary, coco_lvis

_OVERWRITE = "replace it with `cocolvis build --overwrite`, or `import`"
_UNKNOWN = f"what was begun here is not known any more: {_OVERWRITE}"


class BuildState:
    """The folder ``.build`` of an unfinished build: what is being built (plan.json), and a report for each finished shard.

    ``plan`` holds the description of the build, the shards with their images, the faults known before any mask was painted, and
    the classes. Nothing is written once the ``lease`` of the folder is lost.
    """

    def __init__(self, out: Path, lease: Lease):
        self.out = out
        self.folder = out / ".build"
        self.shards = out / "shards"
        self._recorded, self._noted_files = self.folder / "plan.json", self.folder / "files.json"
        self.lease = lease
        self._plan: dict | None = None
        self._known = False  # whether what is recorded is the build that this process is at work on

    @property
    def plan(self) -> dict:
        """{"description", "shards", "faults", "vocabulary", "unusable"} as recorded; a DataError without them."""
        if self._plan is None:
            try:
                self._plan = read(self._recorded, Plan)
            except DataError as error:
                raise DataError(f"{error}; {_UNKNOWN}") from None
        return self._plan

    def planned(self) -> dict[str, int]:
        """Shard name -> images that it would have if none were lost."""
        return {name: shard["images"] for name, shard in self.plan["shards"].items()}

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes of the build; a DataError where they are not those that it was begun with."""
        recorded, digest = self.plan["vocabulary"], self.plan["description"]["vocabulary"]
        try:
            vocabulary = coco_lvis() if recorded is None else Vocabulary.from_json(recorded)
            if vocabulary.digest != digest:
                raise DataError(f"the vocabulary has digest {vocabulary.digest}, the build was begun with {digest}")
        except DataError as error:
            raise DataError(f"{self._recorded}: {one_line(error)}; {_OVERWRITE}") from None
        return vocabulary

    def check(self, plan: ShardPlan) -> bool:
        """Whether files were found again since the build was begun; a DataError where going on would mix two builds."""
        unknown = self.shards.exists() and any(self.shards.glob("*.h5"))  # before the plan, which another part may just write
        if not is_absent(self._recorded):
            self.check_maker()
            settled = self.noted()
            unsettled = {*self.plan["shards"]} - {*settled} | {*lossy(settled)}
            found = plan.resumed(self.plan["description"], self._files(), unsettled)
            if found is None:
                advice = "resume with the same, or replace it with --overwrite"
                raise DataError(f"{self.out}: was begun with other inputs or options; {advice}")
            self._known = True
            return found
        if unknown:
            raise DataError(
                f"{self.out}: holds shards of an unknown build; choose another folder, or replace it with --overwrite"
            )
        return False

    def _files(self) -> dict | None:
        """What was noted of the files that the build reads, if anything was; a DataError where it is damaged."""
        if is_absent(self._noted_files):
            return None
        try:
            return read(self._noted_files, Files)
        except DataError as error:
            raise DataError(f"{error}; {_UNKNOWN}") from None

    def note_files(self, plan: ShardPlan) -> None:
        """Note what the plan says of the files that it reads."""
        if (files := plan.files()) is not None:
            write_json(self._noted_files, files, self.lease.check)

    def check_maker(self) -> None:
        """A DataError where another version of cocolvis began the build, whose masks or files are not those of this one."""
        try:
            begun = read(self._recorded, Begun)["description"]
        except DataError:
            begun = self.plan["description"]  # which says what to do
        made_by = tuple(begun.get(key, "not recorded") for key in ("mask_rule", "version"))
        if made_by != (MASK_RULE, VERSION):
            finished = sum(overwrite.is_report(path) for path in overwrite.state_files(self.out))
            raise DataError(f"{self.out}: {_other_maker(f'was begun, with {finished} finished shards,', *made_by)}")

    def begin(self, plan: ShardPlan) -> None:
        """Make the folders and note what is being built, unless that was done before, or another part just did it."""
        if is_absent(self._recorded):
            self._record(plan)
            self._known = True
        if is_absent(self._noted_files):  # after the plan, so that parts that begin together note the files of the same one
            self.note_files(plan)

    def _record(self, plan: ShardPlan) -> None:
        rows = plan.shard_rows()
        shards = {name: {"images": images, "rows": rows[name]} for name, images in plan.shard_counts().items()}
        vocabulary = None if plan.vocabulary.digest == coco_lvis().digest else plan.vocabulary.to_json()
        noted = {"description": plan.description(), "shards": shards, "faults": plan.faults, "unusable": plan.unusable()}
        noted |= {"vocabulary": vocabulary}
        self.lease.check()
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.out}: cannot be written: {error.strerror}") from None
        if not create_json(self._recorded, noted, self.lease.check):
            self.check(plan)

    def replace(self, names: Collection[str], announce: Callable[[str], None]) -> None:
        """Remove the files of the data set or build that is here, before one of shards with these names is begun."""
        found = overwrite.inventory(self.out)
        found.refuse_foreign(names)
        self.lease.check()
        found.remove(announce)
        self._plan = None

    def shard(self, name: str) -> Path:
        """Where a shard lies."""
        return self.shards / f"{name}.h5"

    def finished(self, names: Collection[str], phase: Phase = ignore) -> dict[str, dict]:
        """Shard name -> report, for the shards that are whole; one without a report, or not as it says, is built again.

        ``phase`` is told how much of them was read. A DataError where reports are of another build or another version of
        cocolvis.
        """
        reports, others = {}, []
        if is_absent(self._recorded):
            return {}
        noted = {name: found for name in names if (found := self._report(name)) is not None}
        size = sum(found["bytes"] for found in noted.values())
        read = count_bytes(partial(phase, "checking finished shards"), size) if noted else ignore
        for name, found in noted.items():
            if not self._is_whole(name, found, read):
                continue
            reports[name] = found
            if found["build"] != self._made_from(name):
                others.append(name)
        for found in reports.values():
            made_by = found["mask_rule"], found["version"]
            if made_by != (MASK_RULE, VERSION):
                count = sum((other["mask_rule"], other["version"]) == made_by for other in reports.values())
                raise DataError(f"{self.out}: {_other_maker(f'{count} of {len(names)} shards were built', *made_by)}")
        if others:
            reason = f"{len(others)} of {len(names)} shards were built from other inputs or options: {first(others)}"
            raise DataError(f"{self.out}: {reason}; {_OVERWRITE}")
        return reports

    def noted(self) -> dict[str, dict]:
        """Shard name -> report, for the shards that were finished, whether or not they are still whole."""
        return {name: found for name in self.plan["shards"] if (found := self._report(name)) is not None}

    def _report(self, name: str) -> dict | None:
        try:
            return read(self.folder / f"{name}.json", Report)
        except DataError:
            return None

    def _is_whole(self, name: str, found: dict, read: Callable[[int], None]) -> bool:
        shard = self.shard(name)
        try:
            return found["bytes"] == regular_file(shard).st_size and found["sha256"] == sha256(shard, read)
        except DataError:
            return False

    def _made_from(self, name: str) -> str:
        """SHA-256 of all that a shard is made from: the description of the build, and which images it holds."""
        plan = self.plan
        text = json.dumps([plan["description"], name, plan["shards"][name]["rows"]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def finish(self, name: str, found: dict) -> dict:
        """Note that a shard is whole; the report as noted. A DataError where a worker of another version wrote the shard."""
        made_by = tuple(found.get(key, "not recorded") for key in ("mask_rule", "version"))
        if made_by != (MASK_RULE, VERSION):
            raise DataError(f"{self.shard(name)}: {_other_maker('was built by a worker', *made_by)}")
        return self._note(name, found | {"build": self._made_from(name)})

    def mark(self, names: Collection[str], reports: Mapping[str, dict]) -> None:
        """Note that finished shards are to be built again, however much of that an interruption leaves undone."""
        for name in names:
            self._note(name, reports[name] | {"again": True})

    def _note(self, name: str, noted: dict) -> dict:
        path = self.folder / f"{name}.json"
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
        write_json(path, noted, self.lease.check)
        return noted

    @contextmanager
    def swept(self, names: Collection[str] | None = None) -> Iterator[None]:
        """Remove before and after what killed processes left half-written of these shards, or of the whole folder.

        Nobody else may be at work on them, and of another build no single shards are swept, which parts of it may be writing.
        What a stopped process was about to rename goes with it.
        """
        try:
            self._sweep(names)
            yield
        finally:
            if not self.lease.lost():
                self._sweep(names)

    def _sweep(self, names: Collection[str] | None) -> None:
        if names is not None and not self._known:
            return
        sweep(self.shards, lambda name: names is None or name.removesuffix(".h5") in names)
        sweep(self.folder, lambda name: names is None or name.removesuffix(".json") in names)
        if names is None:
            sweep(self.out, lambda name: name in (dataset.INDEX, report.FILE) or is_of_lock(name))

    def complete(self, reports: Mapping[str, dict], vocabulary: Vocabulary) -> dict:
        """Write the index of a build whose shards are all there, and forget the state; the index."""
        index = self._index(reports, vocabulary)
        check_index(self.out / dataset.INDEX, index)
        write_json(self.out / dataset.INDEX, index, self.lease.check)
        overwrite.forget(self.out)
        return index

    def _leaves(self, name: str, split: str, images: int) -> list[bytes]:
        """The digests of a shard's images; a DataError where it is not the shard that the build made."""
        reader = ShardReader(self.shard(name))
        expected = {"split": split, "vocabulary": self.plan["description"]["vocabulary"]}
        found = {key: reader.attributes.get(key) for key in expected}
        if (found, len(reader)) != (expected, images):
            raise DataError(f"{reader.path}: is not the shard that its report describes; {_OVERWRITE}")
        leaves = [row.tobytes() for row in reader.digests()]
        reader.close()
        return leaves

    def _index(self, reports: Mapping[str, dict], vocabulary: Vocabulary) -> dict:
        """The content of dataset.json."""
        plan = self.plan
        description = plan["description"]
        kept = ("images", "bytes", "sha256", "hdf5")
        entries = {
            name: {"file": f"shards/{name}.h5", "split": split_of(name)} | {key: reports[name][key] for key in kept}
            for name in plan["shards"]
        }
        splits, leaves = {}, {}
        for split in description["options"]["splits"]:
            own = {name: entry for name, entry in entries.items() if entry["split"] == split}
            splits[split] = {"images": sum(entry["images"] for entry in own.values()), "shards": len(own)}
            leaves[split] = [leaf for name, e in own.items() for leaf in self._leaves(name, split, e["images"])]
        faults = [
            Fault(*fault)
            for fault in (*plan["faults"], *(fault for name in plan["shards"] for fault in reports[name]["faults"]))
        ]
        return {
            "format": dataset.FORMAT,
            "version": dataset.VERSION,
            "mask_rule": description["mask_rule"],
            "digest": digest.of_dataset(leaves, description["vocabulary"]),
            "splits": splits,
            "shards": list(entries.values()),
            "options": description["options"],
            "inputs": (self._files() or description)["inputs"],
            "report": report.write(self.out, faults, self.lease.check),
            "vocabulary": vocabulary.to_json(),
        }


def first(names: Collection[str], most: int = 5) -> str:
    """The first few of some names."""
    return ", ".join(list(names)[:most]) + (", ..." if len(names) > most else "")


def _other_maker(what: str, rule: object, version: object) -> str:
    return (
        f"{what} by mask rule {rule} and format version {version}, this cocolvis has {MASK_RULE} and {VERSION}: "
        f"go on with the cocolvis that began it, or {_OVERWRITE}"
    )
