"""Whether a build may become a data set, and which finished shards are read again because they lack images."""

from collections.abc import Callable

from cocolvis.building.base import ShardPlan
from cocolvis.building.lost_images import Reports, losses, lossy
from cocolvis.building.state import BuildState
from cocolvis.disk import reading
from cocolvis.errors import DataError


def to_read_again(
    plan: ShardPlan, state: BuildState, reports: Reports, found: bool, announce: Callable[[str], None]
) -> list[str]:
    """Finished shards that lack images, where files were ``found`` again, or no data set could be made of so few images.

    In parts, what the others have finished counts too.
    """
    if reading.missing_allowed():
        return []
    spoilt = lossy(reports)
    if reports and not found and not losses(state.planned(), {**state.noted(), **reports}, {}):
        spoilt = [name for name in spoilt if reports[name].get("again")]
    if spoilt:
        announce(f"{len(spoilt)} of the finished shards lack images that could not be read: these are built again")
        state.mark(spoilt, reports)
    if found:
        state.note_files(plan)
    return spoilt


def refuse(state: BuildState, reports: Reports, advice: str) -> None:
    """A DataError where a split lost too much in the shards of a build that are all finished, unless that is allowed.

    Those that lack images are marked then, to be built again.
    """
    found = [] if reading.missing_allowed() else losses(state.planned(), reports, state.plan.get("unusable", {}))
    if found:
        state.mark(lossy(reports), reports)
        raise DataError(f"{state.out}: {', and '.join(found)}; finished shards are kept: {advice}")
