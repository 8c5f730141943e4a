"""``ess calibrate``: predictions that favour rare classes as much as raises the mIoU, without training."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import command
from cli.display import print_json, progress, say, shell
from cli.options import PATH, image_root_option, json_option
from cli.run_options import Numbers, checkpoint_option, device_option, run_argument

if TYPE_CHECKING:
    from ess.inference.calibration import Calibration

_KEPT = "the run is unchanged, and the pixels counted so far are kept: run the same command to continue"


@command(interrupted=_KEPT)
@run_argument
@click.argument("data", type=PATH, required=False)
@click.option("--taus", type=Numbers(float), help="Values of tau to try: N[,N...].  [default: 0,0.05,...,1.5]")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most N images of the random quarter of train.")
@click.option("--skip-damaged", is_flag=True, help="Leave out damaged images, and report them.")
@click.option("--clear", is_flag=True, help="Remove the calibration of the run.")
@checkpoint_option
@device_option
@image_root_option
@json_option
def calibrate(
    run: Path,
    data: Path | None,
    taus: tuple[float, ...] | None,
    limit: int | None,
    skip_damaged: bool,
    clear: bool,
    checkpoint: str,
    device: str,
    image_root: Path | None,
    as_json: bool,
) -> None:
    """Calibrate the predictions of a run for the long tail of classes, without training.

    Logit adjustment subtracts tau * log prior from the logit of each class. Of several values of tau, the one with the best
    mIoU on pixels of training images is stored in the run, and predictions use it from then on.

    \b
    Example:
      ess calibrate run ~/cocolvis
    """
    if clear == (data is not None):
        raise click.UsageError("expected one of: RUN DATA; RUN --clear")
    if data is None:
        if taus or limit or skip_damaged or image_root:
            raise click.UsageError("--clear is used without --taus, --limit, --skip-damaged and --image-root")
        _clear(run, as_json)
        return
    found = _calibrate(run, data, image_root, taus, limit, skip_damaged, checkpoint, device)
    if as_json:
        print_json(_as_json(found))
    else:
        _print_choice(run, found)


def _clear(run: Path, as_json: bool) -> None:
    """Remove the calibration, and the counts of an unfinished one."""
    from ess.checkpoint import Run
    from ess.evaluation.calibrate import COUNTS
    from ess.inference.calibration import FILE, clear_calibration

    had_one = clear_calibration(Run.open(run), (FILE, COUNTS))
    if as_json:
        print_json({"cleared": had_one})
        return
    say(f"{run}: {'predictions are no longer calibrated' if had_one else 'has no calibration'}")


def _calibrate(
    run: Path,
    data: Path,
    image_root: Path | None,
    taus: tuple[float, ...] | None,
    limit: int | None,
    skip_damaged: bool,
    checkpoint: str,
    device: str,
) -> "Calibration":
    from cocolvis.errors import DamagedImage
    from cocolvis.storage.dataset import Dataset
    from ess.checkpoint import Run
    from ess.evaluation import calibrate as calibrating
    from ess.inference.predictor import Predictor

    dataset, damaged = Dataset.open(data, image_root), list[DamagedImage]()
    with progress("calibrate") as show:
        found = calibrating.calibrate(
            Run.open(run),
            Predictor.from_run(run, device, checkpoint),
            dataset,
            taus=taus or calibrating.TAUS,
            limit=limit,
            damaged=damaged if skip_damaged else None,
            progress=show,
        )
    for fault in damaged:
        say(f"skipped a damaged image: {fault}", err=True)
    return found


def _as_json(found: "Calibration") -> dict:
    trials = [{"tau": trial.tau, "miou": trial.miou} for trial in found.trials]
    chosen = {"tau": found.tau, "miou": found.miou(found.tau), "miou_before": found.miou(0.0)}
    return chosen | {"images": found.images, "pixels": found.pixels, "step": found.step, "trials": trials}


def _print_choice(run: Path, found: "Calibration") -> None:
    before, after = found.miou(0.0), found.miou(found.tau)
    what = f"the mIoU of {found.pixels:,} pixels sampled from {found.images:,} training images"
    best = f"tau {found.tau:g} is the best of {len(found.trials)} values"
    if not found.tau:
        say(f"{best}: {what} is {before:.4f}. Predictions stay as they are.")
        return
    say(f"{best}: it raises {what}, from {before:.4f} to {after:.4f}.")
    if found.tau in (found.trials[0].tau, found.trials[-1].tau):
        say("It is the smallest or largest value that was tried; try more with --taus.")
    undo = shell("ess", "calibrate", run, "--clear")
    say(f"Predictions of checkpoint step-{found.step:08d} use it from now on; undo this with {undo}.")
