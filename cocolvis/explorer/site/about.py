"""The page about the data set itself, and what is being prepared."""

from cocolvis.explorer.site.address import Query
from cocolvis.explorer.site.common import View, ready
from cocolvis.explorer.workspace import Run, Workspace


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
        "instances": bool(index.get("instances")),
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


def preparing(workspace: Workspace, run: Run | None) -> View:
    """What is being prepared: a text, the amount done and the total; ``failed`` is the reason if it ended early.

    "ready" tells whether pages that show the ``run``, or none, can be shown.
    """
    text, done, total = workspace.doing
    ready_now = workspace.is_ready(run)
    name = run.name if run else None
    return {"run": name, "ready": ready_now, "text": text, "done": done, "total": total, "failed": workspace.failed}
