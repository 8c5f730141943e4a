"""The classes of a data set: names, kinds, frequency groups, and which annotation category becomes which class."""

import csv
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.resources import files

from msgspec import ValidationError, convert

from cocolvis.errors import DataError
from cocolvis.text import did_you_mean, nfc

UNLABELLED = 0
"""The class id on disk of a pixel without a class."""

GROUPS = ("rare", "common", "frequent", "stuff")
"""Frequency groups: LVIS's three, by number of training images (1-10, 11-100, more), and stuff classes that LVIS lacks."""

KINDS = ("thing", "stuff", "both")
"""Which sources contain a class: LVIS (thing), COCO-Stuff (stuff) or both."""

STUFF_OTHER = 183
"""The COCO-Stuff category "other": pixels of things, which have no stuff class."""

_LISTED = 20
"""How many classes a notebook lists."""


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class of a vocabulary.

    ``sources`` maps the name of an annotation source ("lvis", "stuff") to the id of its category; ``images`` is the number of
    LVIS v1 training images that show the class, or None when LVIS lacks it. ``group`` is None in a vocabulary without
    frequency groups.
    """

    id: int
    name: str
    kind: str
    group: str | None
    synset: str | None
    sources: Mapping[str, int]
    images: int | None = None

    def to_json(self) -> dict:
        """The class as a JSON object, as in ``cocolvis vocab --json`` and dataset.json."""
        return {
            "class": self.id,
            "name": self.name,
            "kind": self.kind,
            "group": self.group,
            "synset": self.synset,
            "sources": dict(self.sources),
            "images": self.images,
        }


class Vocabulary:
    """Classes 1..C in order, and the mapping from the categories of each annotation source to them.

    ``ignored`` maps a source to categories (id -> name) that belong to no class; their pixels are unlabelled. Raises DataError
    if the ids are not 1..C or two names are equal.
    """

    def __init__(self, classes: Iterable[ClassInfo], ignored: Mapping[str, Mapping[int, str]] | None = None):
        self.classes = tuple(classes)
        self._lookups: dict[str, dict[int, int]] = {}
        self.ignored = {source: dict(names) for source, names in (ignored or {}).items()}
        if [c.id for c in self.classes] != list(range(1, len(self.classes) + 1)):
            raise DataError("vocabulary: class ids must be 1, 2, ... without gaps")
        ids: dict[str, int] = {}
        for c in self.classes:
            if (first := ids.setdefault(nfc(c.name), c.id)) != c.id:
                raise DataError(f"vocabulary: class names must be unique, but classes {first} and {c.id} are both {c.name!r}")

    def __len__(self) -> int:
        """The number of classes C, without "unlabelled"."""
        return len(self.classes)

    def __iter__(self) -> Iterator[ClassInfo]:
        return iter(self.classes)

    def __getitem__(self, class_id: int) -> ClassInfo:
        """The class with this id, 1..C."""
        if not 1 <= class_id <= len(self.classes):
            raise DataError(f"class {class_id} is not in the vocabulary: ids are 1..{len(self.classes)}")
        return self.classes[class_id - 1]

    def _repr_html_(self) -> str:
        """The first classes as a table, for notebooks."""
        from cocolvis import notebook  # imported late: the vocabulary alone needs no NumPy

        rows = [(notebook.swatch(c.id), c.id, c.name, c.kind, c.group, c.synset) for c in self.classes[:_LISTED]]
        more = f", the first {_LISTED} are" if len(self) > _LISTED else ""
        return notebook.table(("", "class", "name", "kind", "group", "synset"), rows, f"{len(self):,} classes{more}")

    @property
    def groups(self) -> tuple[str, ...]:
        """``GROUPS``, or an empty tuple when no class has a group."""
        return GROUPS if any(c.group for c in self.classes) else ()

    def name(self, class_id: int) -> str:
        """The name of a class; "unlabelled" for 0."""
        return "unlabelled" if class_id == UNLABELLED else self[class_id].name

    def categories(self, source: str) -> dict[int, str]:
        """Category id -> name for all categories of ``source``, ignored ones included."""
        known = {c.sources[source]: c.name for c in self.classes if source in c.sources}
        return known | self.ignored.get(source, {})

    def lookup(self, source: str) -> dict[int, int]:
        """Category id of ``source`` -> class id, 0 for ignored categories. The table is shared: do not modify it."""
        if source not in self._lookups:
            table = {c.sources[source]: c.id for c in self.classes if source in c.sources}
            self._lookups[source] = table | dict.fromkeys(self.ignored.get(source, {}), UNLABELLED)
        return self._lookups[source]

    def search(self, text: str) -> list[ClassInfo]:
        """Classes whose name or synset contains ``text``, ignoring case."""
        needle = nfc(text).casefold()
        return [c for c in self.classes if any(needle in nfc(t).casefold() for t in (c.name, c.synset or ""))]

    def id_of(self, name: str) -> int:
        """The id of the class with exactly this name; raises DataError, which suggests the closest names, if there is none."""
        for c in self.classes:
            if nfc(c.name) == nfc(name):
                return c.id
        containing = [c.name for c in self.search(name)[:3]] if name else []
        raise DataError(f"no class is named {name!r}{did_you_mean(name, (c.name for c in self.classes), containing)}")

    def check_categories(self, source: str, categories: Mapping[int, str], where: str) -> None:
        """Raise DataError unless the ``categories`` (id -> name) of an annotation file are those of this vocabulary."""
        expected = self.categories(source)
        for category, name in categories.items():
            if category not in expected or nfc(expected[category]) != nfc(name):
                known = repr(expected[category]) if category in expected else "no category of this id"
                raise DataError(
                    f"{where}: category {category} is {name!r}, the vocabulary has {known};"
                    f" expected the {len(expected)} categories of {source} that `cocolvis vocab` lists"
                )
        missing = sorted(expected.keys() - categories.keys())
        if missing:
            raise DataError(
                f"{where}: lists {len(categories)} categories, expected {len(expected)};"
                f" the first missing one is {missing[0]} {expected[missing[0]]!r}"
            )

    def to_json(self) -> dict:
        """The vocabulary as a JSON object, digest included, for :meth:`from_json`."""
        ignored = {source: {str(i): n for i, n in names.items()} for source, names in self.ignored.items()}
        return {"digest": self.digest, "classes": [c.to_json() for c in self.classes], "ignored": ignored}

    @classmethod
    def from_json(cls, data: Mapping) -> "Vocabulary":
        """The vocabulary that :meth:`to_json` wrote; raises DataError if it is malformed or its digest does not match."""
        try:
            digest = data["digest"]
            classes = convert([{**c, "id": c["class"]} for c in data["classes"]], list[ClassInfo])
            ignored = convert(data["ignored"], dict[str, dict[int, str]], str_keys=True)
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            raise DataError(f"malformed vocabulary: {error!r}") from None
        for number, c in enumerate(classes, 1):
            if c.kind not in KINDS or c.group not in (*GROUPS, None) or not (c.name and c.name.isprintable()):
                raise DataError(f"malformed vocabulary: class {number} has kind {c.kind!r}, group {c.group!r}, name {c.name!r}")
        vocabulary = cls(classes, ignored)
        if vocabulary.digest != digest:
            raise DataError(f"vocabulary digest is {vocabulary.digest}, but {digest} was recorded: the classes were edited")
        return vocabulary

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that defines the meaning of a label: ids, names, kinds, groups and source categories."""
        meaning = [[c.id, c.name, c.kind, c.group, c.synset, sorted(c.sources.items())] for c in self.classes]
        ignored = [[source, sorted(names.items())] for source, names in sorted(self.ignored.items())]
        return hashlib.sha256(json.dumps([meaning, ignored]).encode()).hexdigest()


@lru_cache(maxsize=1)
def coco_lvis() -> Vocabulary:
    """The 1284 classes of COCO+LVIS, from the reviewed table vocabulary.csv.

    LVIS v1 categories keep their ids 1..1203. Of the 91 COCO stuff categories, 10 share a name with an LVIS category and
    map to that class; the other 81 become 1204..1284, in ascending order of stuff id.
    """
    text = files("cocolvis").joinpath("vocabulary.csv").read_text(encoding="utf-8")
    classes = []
    for row in csv.DictReader(text.splitlines()):
        sources = {s: int(row[f"{s}_id"]) for s in ("lvis", "stuff") if row[f"{s}_id"]}
        images = int(row["lvis_images"]) if row["lvis_images"] else None
        synset = row["synset"] or None
        classes.append(ClassInfo(int(row["class"]), row["name"], row["kind"], row["group"], synset, sources, images))
    return Vocabulary(classes, {"stuff": {STUFF_OTHER: "other"}})
