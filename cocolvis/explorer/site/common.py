"""What the pages share: their errors, and the run, classes and colours that a query or a page names.

A view takes the workspace and a checked query, and returns texts, numbers, lists and dictionaries: what a page shows and what
its JSON twin returns. It raises DataError if the query is wrong, NotFound if the page does not exist, and NotReady if what it
shows is still being prepared.
"""

from typing import Any

from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.site.address import Query
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.text import nfc
from cocolvis.vocabulary import ClassInfo

ALL = "all splits"

View = dict[str, Any]


class NotFound(Exception):
    """There is no such page."""


class NotReady(Exception):
    """What the page shows is still being prepared: the catalog, and the scores of ``run`` if one is given."""

    def __init__(self, run: Run | None = None):
        super().__init__()
        self.run = run


def ready(workspace: Workspace, run: Run | None = None) -> Catalog:
    """The catalog; raises NotReady as long as it, or the scores of a run, are missing."""
    if workspace.catalog is None or not workspace.is_ready(run):
        raise NotReady(run)
    return workspace.catalog


def chosen_run(workspace: Workspace, query: Query, *, needed: bool = False) -> Run | None:
    """The run that a query names, or the first one if one is ``needed``; raises NotFound without any."""
    name = query.text("run")
    if not name and not needed:
        return None
    if not workspace.runs:
        raise NotFound("no predictions were given; start the explorer with --predictions DIR")
    return workspace.runs[query.choice("run", [*workspace.runs])]


def class_named(workspace: Workspace, text: str, run: Run | None = None) -> ClassInfo:
    """The class that a query gives by name or by number; raises DataError with similar names if there is none."""
    vocabulary = run.vocabulary if run else workspace.vocabulary
    for c in vocabulary:
        if nfc(c.name) == nfc(text):
            return c
    if text.isascii() and text.isdigit() and len(text) < 10:
        return vocabulary[int(text)]
    return vocabulary[vocabulary.id_of(text)]


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
