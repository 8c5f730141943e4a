"""The folder of a build on its way: what is being built, which shards are whole, and in the end the index."""

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py

from cocolvis import dataset, digest, report
from cocolvis.annotations import Fault
from cocolvis.errors import DataError
from cocolvis.files import read_json, sha256, sweep, write_json
from cocolvis.shard_plan import ShardPlan
from cocolvis.shards import ShardReader
from cocolvis.vocabulary import Vocabulary


class BuildState:
    """The folder ``.build`` of an unfinished build: what is being built (plan.json), and a report for each finished shard.

    ``plan`` holds the description of the build, the shards with their images, and the faults known before any mask was painted.
    """

    def __init__(self, out: Path):
        self.out = out
        self.folder = out / ".build"
        self.shards = out / "shards"
        self._recorded = self.folder / "plan.json"
        self._noted_files = self.folder / "files.json"
        self._vocabulary = self.folder / "vocabulary.json"

    @property
    def plan(self) -> dict:
        """{"description", "shards", "faults"} as recorded; a DataError when nothing was begun."""
        return read_json(self._recorded)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes of a build in parts; a DataError when it was begun as a whole."""
        if not self._vocabulary.exists():
            raise DataError(f"{self.out}: was not begun in parts; complete it with --resume")
        return Vocabulary.from_json(read_json(self._vocabulary))

    def check(self, plan: ShardPlan) -> bool:
        """Whether files were found again since the build was begun; a DataError where going on would mix two builds."""
        if self._recorded.exists():
            settled = self.noted(plan.shard_counts())
            unsettled = {*plan.shard_counts()} - {*settled} | {*report.lossy(settled)}
            found = plan.resumed(self.plan["description"], self._files(), unsettled)
            if found is None:
                advice = "resume with the same, or replace it with --overwrite"
                raise DataError(f"{self.out}: was begun with other inputs or options; {advice}")
            return found
        if self.shards.exists() and any(self.shards.glob("*.h5")):
            raise DataError(
                f"{self.out}: holds shards of an unknown build; choose another folder, or replace it with --overwrite"
            )
        return False

    def _files(self) -> dict | None:
        return read_json(self._noted_files) if self._noted_files.exists() else None

    def note_files(self, plan: ShardPlan) -> None:
        """Note what the plan says of the files that it reads."""
        if (files := plan.files()) is not None:
            write_json(self._noted_files, files)

    def begin(self, plan: ShardPlan, description: dict, *, overwrite: bool, joined: bool) -> None:
        """Drop what is to be overwritten, make the folders, and note what is being built, unless that was done before.

        Parts that are to be ``joined`` need their vocabulary noted, which is the larger part of the index.
        """
        if not overwrite and self._recorded.exists() and (self._vocabulary.exists() or not joined):
            return
        try:
            if overwrite:
                for name in (dataset.INDEX, report.FILE):
                    (self.out / name).unlink(missing_ok=True)
                for folder in (self.folder, self.shards):
                    shutil.rmtree(folder, ignore_errors=True)
            self.shards.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.out}: cannot be written: {error.strerror}") from None
        if joined:
            write_json(self._vocabulary, plan.vocabulary.to_json())
        noted = {"description": description, "shards": plan.shard_counts(), "faults": plan.faults}
        self.note_files(plan)
        write_json(self._recorded, noted | {"unusable": plan.unusable()})

    def replaced(self) -> int:
        """The bytes of what ``begin`` drops."""
        files = (file for folder in (self.folder, self.shards) for file in folder.glob("*"))
        return sum(file.lstat().st_size for file in files)

    def shard(self, name: str) -> Path:
        """Where a shard lies."""
        return self.shards / f"{name}.h5"

    def finished(self, names: Collection[str]) -> dict[str, dict]:
        """Shard name -> report, for the shards that are whole; a shard without a report, or of another size, is built again."""
        reports = {}
        for name in names:
            shard, noted = self.shard(name), self.folder / f"{name}.json"
            if shard.exists() and noted.exists():
                found = read_json(noted)
                if found["bytes"] == shard.stat().st_size and found["sha256"] == sha256(shard):
                    reports[name] = found
        return reports

    def noted(self, names: Collection[str]) -> dict[str, dict]:
        """Shard name -> report, for the shards that were finished, whether or not they are still whole."""
        paths = {name: self.folder / f"{name}.json" for name in names}
        return {name: read_json(path) for name, path in paths.items() if path.exists()}

    def mark(self, names: Collection[str], reports: Mapping[str, dict]) -> None:
        """Note that finished shards are to be built again, however much of that an interruption leaves undone."""
        for name in names:
            self.finish(name, reports[name] | {"again": True})

    def losses(self, reports: Mapping[str, dict], *, all_there: bool) -> list[str]:
        """One line for each split that lost too much in these shards; with ``all_there`` they are all that there will be."""
        plan = self.plan
        return report.losses(plan["shards"], reports, plan.get("unusable", {}) if all_there else {})

    def finish(self, name: str, found: dict) -> None:
        """Note that a shard is whole, with its report."""
        write_json(self.folder / f"{name}.json", found)

    @contextmanager
    def swept(self) -> Iterator[None]:
        """Remove before and after what killed processes left half-written; nobody else may be at work."""
        try:
            self._sweep()
            yield
        finally:
            self._sweep()

    def _sweep(self) -> None:
        for folder in (self.out, self.shards, self.folder):
            sweep(folder)

    def complete(self, reports: Mapping[str, dict], vocabulary: Vocabulary) -> dict:
        """Write the index of a build whose shards are all there, and forget the state; the index."""
        index = self._index(reports, vocabulary)
        write_json(self.out / dataset.INDEX, index)
        shutil.rmtree(self.folder)
        return index

    def _index(self, reports: Mapping[str, dict], vocabulary: Vocabulary) -> dict:
        """The content of dataset.json."""
        plan = self.plan
        description = plan["description"]
        entries = [
            {"file": f"shards/{name}.h5", "split": report.split_of(name)}
            | {key: reports[name][key] for key in ("images", "bytes", "sha256")}
            for name in plan["shards"]
        ]
        splits, leaves = {}, {}
        for split in description["options"]["splits"]:
            own = [entry for entry in entries if entry["split"] == split]
            splits[split] = {"images": sum(entry["images"] for entry in own), "shards": len(own)}
            leaves[split] = [row.tobytes() for entry in own for row in ShardReader(self.out / entry["file"]).digests()]
        faults = [
            Fault(*fault)
            for fault in (*plan["faults"], *(fault for name in plan["shards"] for fault in reports[name]["faults"]))
        ]
        return {
            "format": dataset.FORMAT,
            "version": dataset.VERSION,
            "digest": digest.of_dataset(leaves, description["vocabulary"]),
            "splits": splits,
            "shards": entries,
            "options": description["options"],
            "inputs": (self._files() or description)["inputs"],
            "hdf5": h5py.version.hdf5_version,
            "report": report.write(self.out, faults),
            "vocabulary": vocabulary.to_json(),
        }
