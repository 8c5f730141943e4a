"""Users' own data sets: pictures, label files with the same names, and a list of classes."""

import csv
import shlex
from collections.abc import Collection, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from cocolvis.building.numbering import SOURCE
from cocolvis.disk import reading
from cocolvis.disk.files import read_json, read_lines, read_text
from cocolvis.errors import DataError
from cocolvis.importers.tree import PICTURES, Findings, Tree, find_root, paired
from cocolvis.pictures.label_files import LABELS
from cocolvis.sources.locations import SPLITS
from cocolvis.text import nfc
from cocolvis.vocabulary import KINDS, ClassInfo, Vocabulary

EXPECTED = "images/{train,val}/*.jpg or .png, masks/{train,val}/*.png and classes.txt, classes.csv or classes.json"

_CLASSES = ("classes.txt", "classes.csv", "classes.json")

_NUMBERS = ("label", "id")
"""Columns, or fields of objects, in which programs number the classes."""


class _Entry(NamedTuple):
    """A class in a list; ``number`` is what the list itself calls its label or id, None if it does not."""

    name: Any
    kind: Any = "stuff"
    number: int | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "_Entry":
        """The entry in a row of a table, or in an object."""
        numbers = (str(row[name]) for name in _NUMBERS if name in row)
        number = next((int(text) for text in numbers if text.isascii() and text.isdigit() and len(text) < 10), None)
        return cls(row["name"], row.get("kind") or "stuff", number)


def find(
    src: Path,
    splits: Collection[str],
    first_label: int = 1,
    ignored: Collection[int] = (),
    labels: Mapping[str, int] | None = None,
) -> Tree:
    """The tree at ``src``.

    The first class has the label ``first_label``, 0 or 1, in the masks, and the labels of the others follow; classes named in
    ``labels`` have the label given there instead. Pixels with an ``ignored`` label are unlabelled, and so are those with 0 if
    no class has that label. Raises DataError if a folder of one of the ``splits`` or the list of classes is missing or
    malformed.
    """
    root = find_root(src, [f"{kind}/{split}" for split in splits for kind in ("images", "masks")], [], EXPECTED)
    findings = Findings()
    vocabulary = _vocabulary(root, first_label, ignored, labels or {}, findings)
    names = dict.fromkeys((*SPLITS, *splits))  # ids do not depend on which splits are imported
    layout = {s: ([f"images/{s}/{{}}{end}" for end in PICTURES], [f"masks/{s}/{{}}.png"]) for s in names}
    return Tree(root, vocabulary, SOURCE, paired(root, layout, splits, findings), findings)


def _vocabulary(
    root: Path, first_label: int, ignored: Collection[int], given: Mapping[str, int], findings: Findings
) -> Vocabulary:
    lists = [name for name in _CLASSES if reading.exists(root / name)]
    if len(lists) != 1:
        raise DataError(f"{root}: holds {' and '.join(lists) or 'no list of classes'}; expected one of {', '.join(_CLASSES)}")
    path = root / lists[0]
    read = {".txt": _lines, ".csv": _table, ".json": _json}[path.suffix]
    given, classes = {nfc(name): label for name, label in given.items()}, []
    stated: dict[str, int | None] = {}
    for number, (name, kind, own) in enumerate(read(path), 1):
        if not (isinstance(name, str) and name.strip() and name.isprintable()) or kind not in KINDS:
            raise DataError(f"{path}: class {number} has name {name!r}, kind {kind!r}; expected a name, and one of {KINDS}")
        name = nfc(name.strip())
        label = given.get(name, number - 1 + first_label)
        classes.append(ClassInfo(number, name, kind, None, None, {SOURCE: label}))
        stated[name] = own
    labels = _labels(path, classes, given)
    if not 0 < len(classes) <= LABELS - 1:
        raise DataError(f"{path}: lists {len(classes)} classes; expected 1 to {LABELS - 1}")
    if clash := [label for label in ignored if label in labels]:
        raise DataError(
            f"{path}: label {clash[0]} is ignored and also that of a class: classes have {min(labels)}..{max(labels)}"
        )
    findings.notes.extend(_other_numbers(path, labels, stated))
    names = dict.fromkeys(ignored, "ignored") | ({} if 0 in labels else {0: "unlabelled"})
    try:
        return Vocabulary(classes, {SOURCE: names})
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _labels(path: Path, classes: list[ClassInfo], given: Mapping[str, int]) -> dict[int, str]:
    """Label -> name of the class.

    Raises DataError if two classes have the same label, or a label is given to an unknown class.
    """
    labels: dict[int, str] = {}
    for c in classes:
        if (label := c.sources[SOURCE]) in labels:
            raise DataError(f"{path}: {labels[label]!r} and {c.name!r} both have the label {label}; change one with --label")
        labels[label] = c.name
    if strange := given.keys() - labels.values():
        raise DataError(f"{path}: --label names {min(strange)!r}, which is not a class in that list; expected one of its names")
    return labels


def _other_numbers(path: Path, labels: Mapping[int, str], stated: Mapping[str, int | None]) -> list[str]:
    """A line if the list gives a class another number than the label that it has here; [] if not."""
    for label, name in labels.items():
        if (number := stated[name]) not in (None, label):
            option = f"--label {shlex.quote(f'{name}={number}')}"
            has = f"{path}: numbers {name!r} {number}, which here has label {label}, by its place in the list"
            return [f"{has}: if the masks hold {number} for it, import them with {option}, and others likewise"]
    return []


def _lines(path: Path) -> Iterator[_Entry]:
    """One name on each line; an empty last line does not count."""
    return map(_Entry, read_lines(path))


def _table(path: Path) -> Iterator[_Entry]:
    """A column "name" and, optionally, "kind", separated by commas, or by the semicolons or tabs of the first line.

    Spaces around the names of columns and before values, and the case of the names of columns, do not matter.
    """
    text = read_text(path)
    separator = next((one for one in ",;\t" if one in text.partition("\n")[0]), ",")
    try:
        rows = csv.DictReader(StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        rows.fieldnames = [name.strip().casefold() for name in rows.fieldnames or ()]
        if "name" not in (rows.fieldnames or ()):
            raise DataError(f"{path}: has columns {rows.fieldnames}; expected a column 'name', and 'kind' if kinds are known")
        for row in rows:
            if any(row.get(None) or ()):  # what a row has beyond the columns
                more = f"line {rows.line_num} has more fields than the header, {len(rows.fieldnames or ())}"
                raise DataError(f"{path}: {more}; put a name that contains {separator!r} in quotes")
            yield _Entry.of(row)
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {error}") from None


def _json(path: Path) -> Iterator[_Entry]:
    """A list of names, or of objects with "name" and, optionally, "kind"."""
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(c, str) or (isinstance(c, dict) and "name" in c) for c in content):
        raise DataError(f"{path}: expected a list of names, or of objects with 'name' and, if known, 'kind'")
    return (_Entry(c) if isinstance(c, str) else _Entry.of(c) for c in content)
