"""``ess compare``: the differences between two runs on the same pictures."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, say
from cli.ess.evaluation.predicting import predicted, split_options
from cli.options import image_root_option, json_option, path_argument
from cocolvis.errors import DataError

if TYPE_CHECKING:
    from cocolvis.vocabulary import Vocabulary
    from ess.evaluation.bootstrap import Interval
    from ess.evaluation.compare import ClassChange, Comparison, GroupChange


@command(interrupted=UNCHANGED)
@path_argument("baseline")
@path_argument("run")
@path_argument("data")
@click.option(
    "--top", default=10, show_default=True, type=click.IntRange(min=0), help="Classes to list: those that changed most."
)
@click.option("--resamples", default=1000, show_default=True, type=click.IntRange(min=100), help="Draws of the bootstrap.")
@split_options
@image_root_option
@json_option
def compare(
    baseline: Path, run: Path, data: Path, image_root: Path | None, top: int, resamples: int, as_json: bool, **how: Any
) -> None:
    """Compare a run with a baseline, another run: differences of mIoU and of classes, with 95 % intervals.

    Both predict the same pictures. The intervals come from a paired bootstrap over pictures.

    \b
    Example:
      ess compare baseline run ~/cocolvis
    """
    from cocolvis.storage.dataset import Dataset
    from ess.checkpoint import Run
    from ess.evaluation.compare import compare
    from ess.evaluation.evaluate import check_vocabulary, count_pictures, scores_of

    dataset, counts, skipped = Dataset.open(data, image_root), [], 0
    for opened in map(Run.open, (baseline, run)):
        check_vocabulary(opened.vocabulary, dataset)
        opened.candidates(how["checkpoint"])
    for folder, label in ((baseline, "baseline"), (run, "run")):
        with predicted(folder, dataset, label, **how) as found:
            counts.append(count_pictures(found.images, len(dataset.vocabulary)))
        skipped = scores_of(counts[-1].total(), dataset, damaged=found.damaged)["skipped"]
    if counts[0].ids.tolist() != counts[1].ids.tolist():
        raise DataError(f"{data}: other images were damaged for the second run than for the first; run the command again")
    compared = compare(counts[0], counts[1], dataset.vocabulary, most=top, resamples=resamples)
    if as_json:
        about = {"baseline": str(baseline), "run": str(run), "split": how["split"], "skipped": skipped, "resamples": resamples}
        print_json(about | compared.to_json(dataset.vocabulary))
    else:
        _print(compared, dataset.vocabulary, how["split"], skipped)


def _print(compared: "Comparison", vocabulary: "Vocabulary", split: str, skipped: int) -> None:
    from ess.data.damage import describe_skipped

    numbers = ("baseline", "run", "difference", "95 % interval", "")
    print_table(("mIoU", *numbers), [(change.name, *_cells(change)) for change in compared.groups])
    if compared.classes:
        say()
        rows = [(vocabulary.name(change.label + 1), change.pictures, *_cells(change)) for change in compared.classes]
        print_table(("IoU", "images", *numbers), rows)
    say()
    say(f"{compared.pictures} images of split {split}" + (f", {describe_skipped(skipped)}" if skipped else ""))


def _cells(change: "GroupChange | ClassChange") -> list[str]:
    """Both scores, their difference, its interval, and a word if that excludes 0."""
    if math.isnan(change.difference.value):
        return ["none"] * 3 + ["", ""]
    return [f"{change.baseline:.4f}", f"{change.run:.4f}", f"{change.difference.value:+.4f}", *_interval(change.difference)]


def _interval(difference: "Interval") -> tuple[str, str]:
    if math.isnan(difference.low):
        return "", ""
    verdict = ("better" if difference.low > 0 else "worse") if difference.excludes_zero else ""
    return f"{difference.low:+.4f} to {difference.high:+.4f}", verdict
