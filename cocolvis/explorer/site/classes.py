"""The page of all classes, with their numbers and bars."""

import math

from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.site.address import Query
from cocolvis.explorer.site.common import ALL, View, chosen_run, ready
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.text import nfc
from cocolvis.vocabulary import KINDS, Vocabulary

ROWS = 2000
"""Classes on a page; with more of them, a search is answered by the server instead of the script of the page."""


def classes(workspace: Workspace, query: Query) -> View:
    """Every class with its numbers; the bars show one of them, by which the rows are sorted.

    "rows" has the classes that match the search, and the others with "found" false if all fit on one page ("complete").
    """
    catalog, vocabulary = ready(workspace), workspace.vocabulary
    run = chosen_run(workspace, query)
    bars = query.choice("bars", ["images", "pixels", "instances", "iou"], "iou" if run else "images")
    run = chosen_run(workspace, query, needed=True) if bars == "iou" else run
    ready(workspace, run)
    split = query.choice("split", [ALL, *catalog.splits])
    sort = query.choice("sort", ["most", "least", "name", "number"])
    group = query.choice("group", ["", *vocabulary.groups])
    kind = query.choice("kind", ["", *KINDS])
    rows = _rows(vocabulary, catalog, run, None if split == ALL else split)
    rows = [row for row in rows if group in ("", row["group"]) and kind in ("", row["kind"])]
    _sort(rows, bars, sort)
    _add_bars(rows, bars)
    text = query.text("q").strip()
    for row in rows:
        row["found"] = _matches(text, row)
    found = [row for row in rows if row["found"]]
    complete = len(rows) <= ROWS
    if not complete:
        rows = found
    pages = max(1, math.ceil(len(rows) / ROWS))
    page = query.number("page", 1, pages)
    return {
        "split": split,
        "bars": bars,
        "sort": sort,
        "group": group,
        "kind": kind,
        "run": run.name if run else None,
        "q": text,
        "instances_recorded": catalog.instances() is not None,
        "classes": len(vocabulary),
        "found": len(found),
        "complete": complete,
        "page": page,
        "pages": pages,
        "rows": rows[(page - 1) * ROWS : page * ROWS],
    }


def _rows(vocabulary: Vocabulary, catalog: Catalog, run: Run | None, split: str | None) -> list[View]:
    """The numbers of every class in a split, or in all of them, with the IoU of a run."""
    images, pixels, instances = catalog.images(split), catalog.pixels(split), catalog.instances(split)
    scores = run.scores.facts["iou"] if run and run.scores else [None] * (len(vocabulary) + 1)
    return [
        {
            "class": c.id,
            "name": c.name,
            "synset": c.synset,
            "group": c.group,
            "kind": c.kind,
            "colour": catalog.colours[c.id],
            "images": images[c.id],
            "pixels": pixels[c.id],
            "instances": None if instances is None else instances[c.id],
            "iou": scores[c.id],
        }
        for c in vocabulary
    ]


def _sort(rows: list[View], bars: str, sort: str) -> None:
    """Sort rows of classes in place; classes without a value are last."""
    if sort == "name":
        rows.sort(key=lambda row: nfc(row["name"]).casefold())
    elif sort in ("most", "least"):
        sign = -1 if sort == "most" else 1
        rows.sort(key=lambda row: (row[bars] is None, sign * (row[bars] or 0), row["class"]))


def _add_bars(rows: list[View], bars: str) -> None:
    """Add the length of each row's bar, 0..100: linear for IoU, otherwise logarithmic, because a class may have one image."""
    most = max((row[bars] or 0 for row in rows), default=0)
    for row in rows:
        value = row[bars] or 0
        full = value if bars == "iou" else math.log1p(value) / math.log1p(most) if most else 0.0
        row["bar"] = round(100 * full, 2)


def _matches(text: str, row: View) -> bool:
    needle = nfc(text).casefold()
    return any(needle in nfc(part).casefold() for part in (row["name"], row["synset"] or ""))


def names(workspace: Workspace) -> View:
    """The names of all classes, for the search in the browser."""
    catalog = ready(workspace)
    counts = catalog.images()
    return {"names": [[c.name, c.synset, catalog.colours[c.id], counts[c.id]] for c in workspace.vocabulary]}
