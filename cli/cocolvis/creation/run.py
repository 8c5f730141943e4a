"""Runs a build for ``cocolvis build`` and ``cocolvis import``, and prints what they report."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.cocolvis.inspection.summary import print_summary
from cli.display import Progress, print_json, progress, say, shell
from cocolvis.limits import cores

if TYPE_CHECKING:
    from cocolvis.building.shard_plan import ShardPlan


def what_is_kept(given: dict[str, Any]) -> str:
    """The message after Ctrl-C: what --out contains, and how to continue.

    ``given`` are the parameters of the command, and "before", the records in --out that :func:`run_build` found.
    """
    out = given["out"]
    if os.path.exists(out / "dataset.json"):
        return f"the data set in {out} is unchanged"
    index, plan = given.get("before", (None, None))
    if given["overwrite"] and (index or plan) and _identity(out / ".build/plan.json") in (None, plan):
        return f"the new build was not begun, and what it replaces in {out} may be gone in part: run the same command again"
    if not os.path.exists(out / ".build"):
        return f"nothing was written to {out} yet"
    same = "the same command" if given["part"] else "--resume instead of --overwrite" if given["overwrite"] else "--resume"
    return f"finished shards are kept: continue with {same}"


def _identity(path: Path) -> tuple[int, int] | None:
    """The inode of a file and the time of its last change; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def run_build(
    label: str,
    make_plan: "Callable[[Progress], ShardPlan]",
    out: Path,
    *,
    workers: int | None,
    scheduler: str | None,
    part: tuple[int, int] | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **how: Any,
) -> None:
    """Run a build with the given options and print a summary; options that contradict each other are wrong usage.

    ``make_plan`` gets the progress display, to report what it reads.
    """
    from cocolvis.building.build import Build, Mode, Part
    from cocolvis.storage.dataset import Dataset

    if scheduler == "":
        raise click.UsageError("--scheduler is empty; expected tcp://HOST:PORT")
    if scheduler and workers:
        raise click.UsageError("--workers and --scheduler exclude each other: the cluster has its own workers")
    if part and (overwrite or scheduler):
        raise click.UsageError("--shard cannot be combined with --overwrite or --scheduler")
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    mode = Part(*part) if part else Mode.OVERWRITE if overwrite else Mode.RESUME if resume else Mode.FRESH
    how |= {"mode": mode, "workers": scheduler or workers or min(cores(), 8)}
    click.get_current_context().params["before"] = _identity(out / "dataset.json"), _identity(out / ".build/plan.json")
    with progress(label) as show:
        index = Build(progress=show, announce=show.line, phase=show.phase, **how).run(lambda: make_plan(show), out)
    if index is None and part:
        _print_part(out, *part, as_json)
    elif part and not as_json:
        say(f"the data set in {out} is already complete; there is nothing left to build or to join")
    else:
        print_summary(Dataset.open(out), as_json)
        if not as_json:
            say()
            stats, show_one = shell("cocolvis", "stats", out), shell("cocolvis", "show", out, "IMAGE_ID")
            say(f"The data set is in {out}; look at it with {stats} and {show_one}.")


def _print_part(out: Path, number: int, count: int, as_json: bool) -> None:
    """Say that a part is built, and what completes the data set."""
    if as_json:
        print_json({"part": number, "parts": count, "out": str(out)})
    else:
        join = shell("cocolvis", "join", out)
        say(f"part {number} of {count} is built; once all parts are, complete the data set with {join}")
