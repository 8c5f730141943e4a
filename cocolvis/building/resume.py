"""Continues an unfinished build: checks that it is the same build, and decides which of its finished shards are kept."""

from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from cocolvis.building.lost_images import Reports, incomplete, reasons_to_refuse
from cocolvis.building.shard_plan import Match, ShardPlan
from cocolvis.building.state import OVERWRITE, BuildState, made_by, refuse_other_version
from cocolvis.disk import reading
from cocolvis.disk.files import regular_file
from cocolvis.errors import DataError
from cocolvis.masks.merge import MASK_RULE
from cocolvis.progress import Announce, Phase, count_bytes, ignore
from cocolvis.storage.index import VERSION
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.text import first_few

SHOWN = 5
"""How many shards a message names."""


def check(state: BuildState, plan: ShardPlan) -> bool:
    """Whether input files were repaired since the build was begun; raises DataError if continuing would mix two builds."""
    has_shards = state.shards.exists() and any(state.shards.glob("*.h5"))  # before plan.json: another part may write both now
    if not state.is_begun():
        if has_shards:
            advice = "choose another folder, or replace it with --overwrite"
            raise DataError(f"{state.out}: holds shards of an unknown build; {advice}")
        return False
    state.check_maker()
    reports = state.reports()
    unsettled = {*state.record["shards"]} - {*reports} | {*incomplete(reports)}
    begun, files = state.record["description"], state.files_record()
    match = plan.compare(begun, files, unsettled)
    if match is Match.OTHER:
        same_otherwise = plan.compare({**begun, "instances": True}, files, unsettled) is not Match.OTHER
        how = "by a version of cocolvis that does not record instances" if same_otherwise else "with other inputs or options"
        raise DataError(f"{state.out}: was begun {how}; resume with the same, or replace it with --overwrite")
    state.check_shards(plan)
    state.is_this_build = True
    return match is Match.REPAIRED


def begin(state: BuildState, plan: ShardPlan) -> None:
    """Record what is being built unless that was done before; raises DataError if another part has just begun another build."""
    if not state.is_this_build and not state.create(plan):
        check(state, plan)
    if state.files_record() is None:  # after plan.json, so that parts that begin together record the files of one plan
        state.write_files_record(plan)


def finished(state: BuildState, names: Collection[str], phase: Phase = ignore) -> dict[str, dict[str, Any]]:
    """Shard name -> report, for those of the named shards that have a report and the file that it is about, undamaged.

    ``phase`` is called with the bytes of these files that have been read. Raises DataError if reports belong to another build
    or to another version of cocolvis.
    """
    if not state.is_begun():
        return {}
    reports = {name: report for name in names if (report := state.report(name)) is not None}
    size = sum(report["bytes"] for report in reports.values())
    count = count_bytes(partial(phase, "checking finished shards"), size) if reports else ignore
    whole = {name: report for name, report in reports.items() if _is_whole(state.shard(name), report, count)}
    for maker, shards in Counter(map(made_by, whole.values())).items():
        if maker != (MASK_RULE, VERSION):
            refuse_other_version(state.out, f"{shards} of {len(names)} shards were built", maker)
    others = [name for name, report in whole.items() if report["build"] != state.made_from(name)]
    if others:
        reason = f"{len(others)} of {len(names)} shards were built from other inputs or options: {first_few(others, SHOWN)}"
        raise DataError(f"{state.out}: {reason}; {OVERWRITE}")
    return whole


def keep_finished(
    state: BuildState,
    plan: ShardPlan,
    names: Collection[str],
    phase: Phase,
    announce: Announce,
    *,
    repaired: bool,
    part: bool,
    strict: bool,
) -> dict[str, dict[str, Any]]:
    """The reports of those named shards that are kept; finished shards that must be built again are announced and marked.

    ``repaired`` is the result of :func:`check`. All shards that lack images are built again after a repair, by a ``part``,
    which cannot know what other parts lacked before, and with ``strict``. Unless ``strict``, none is if images may be missing.
    """
    reports = finished(state, names, phase)
    again = _to_build_again(state, reports, repaired or part or strict)
    state.build_again(again, reports)
    if repaired:  # after the marks, so that a process that is stopped in between leaves the repair to be found again
        state.write_files_record(plan)
    if reading.missing_allowed() and not strict:
        return reports
    if again:
        announce(f"{len(again)} of the finished shards lack images; they are built again")
    return {name: report for name, report in reports.items() if name not in again}


def _to_build_again(state: BuildState, reports: Reports, all_lacking: bool) -> list[str]:
    """The finished shards that lack images, if this is wanted or too many images are missing to finish the build.

    Damaged shards are counted as well. Otherwise, only the shards that an earlier process has marked.
    """
    lacking = incomplete(reports)
    if all_lacking or not reports or reasons_to_refuse(state.planned(), {**state.reports(), **reports}, {}):
        return lacking
    return [name for name in lacking if reports[name].get("again")]


def _is_whole(path: Path, report: dict[str, Any], count: Callable[[int], None]) -> bool:
    """Whether a shard has the size and checksum of its report and intact images; ``count`` gets its bytes at the end."""
    try:
        if report["bytes"] != regular_file(path).st_size:
            return False
        shard = ShardReader(path)
        images = enumerate(shard.digests())
        return shard.checksum() == report["checksum"] and all(shard.digest(row) == found.tobytes() for row, found in images)
    except DataError:
        return False
    finally:
        count(report["bytes"])
