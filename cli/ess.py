"""The command ``ess``: train embedding segmentation models; what uses them stands in the modules beside this one."""

import logging
import os
import sys

import click

from cli import model_commands, run_commands
from cli.display import print_json, print_table, say
from cli.options import UNCHANGED, Group, json_option, path_argument, path_option
from cli.settings import setting_options
from cocolvis.text import escaped
from ess.config import Config, load, preset_names, variant, variant_names


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="ess")
def main() -> None:
    """Train embedding segmentation models with more than a thousand classes on one GPU."""


def _what_is_kept(given: dict) -> str:
    """What is true of the folder of a training that was interrupted, and how to go on."""
    if not (given["out"] / "run.json").exists():
        return "no step was made yet; the same command begins again"
    return "the last checkpoint is kept: go on with --resume"


@main.command(interrupted=_what_is_kept)
@path_argument("data")
@path_option("--out", required=True, help="Folder of the run.")
@click.option("--preset", metavar="NAME[+VARIANT...]", help="Shipped settings to start from; see `ess preset`.")
@path_option("--config", "config_file", help="TOML file of settings, stronger than the preset.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; other flags need not be repeated.")
@click.option("--allow-other-data", is_flag=True, help="With --resume: go on although the run was begun on another data set.")
@path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")
@setting_options
def train(data, out, preset, config_file, resume, allow_other_data, image_root, **flags) -> None:
    """Train a model on a data set that `cocolvis build` wrote.

    A flag wins over --config, that over --preset, that over the defaults, which are the paper's COCO+LVIS run.

    \b
    Example:
      ess train ~/cocolvis --out run --preset coco-lvis --batch-size 8
    """
    given = {name: value for name, value in flags.items() if value is not None}
    begun = resume and (out / "run.json").exists()
    config = _resumed(out, given) if begun and not (preset or config_file) else load(preset, config_file, given)
    from cocolvis.storage.dataset import Dataset
    from ess.training.loop import train as run

    _log_to_stderr()
    dataset = Dataset.open(data, image_root)
    run(dataset, out, config, resume=resume, allow_other_data=allow_other_data)
    if _speaks():
        say(f"The run lies in {out}; evaluate it with `ess eval {out} {data}`.")


def _resumed(out, given: dict) -> Config:
    """The settings of a run with those that flags change."""
    from ess.checkpoint import Run

    settings = Run.open(out).config.to_json()
    if "steps" in given or "epochs" in given:
        settings |= {"steps": None, "epochs": None}
    return Config(**settings | given)


@main.command(interrupted=UNCHANGED)
@path_argument("run")
@json_option
def info(run, as_json) -> None:
    """Say what a run is: its model, the settings that differ from the defaults, and its checkpoints with their scores.

    \b
    Example:
      ess info run
    """
    from ess.checkpoint import Run

    opened = Run.open(run)
    settings, defaults = opened.config.to_json(), Config().to_json()
    changed = {name: value for name, value in settings.items() if value != defaults[name]}
    found, best = opened.listed(), opened.best()
    checkpoints = [{"step": c.step, "scores": c.scores, "best": c == best} for c in found]
    if as_json:
        names = {"run": str(run), "classes": len(opened.vocabulary), "steps": found[-1].step if found else 0}
        print_json(names | {"settings": settings, "changed": changed, "checkpoints": checkpoints})
        return
    say(f"{settings['arch']} with {settings['encoder']}, loss {settings['loss']}, {len(opened.vocabulary)} classes")
    say()
    print_table(("setting", "value", "default"), [(n, str(value), str(defaults[n])) for n, value in changed.items()])
    say()
    rows = [(c["step"], _miou(c["scores"]), "best" if c["best"] else "") for c in checkpoints]
    print_table(("checkpoint", "mIoU", ""), rows)


def _miou(scores: dict | None) -> str:
    return "" if scores is None or scores["miou"] is None else f"{scores['miou']:.4f}"


@main.command(interrupted=UNCHANGED)
@click.argument("name", required=False, metavar="[NAME[+VARIANT...]]")
@json_option
def preset(name, as_json) -> None:
    """List the shipped presets and variants, or print the settings that NAME with any variants puts in force.

    \b
    Example:
      ess preset coco-lvis+group-norm
    """
    settings = {n: load(n).to_json() for n in ([name] if name else preset_names())}
    if as_json:
        print_json({"presets": settings} | ({} if name else {"variants": {n: variant(n) for n in variant_names()}}))
    elif name:
        print_table(("setting", "value"), [(key, str(value)) for key, value in settings[name].items()])
    else:
        shown = ("arch", "encoder", "loss", "dim", "crop", "batch_size", "steps", "epochs")
        print_table(("preset", *shown), [(n, *(str(s[key]) for key in shown)) for n, s in settings.items()])
        changes = {n: ", ".join(f"{key} = {value}" for key, value in variant(n).items()) for n in variant_names()}
        say()
        print_table(("variant, as in coco-lvis+NAME", "changes"), list(changes.items()))


class _PlainLines(logging.Formatter):
    """Messages without what a terminal obeys: they name images and files."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


def _log_to_stderr() -> None:
    """Show the log of the training loop, and of nothing else; of several processes that of one."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PlainLines("%(message)s"))
    log = logging.getLogger("ess")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if _speaks() else logging.CRITICAL)


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


for command in (*run_commands.COMMANDS, *model_commands.COMMANDS):
    main.add_command(command)


if __name__ == "__main__":
    main()
