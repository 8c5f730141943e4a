"""dataset.json: the checks before a build writes it, its content, and opening one that exists already."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cocolvis.building import overwrite
from cocolvis.building.lost_images import Reports, incomplete, reasons_to_refuse, split_of
from cocolvis.building.numbering import advice as numbering_advice
from cocolvis.building.state import OVERWRITE, BuildState
from cocolvis.disk import reading
from cocolvis.disk.files import write_json
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.pictures import remarks
from cocolvis.progress import Announce
from cocolvis.storage import dataset, digest, report
from cocolvis.storage.index import check_index
from cocolvis.storage.shard_reader import ShardReader


def complete(state: BuildState, reports: Reports, announce: Announce, advice: str) -> dict[str, Any]:
    """Turn a build whose shards are all finished into a data set, and return its index.

    Raises DataError, with ``advice``, if a split lost too many images and that is not allowed; the shards that lack images are
    then built again when the build continues. ``announce`` is called with remarks on the pictures and labels.
    """
    planned, unusable = state.planned(), state.record.get("unusable", {})
    faults = [Fault(*fault) for fault in state.record["faults"]]
    if not reading.missing_allowed() and (reasons := reasons_to_refuse(planned, reports, unusable, faults)):
        state.build_again(incomplete(reports), reports)
        raise DataError(f"{state.out}: {', and '.join(reasons)}; finished shards are kept: {advice}")
    vocabulary = state.vocabulary
    index = write(state, reports)
    seen = sum((Counter(shard.get("seen", {})) for shard in reports.values()), Counter[str]())
    for line in (*remarks.lines(seen), *numbering_advice(seen, vocabulary), *_without_classes(state, index)):
        announce(line)
    versions = Counter(entry["hdf5"] for entry in index["shards"])
    if len(versions) > 1:
        listed = ", ".join(f"{version} ({count} shards)" for version, count in sorted(versions.items()))
        announce(f"different versions of HDF5 wrote the shards: {listed}; their bytes may differ from those of another build")
    return index


def _without_classes(state: BuildState, index: Mapping[str, Any]) -> list[str]:
    """A line for each split that has images, but no pixel with a class."""
    lines = []
    for split, totals in index["splits"].items():
        names = (Path(entry["file"]).stem for entry in index["shards"] if entry["split"] == split)
        if totals["images"] and not any(len(ShardReader(state.shard(name)).present()[1]) for name in names):
            lines.append(
                f"no pixel of split {split} has a class, so nothing can be learned from it; check the labels in its masks"
            )
    return lines


def write(state: BuildState, reports: Reports) -> dict[str, Any]:
    """Write the index, remove the state of the build, and return the index."""
    index = _content(state, reports)
    check_index(state.out / dataset.INDEX, index)
    write_json(state.out / dataset.INDEX, index, state.lease.check)
    overwrite.remove_state(state.out, state.lease.check)
    return index


def opened(out: Path) -> dict[str, Any]:
    """The index of a finished data set; raises DataError if it is damaged."""
    try:
        return dict(dataset.Dataset.open(out).index)
    except DataError as error:
        raise DataError(f"{error}; build it again with `cocolvis build --overwrite`, or `import`") from None


def resumed(state: BuildState, description: Mapping[str, Any], announce: Announce) -> dict[str, Any]:
    """The index of a finished data set; one without instances is announced, if the build would record them now.

    Raises DataError if it was built from other inputs or options, or by another mask rule.
    """
    out = state.out
    index = opened(out)
    rule = index.get("mask_rule", "not recorded")
    if rule != description["mask_rule"]:
        reason = f"its {len(index['shards'])} shards have mask rule {rule}, this cocolvis has {description['mask_rule']}"
        raise DataError(f"{out}: is a finished data set, but {reason}; build it again with `cocolvis build --overwrite`")
    overwrite.remove_state(out, state.lease.check)
    if any(index[key] != description[key] for key in ("options", "inputs")) or (
        index["vocabulary"]["digest"] != description["vocabulary"]
    ):
        raise DataError(f"{out}: is a finished data set of other inputs or options; replace it with --overwrite")
    if description.get("instances") and not index.get("instances"):
        announce(f"{out}: was finished before instances were recorded; --overwrite builds the same masks with instances")
    return index


def _content(state: BuildState, reports: Reports) -> dict[str, Any]:
    record, description, names = state.record, state.record["description"], [*state.record["shards"]]
    copied = ("images", "bytes", "checksum", "hdf5")
    entries = {
        name: {"file": f"shards/{name}.h5", "split": split_of(name)} | {key: reports[name][key] for key in copied}
        for name in names
    }
    splits, leaves = {}, {}
    for split in description["options"]["splits"]:
        of_split = {name: entry for name, entry in entries.items() if entry["split"] == split}
        splits[split] = {"images": sum(entry["images"] for entry in of_split.values()), "shards": len(of_split)}
        leaves[split] = [leaf for name, entry in of_split.items() for leaf in _leaves(state, name, split, entry["images"])]
    faults = [Fault(*fault) for fault in (*record["faults"], *(fault for name in names for fault in reports[name]["faults"]))]
    return {
        "format": dataset.FORMAT,
        "version": dataset.VERSION,
        "mask_rule": description["mask_rule"],
        **({"instances": True} if state.records_instances else {}),
        "digest": digest.of_dataset(leaves, description["vocabulary"]),
        "splits": splits,
        "shards": list(entries.values()),
        "options": description["options"],
        "inputs": (state.files_record() or description)["inputs"],
        "report": report.write(state.out, faults, state.lease.check),
        "vocabulary": state.vocabulary.to_json(),
    }


def _leaves(state: BuildState, name: str, split: str, images: int) -> list[bytes]:
    """The digests of a shard's images; raises DataError if the file is not the shard that was built."""
    reader = ShardReader(state.shard(name))
    expected = {"split": split, "vocabulary": state.record["description"]["vocabulary"]}
    attributes = {key: reader.attributes.get(key) for key in expected}
    if (attributes, len(reader), reader.has_instances) != (expected, images, state.records_instances):
        raise DataError(f"{reader.path}: does not match the report of the shard; {OVERWRITE}")
    leaves = [row.tobytes() for row in reader.digests()]
    reader.close()
    return leaves
