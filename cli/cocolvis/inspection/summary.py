"""Prints the summary of a data set, for ``info``, and at the end of ``build``, ``join`` and ``import``."""

from typing import TYPE_CHECKING, Any

from cli.display import Size, print_json, print_table, say

if TYPE_CHECKING:
    from cocolvis.storage.dataset import Dataset

_LISTED = 3
"""How many faults of each kind are printed; the folder of the data set has a list of all."""

_OPTIONS = ("dataset", "limit", "images", "overlap", "compat", "decode")
"""The options of a build that are printed, if they were given."""


def print_summary(dataset: "Dataset", as_json: bool) -> None:
    """Print the splits, options and faults of a data set."""
    index = dataset.index
    size = {split: sum(s["bytes"] for s in index["shards"] if s["split"] == split) for split in dataset.splits}
    if as_json:
        print_json(_described(dataset, size))
        return
    rows = [(split, n["images"], n["shards"], Size(size[split])) for split, n in index["splits"].items()]
    print_table(("split", "images", "shards", "size"), rows)
    options = ", ".join(f"{name} {index['options'][name]}" for name in _OPTIONS if index["options"].get(name) is not None)
    say()
    instances = "recorded" if dataset.records_instances else "not recorded"
    rule = index.get("mask_rule", "not recorded")
    say(f"{len(dataset.vocabulary)} classes; {options}, mask rule {rule}, instances {instances}")
    say(f"digest of all contents: {index['digest']}")
    for kind, count in index["report"]["counts"].items():
        _print_faults(dataset, kind, count)


def _described(dataset: "Dataset", size: dict[str, int]) -> dict[str, Any]:
    """The summary as JSON; ``size`` is the bytes of each split."""
    index = dataset.index
    return {
        "folder": str(dataset.folder),
        "digest": index["digest"],
        "mask_rule": index.get("mask_rule"),
        "instances": dataset.records_instances,
        "classes": len(dataset.vocabulary),
        "splits": {split: counts | {"bytes": size[split]} for split, counts in index["splits"].items()},
        "options": index["options"],
        "inputs": index["inputs"],
        "report": {"counts": index["report"]["counts"], "faults": list(dataset.faults())},
    }


def _print_faults(dataset: "Dataset", kind: str, count: int) -> None:
    """Print the first faults of one kind, and where all of them are listed."""
    report = dataset.index["report"]
    say()
    say(f"{kind}: {count}")
    faults = [fault for fault in report["faults"] if fault["kind"] == kind]
    for fault in faults[:_LISTED]:
        named = [f"{what} {fault[f'{what}_id']}" for what in ("image", "annotation") if fault[f"{what}_id"] is not None]
        where = f"{', '.join(named)} ({fault['source']})" if named else fault["source"]
        say(f"  {where}: {fault['reason']}")
    if count > _LISTED:
        listing = "faults.jsonl" if report.get("file") else "dataset.json"
        say(f"  ... and {count - _LISTED} more, listed in {dataset.folder / listing}")
