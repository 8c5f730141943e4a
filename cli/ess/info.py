"""``ess info``: the settings and checkpoints of a run."""

from pathlib import Path
from typing import Any

from cli.commands import UNCHANGED, command
from cli.display import print_json, print_table, say
from cli.options import json_option, path_argument
from ess.config import Config


@command(interrupted=UNCHANGED)
@path_argument("run")
@json_option
def info(run: Path, as_json: bool) -> None:
    """Describe a run: its model, the settings that differ from the defaults, and its checkpoints with their scores.

    \b
    Example:
      ess info run
    """
    from ess.checkpoint import Run
    from ess.inference.calibration import read_calibration
    from ess.losses.cross_entropy import chosen

    opened = Run.open(run)
    calibration = read_calibration(opened)
    settings, defaults = opened.config.to_json(), Config().to_json()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    found, best = opened.listed(), opened.best()
    if as_json:
        checkpoints = [{"step": c.step, "scores": c.scores, "best": c == best, "temperature": c.temperature} for c in found]
        names = {"run": str(run), "classes": len(opened.vocabulary), "steps": found[-1].step if found else 0}
        names |= {"settings": settings, "changed": changed, "checkpoints": checkpoints}
        print_json(names | {"calibration": calibration and {"tau": calibration.tau, "step": calibration.step}})
        return
    classes = len(opened.vocabulary)
    say(f"{settings['arch']} with {settings['encoder']}, loss {chosen(settings['loss'], classes)}, {classes} classes")
    say()
    print_table(("setting", "value", "default"), [(n, str(value), str(defaults[n])) for n, value in changed.items()])
    say()
    learnt = settings["temperature"] == "learnt"
    rows = [(c.step, _miou(c.scores), *[f"{c.temperature or 0:.2f}"] * learnt, "best" if c == best else "") for c in found]
    print_table(("checkpoint", "mIoU", *["temperature"] * learnt, ""), rows)
    if calibration is not None:
        say()
        say(f"calibrated with tau {calibration.tau:g} for checkpoint {calibration.step}")


def _miou(scores: dict[str, Any] | None) -> str:
    miou = (scores or {}).get("miou")
    return "" if miou is None else f"{miou:.4f}"
