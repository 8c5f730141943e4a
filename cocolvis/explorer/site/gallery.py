"""The page of the pictures that show certain classes, or in which a run takes one class for another."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cocolvis.errors import DataError
from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.site.address import Query
from cocolvis.explorer.site.common import ALL, View, chosen_run, class_named, ready, short
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.vocabulary import ClassInfo

if TYPE_CHECKING:
    import numpy as np

PAGE = 48
"""Thumbnails on a page."""

ORDERS = ("id", "area", "smallest", "worst", "best")
"""How pictures are sorted; all except the first need classes or a run."""


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
        "runs": [name for name, one in workspace.runs.items() if not confused or _knows(one, confused[1])],
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


def _knows(run: Run, info: ClassInfo) -> bool:
    """Whether a run can predict a class, which may have been added to another run."""
    return any(c.name == info.name for c in run.vocabulary)


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
