"""From the results of runs to the rows of a table: means, intervals and differences, as JSON and as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import numpy as np

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset
from ess.evaluation.bootstrap import Interval, difference_intervals, miou_intervals
from ess.evaluation.picture_counts import PictureCounts

Result = Mapping[str, Any]
Groups = dict[str, np.ndarray]

TERCILES = ("most pixels", "medium", "fewest pixels")


def groups_of(datasets: Sequence[Dataset], *, terciles: bool) -> Groups:
    """Group -> its classes, (C,) bool: all, things, stuff, and either terciles or the frequency groups of the vocabulary.

    Terciles divide the classes in the training pictures of the data sets by their number of pixels there.
    """
    vocabulary = datasets[0].vocabulary
    groups = {"all": np.ones(len(vocabulary), bool)}
    if not terciles:
        return groups | {name: np.array([c.group == name for c in vocabulary]) for name in vocabulary.groups}
    stuff = np.array([c.kind == "stuff" for c in vocabulary])
    pixels = training_pixels(datasets)
    ranked = np.array_split(np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)], len(TERCILES))
    members = {name: np.isin(np.arange(len(vocabulary)), part) for name, part in zip(TERCILES, ranked, strict=True)}
    return groups | {"things": ~stuff, "stuff": stuff} | members


def training_pixels(datasets: Sequence[Dataset]) -> np.ndarray:
    """(C,) int64 pixels of each class in the splits "train" of all data sets together."""
    sums = np.zeros(len(datasets[0].vocabulary), np.int64)
    for dataset in datasets:
        _, classes, pixels = dataset.split("train").present()
        np.add.at(sums, classes.astype(np.int64) - 1, pixels.astype(np.int64))
    return sums


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient of non-negative counts (C,): 0 if all are equal, close to 1 if one class has everything.

    It is the mean absolute difference of two classes divided by twice the mean. Raises ValueError if all counts are 0.
    """
    ranked = np.sort(counts.astype(np.float64))
    if not ranked.sum():
        raise ValueError("all counts are 0")
    ranks = np.arange(1, len(ranked) + 1)
    return float((2 * ranks - len(ranked) - 1) @ ranked / (len(ranked) * ranked.sum()))


def summary(results: Mapping[str, Sequence[Result]], against: Mapping[str, str], groups: Groups) -> list[dict[str, Any]]:
    """A row of the table for each name, from its results on all parts and seeds; ``against`` names the row to compare with.

    Raises DataError if two rows were evaluated on different labels.
    """
    pooled = {name: _by_seed(found) for name, found in results.items()}
    rows = []
    for name, found in results.items():
        row = _costs(found) | {"row": name, "labels_sha256": _labels(found)}
        seeds = pooled[name]
        intervals = miou_intervals([*seeds.values()], groups)
        row["miou"] = {group: _json(interval) for group, interval in intervals.items()}
        other = against[name]
        shared = [seed for seed in seeds if seed in pooled.get(other, {}) and _same(seeds[seed], pooled[other][seed])]
        if other != name and shared:
            ours, theirs = ([counts[seed] for seed in shared] for counts in (seeds, pooled[other]))
            differences = difference_intervals(ours, theirs, groups)
            row["against"] = {"row": other, **{group: _json(each) for group, each in differences.items()}}
        rows.append(row)
    _check_labels(results)
    return rows


def _by_seed(found: Sequence[Result]) -> dict[int, PictureCounts]:
    """Seed -> the counts of all pictures, of all parts together."""
    seeds = sorted({result["seed"] for result in found})
    return {s: PictureCounts.joined([PictureCounts.from_json(r["pictures"]) for r in found if r["seed"] == s]) for s in seeds}


def _same(one: PictureCounts, other: PictureCounts) -> bool:
    return np.array_equal(one.ids, other.ids)


def _costs(found: Sequence[Result]) -> dict[str, Any]:
    """What is averaged over parts and seeds, and accuracies over all pixels."""
    mious = [result["scores"]["miou"] for result in found]
    near, elsewhere = (np.sum([result["boundary"][where] for result in found], axis=0) for where in ("near", "elsewhere"))
    steps = [result["steps_to_95"] for result in found if result["steps_to_95"] is not None]
    return {
        "runs": len(found),
        "miou_mean": mean(mious),
        "miou_deviation": stdev(mious) if len(mious) > 1 else None,
        "pixel_accuracy": float((near + elsewhere)[1] / (near + elsewhere)[0]),
        "near_boundary": float(near[1] / near[0]) if near[0] else None,
        "elsewhere": float(elsewhere[1] / elsewhere[0]) if elsewhere[0] else None,
        "steps_to_95": mean(steps) if steps else None,
        "seconds_per_step": mean(result["seconds_per_step"] for result in found),
        "peak_bytes": max(result["peak_bytes"] for result in found),
        "learning_rate": found[0]["settings"]["lr"],
    }


def _labels(found: Sequence[Result]) -> dict[str, str]:
    """Part -> the SHA-256 of its labels."""
    return {result["part"]: result["labels_sha256"] for result in found}


def _check_labels(results: Mapping[str, Sequence[Result]]) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for name, found in results.items():
        for part, digest in _labels(found).items():
            other, known = seen.setdefault(part, (name, digest))
            if known != digest:
                raise DataError(f"rows {other} and {name} were evaluated on different labels of {part}; choose another --out")


def _json(interval: Interval) -> dict[str, Any] | None:
    """As JSON; None if no class of the group can be scored. ``same`` says that the interval includes 0."""
    if np.isnan(interval.value):
        return None
    return {**interval._asdict(), "same": not interval.excludes_zero}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table; differences whose interval includes 0 are shown as "="."""
    groups = [group for group in rows[0]["miou"] if group != "all"] if rows else []
    header = ["row", "mIoU", "95 % interval", "by run", "difference", *groups, "pixel accuracy", "near boundary", "elsewhere"]
    header += ["lr", "steps to 95 %", "s/step", "peak memory"]
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *(_cells(row, groups) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Mapping[str, Any], groups: Sequence[str]) -> list[str]:
    miou = row["miou"]["all"]
    spread = "" if row["miou_deviation"] is None else f" ± {row['miou_deviation']:.4f}"
    return [
        row["row"],
        _share(miou and miou["value"]),
        "" if miou is None else f"{miou['low']:.4f} to {miou['high']:.4f}",
        f"{row['miou_mean']:.4f}{spread}",
        _difference(row.get("against")),
        *(_share(row["miou"][group] and row["miou"][group]["value"]) for group in groups),
        *(_share(row[name]) for name in ("pixel_accuracy", "near_boundary", "elsewhere")),
        f"{row['learning_rate']:g}",
        "" if row["steps_to_95"] is None else f"{row['steps_to_95']:.0f}",
        f"{row['seconds_per_step']:.2f}",
        f"{row['peak_bytes'] / 2**30:.2f} GiB",
    ]


def _difference(against: Mapping[str, Any] | None) -> str:
    if against is None or against["all"] is None:
        return ""
    if against["all"]["same"]:
        return f"= {against['row']}"
    return f"{against['all']['value']:+.4f} ({against['all']['low']:+.4f} to {against['all']['high']:+.4f}) {against['row']}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
