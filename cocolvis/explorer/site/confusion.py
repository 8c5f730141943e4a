"""The page of the confusions of a run."""

from cocolvis.explorer.catalog import Catalog
from cocolvis.explorer.site.address import Query
from cocolvis.explorer.site.common import View, chosen_run, class_named, ready, short
from cocolvis.explorer.workspace import Run, Workspace
from cocolvis.vocabulary import ClassInfo

LISTED = 50
"""Confusions in the list of the largest ones."""

MATRIX = 16
"""Classes in the matrix of a confusion."""


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
