"""The content of the pages as plain values: what a page shows and what its JSON twin returns.

A view takes the workspace and a checked query, and returns texts, numbers, lists and dictionaries. It raises DataError if the
query is wrong, NotFound if the page does not exist, and NotReady if what it shows is still being prepared.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cocolvis.errors import DataError
from cocolvis.explorer.address import Query
from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.text import nfc
from cocolvis.vocabulary import KINDS, ClassInfo

if TYPE_CHECKING:
    import numpy as np

PAGE = 48
"""Thumbnails on a page."""

ROWS = 2000
"""Classes on a page."""

ALL = "all splits"

ORDERS = ("id", "area", "smallest", "worst", "best")
"""How pictures are sorted; all except the first need classes or a run."""

View = dict[str, Any]


class NotFound(Exception):
    """There is no such page."""


class NotReady(Exception):
    """What the page shows is still being prepared."""


def ready(workspace: Workspace, run: Run | None = None) -> Catalog:
    """The catalog; raises NotReady as long as it, or the scores of a run, are missing."""
    if workspace.catalog is None or not workspace.is_ready(run):
        raise NotReady
    return workspace.catalog


def chosen_run(workspace: Workspace, query: Query, *, needed: bool = False) -> Run | None:
    """The run that a query names, or the first one if one is ``needed``; raises NotFound without any."""
    name = query.text("run")
    if not name and not needed:
        return None
    if not workspace.runs:
        raise NotFound("no predictions were given; start the explorer with --predictions DIR")
    return workspace.runs[query.choice("run", [*workspace.runs])]


def classes(workspace: Workspace, query: Query) -> View:
    """Every class with its numbers; the bars show one of them, by which the rows are sorted."""
    catalog, vocabulary = ready(workspace), workspace.vocabulary
    run = chosen_run(workspace, query)
    bars = query.choice("bars", ["images", "pixels", "instances", "iou"], "iou" if run else "images")
    run = chosen_run(workspace, query, needed=True) if bars == "iou" else run
    ready(workspace, run)
    split = query.choice("split", [ALL, *catalog.splits])
    sort = query.choice("sort", ["most", "least", "name", "number"])
    group = query.choice("group", ["", *vocabulary.groups])
    kind = query.choice("kind", ["", *KINDS])
    part = None if split == ALL else split
    images, pixels = catalog.images(part), catalog.pixels(part)
    scores = run.scores.facts["iou"] if run and run.scores else [None] * (len(vocabulary) + 1)
    rows = [
        {
            "class": c.id,
            "name": c.name,
            "synset": c.synset,
            "group": c.group,
            "kind": c.kind,
            "colour": catalog.colours[c.id],
            "images": images[c.id],
            "pixels": pixels[c.id],
            "instances": None,
            "iou": scores[c.id],
        }
        for c in vocabulary
        if group in ("", c.group) and kind in ("", c.kind)
    ]
    _sort(rows, bars, sort)
    _add_bars(rows, bars)
    text = query.text("q")
    for row in rows:
        row["found"] = _matches(text, row)
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
        "classes": len(vocabulary),
        "found": sum(row["found"] for row in rows),
        "page": page,
        "pages": pages,
        "rows": rows[(page - 1) * ROWS : page * ROWS],
    }


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


def class_named(workspace: Workspace, text: str, run: Run | None = None) -> ClassInfo:
    """The class that a query gives by name or by number; raises DataError with similar names if there is none."""
    vocabulary = run.vocabulary if run else workspace.vocabulary
    for c in vocabulary:
        if nfc(c.name) == nfc(text):
            return c
    if text.isascii() and text.isdigit() and len(text) < 10:
        return vocabulary[int(text)]
    return vocabulary[vocabulary.id_of(text)]


def added(query: Query) -> str | None:
    """The address after a class was added with the search field, which names it and how; None if none was added."""
    name = query.text("add").strip()
    if not name:
        return None
    how = query.choice("how", ["all", "any", "none"])
    kept = {key: [one for one in query.all(key) if one != name] for key in ("all", "any", "none")}
    kept[how].append(name)
    return query.link(**kept, add=None, how=None)


def pictures(workspace: Workspace, query: Query) -> View:
    """The pictures that show certain classes, one page of them."""
    from cocolvis.explorer import queries  # imported late: the first page does not need NumPy

    run = chosen_run(workspace, query)
    catalog = ready(workspace, run)
    split = query.choice("split", [ALL, *catalog.splits])
    chosen = {how: [class_named(workspace, name) for name in query.all(how)] for how in ("all", "any", "none")}
    ids = {how: [c.id for c in found] for how, found in chosen.items()}
    shown = ids["all"] + ids["any"]
    images = queries.select(catalog, ids["all"], ids["any"], ids["none"], None if split == ALL else split)
    confused = _confused(workspace, query, run)
    orders = ["id", *(["area", "smallest"] if shown or confused else []), *(["worst", "best"] if run else [])]
    sort = query.choice("sort", ORDERS, "area" if confused else "id")
    sort = sort if sort in orders else orders[0]  # what it needs was removed from the query
    ordered, values = _ordered(catalog, run, images, shown, confused, sort)
    pages = max(1, math.ceil(len(ordered) / PAGE))
    page = query.number("page", 1, pages)
    part = slice((page - 1) * PAGE, page * PAGE)
    shown_values = [None] * len(ordered[part]) if values is None else values[part].tolist()
    return {
        "split": split,
        "sort": sort,
        "orders": orders,
        "run": run.name if run else None,
        "mark": query.choice("mark", ["yes", "no"]),
        "chosen": {how: [short(workspace, catalog, None, c) for c in found] for how, found in ids.items()},
        "confused": [c.name for c in confused] if confused else None,
        "found": len(ordered),
        "page": page,
        "pages": pages,
        "first": (page - 1) * PAGE + 1,
        "pictures": [_card(catalog, *one) for one in zip(ordered[part].tolist(), shown_values, strict=True)],
    }


def _ordered(
    catalog: Catalog,
    run: Run | None,
    images: "np.ndarray",
    shown: Sequence[int],
    confused: tuple[ClassInfo, ClassInfo] | None,
    sort: str,
) -> "tuple[np.ndarray, np.ndarray | None]":
    """The images in order, and the values that they are sorted by, if any: shares of the image, or IoU.

    Only images with a confused pixel remain if a confusion is given, and only those with a score if they are sorted by it.
    """
    from cocolvis.explorer import queries

    scores = run.scores if run else None
    values = None
    if confused and scores:
        rows, pixels = scores.confused(confused[0].id, confused[1].id)
        images, values = queries.shares(catalog, images, rows, pixels)
    elif sort in ("area", "smallest"):
        values = queries.areas(catalog, shown, images)
    if scores and sort in ("worst", "best"):
        size = len(catalog)
        values = (scores.class_scores(shown[0], size) if len(shown) == 1 else scores.image_scores(size))[images]
        images, values = images[values == values], values[values == values]
    if sort == "id" or values is None:
        order = queries.by_id(catalog, images)
    else:
        order = queries.by_value(values, descending=sort in ("area", "best"))
    return images[order], None if values is None else values[order]


def _confused(workspace: Workspace, query: Query, run: Run | None) -> tuple[ClassInfo, ClassInfo] | None:
    """The true and the predicted class of a cell of the confusion, if the query names one."""
    truth, predicted = query.text("truth"), query.text("predicted")
    if not (truth or predicted):
        return None
    if not (truth and predicted and run):
        raise DataError("truth, predicted and run belong together: give all three or none")
    return class_named(workspace, truth), class_named(workspace, predicted, run)


def _card(catalog: Catalog, image: int, value: float | None) -> View:
    """One thumbnail: the image, the size of its tile, and the value that it is sorted by."""
    from cocolvis.explorer.pictures import thumbnail_size

    place, image_id = catalog.place(image), int(catalog.ids()[image])
    height, width = catalog.sizes()[image].tolist()
    return {
        "image": image,
        "id": image_id,
        "split": place.split,
        "height": height,
        "width": width,
        "tile": thumbnail_size(height, width),
        "value": value,
    }


def confusion(workspace: Workspace, query: Query) -> View:
    """Which classes a run takes for which: the largest confusions, and the matrix of the classes with most pixels."""
    import numpy as np

    run = chosen_run(workspace, query, needed=True)
    assert run is not None
    catalog = ready(workspace, run)
    assert run.scores is not None
    group = query.choice("group", ["", *workspace.vocabulary.groups])
    of = class_named(workspace, query.text("class"), run) if query.text("class") else None
    truth, predicted, pixels = run.scores.confusion
    members = np.array([group in ("", c.group) for c in workspace.vocabulary])
    totals = np.bincount(truth, pixels, len(run.vocabulary) + 1)
    kept = members[truth - 1] if truth.size else np.zeros(0, bool)
    if of is not None:
        kept &= (truth == of.id) | (predicted == of.id)
    wrong = np.flatnonzero(kept & (truth != predicted))
    largest = wrong[np.argsort(-pixels[wrong], kind="stable")][:LISTED]
    rows = [
        {
            "truth": short(workspace, catalog, run, int(truth[i])),
            "predicted": short(workspace, catalog, run, int(predicted[i])),
            "pixels": int(pixels[i]),
            "share": float(pixels[i] / totals[truth[i]]),
        }
        for i in largest.tolist()
    ]
    return {
        "run": run.name,
        "runs": [*workspace.runs],
        "group": group,
        "of_class": of.name if of else None,
        "images": run.scores.facts["images"],
        "miou": run.scores.facts["miou"],
        "accuracy": run.scores.facts["accuracy"],
        "unreadable": run.scores.facts["unreadable"],
        "rows": rows,
        "matrix": _matrix(workspace, catalog, run, members, kept, totals, of),
    }


LISTED = 50
"""Confusions in the list of the largest ones."""

MATRIX = 16
"""Classes in the matrix of a confusion."""


def _matrix(workspace: Workspace, catalog: Catalog, run: Run, members, kept, totals, of: ClassInfo | None) -> View:
    """The confusions among the classes with most labelled pixels, or among one class and those it is confused with."""
    import numpy as np

    assert run.scores is not None
    truth, predicted, pixels = run.scores.confusion
    weights = np.zeros(len(totals))
    weights[1 : len(members) + 1] = totals[1 : len(members) + 1] * members
    if of is not None:
        weights[:] = 0
        np.add.at(weights, truth[kept], pixels[kept])
        np.add.at(weights, predicted[kept], pixels[kept])
    largest = np.argsort(-weights, kind="stable")[:MATRIX]
    ids = [int(c) for c in largest if weights[c] > 0]
    place = {c: i for i, c in enumerate(ids)}
    cells = [[0] * len(ids) for _ in ids]
    inside = np.flatnonzero(np.isin(truth, ids) & np.isin(predicted, ids))
    for i in inside.tolist():
        cells[place[int(truth[i])]][place[int(predicted[i])]] = int(pixels[i])
    return {
        "classes": [short(workspace, catalog, run, c) for c in ids],
        "cells": cells,
        "totals": [int(totals[c]) for c in ids],
    }


def short(workspace: Workspace, catalog: Catalog, run: Run | None, class_id: int) -> View:
    """The id, name and colour of a class."""
    if class_id == 0:
        return {"class": 0, "name": "unlabelled", "colour": "#808080"}
    info = workspace.info(class_id, run)
    colours = catalog.colours
    if class_id >= len(colours):
        from cocolvis.palette import palette

        return {"class": class_id, "name": info.name, "colour": "#" + palette(class_id)[class_id].tobytes().hex()}
    return {"class": class_id, "name": info.name, "colour": colours[class_id]}


def about(workspace: Workspace, query: Query) -> View:
    """The data set itself: its splits, options and faults, and the runs that are compared with it."""
    catalog = ready(workspace)
    index = workspace.index
    return {
        "folder": str(workspace.folder),
        "digest": index["digest"],
        "splits": [
            {"name": name, "images": split["images"], "readable": catalog.splits.get(name, 0), "shards": split["shards"]}
            for name, split in index["splits"].items()
        ],
        "classes": len(workspace.vocabulary),
        "options": {name: value for name, value in index["options"].items() if value is not None},
        "faults": index["report"]["counts"],
        "unreadable": catalog.unreadable,
        "runs": [
            {"name": run.name, "made_by": run.made_by, "scores": None if run.scores is None else _run_facts(run)}
            for run in workspace.runs.values()
        ],
    }


def _run_facts(run: Run) -> View:
    assert run.scores is not None
    return {name: run.scores.facts[name] for name in ("images", "miou", "accuracy", "unreadable")}


def preparing(workspace: Workspace) -> View:
    """What is being prepared: a text, the amount done and the total; ``failed`` is the reason if it ended early."""
    text, done, total = workspace.doing
    ready_now = workspace.is_ready() and all(map(workspace.is_ready, workspace.runs.values()))
    return {"ready": ready_now, "text": text, "done": done, "total": total, "failed": workspace.failed}
