"""Reads the tables of classes in this folder as vocabularies."""

import csv
from functools import cache
from importlib.resources import files

from cocolvis.vocabulary import ClassInfo, Vocabulary


@cache
def table(name: str) -> Vocabulary:
    """The vocabulary of ``{name}.csv``.

    Every column after class, name and kind is a source: the labels that stand for the classes in label files. A row without a
    class is a label that is known and ignored.
    """
    text = files("cocolvis.importers").joinpath(f"{name}.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    numberings = [column for column in rows[0] if column not in ("class", "name", "kind")]
    classes: list[ClassInfo] = []
    ignored: dict[str, dict[int, str]] = {source: {} for source in numberings}
    for row in rows:
        labels = {source: int(row[source]) for source in numberings if row[source]}
        if row["class"]:
            classes.append(ClassInfo(int(row["class"]), row["name"], row["kind"], None, None, labels))
        else:
            for source, label in labels.items():
                ignored[source][label] = row["name"]
    return Vocabulary(classes, ignored)
