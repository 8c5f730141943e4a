"""``ess train``: trains a run, from its first step or from a checkpoint."""

import logging
import os
from pathlib import Path
from typing import Any

import click

from cli.commands import command
from cli.display import say, shell
from cli.ess.training.settings import setting_options
from cli.options import image_root_option, path_argument, path_option
from cocolvis.disk.files import is_absent
from cocolvis.errors import DataError
from ess.config import Config, changed, load, variant

_SEARCH = {"k", "negatives", "search", "query_stride"}
"""The settings that only the k-NN loss uses."""

_NEAREST = {"search", "query_stride"}
"""The settings that only negatives use that are searched for."""

_EMBEDDINGS = {"dim", "normalize", "temperature", "distance", "margin", "embedding_power", "embedding_momentum"}
"""The settings that only losses of embeddings use, the k-NN and the exact one."""


def what_is_kept(given: dict[str, Any]) -> str:
    """The message after Ctrl-C: what --out contains, and how to continue."""
    if not os.path.exists(given["out"] / "run.json"):
        if given["cache_features"]:
            return "no step was finished yet, but the features stored so far are kept: continue with the same command"
        return "no step was finished yet; run the same command to start over"
    return "the last checkpoint is kept: continue with --resume"


@command(interrupted=what_is_kept)
@path_argument("data")
@path_option("--out", required=True, help="Folder of the run.")
@click.option("--preset", metavar="NAME[+VARIANT...]", help="Preset to start from; see `ess preset`.")
@path_option("--config", "config_file", help="TOML file of settings, which override the preset.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue from the newest checkpoint in --out. Without --preset and --config, no other flag needs to be repeated; with"
    " one of them, repeat all.",
)
@click.option("--allow-other-data", is_flag=True, help="With --resume: continue even if the data set is another one.")
@path_option("--cache-features", help="Folder in which the features of a frozen encoder are stored, to compute them once.")
@image_root_option
@setting_options
def train(
    data: Path,
    out: Path,
    preset: str | None,
    config_file: Path | None,
    resume: bool,
    allow_other_data: bool,
    cache_features: Path | None,
    image_root: Path | None,
    **flags: Any,
) -> None:
    """Train a model on a data set that `cocolvis build` or `cocolvis import` wrote.

    Flags override --config, which overrides --preset, which overrides the defaults: an embedding
    model for COCO+LVIS.

    \b
    Example:
      ess train ~/cocolvis --out run --preset coco-lvis --batch-size 8
    """
    if allow_other_data and not resume:
        raise click.UsageError("--allow-other-data is used with --resume")
    given = {name: value for name, value in flags.items() if value is not None}
    started = resume and not is_absent(out / "run.json")
    recorded = started and preset is None and config_file is None
    config = _resumed(out, given) if recorded else load(preset, config_file, given)
    from cocolvis.storage.dataset import Dataset
    from ess.training.loop import train as run

    logging.getLogger("ess").setLevel(logging.INFO if _is_first_process() else logging.CRITICAL)
    dataset = Dataset.open(data, image_root)
    _check_effects(given, preset, config, len(dataset.vocabulary))
    run(dataset, out, config, resume=resume, allow_other_data=allow_other_data, cache_features=cache_features)
    if _is_first_process():
        say(f"The run is in {out}; evaluate it with {shell('ess', 'eval', out, data)}.")


def _resumed(out: Path, given: dict[str, Any]) -> Config:
    """The settings of a run, changed by the given flags."""
    from ess.checkpoint import Run

    return changed(Run.open(out).config, given)


def _check_effects(given: dict[str, Any], preset: str | None, config: Config, classes: int) -> None:
    """Raise DataError if a flag, or everything that a variant of the preset sets, has no effect with the other settings."""
    asked = {f"--{name.replace('_', '-')} {value}": {name} for name, value in given.items()}
    asked |= {f"the variant {name}": {*variant(name)} for name in (preset or "").split("+")[1:]}
    for what, settings in asked.items():
        if reason := _unused(settings, config, classes):
            raise DataError(f"{what} has no effect: {reason}, or leave it out")


def _unused(settings: set[str], config: Config, classes: int) -> str:
    """Why a training uses none of these settings, and what would; "" if it uses one."""
    from ess.losses.cross_entropy import chosen, named

    loss = chosen(config.loss, classes)
    if settings <= (set() if loss == "knn" else _SEARCH if loss == "exact" else _SEARCH | _EMBEDDINGS):
        other = "exact or knn" if settings <= _EMBEDDINGS else "knn"
        return f"loss is {named(config.loss, classes)}; choose --loss {other}"
    if config.negatives == "random" and settings <= _NEAREST:
        return "negatives is 'random', which are not searched for; choose --negatives nearest"
    if config.arch != "deeplabv3plus" and settings == {"output_stride"}:
        return f"arch is {config.arch!r}, whose encoder has one output stride; choose --arch deeplabv3plus"
    if settings == {"eval_limit"} and config.eval_every is None:
        return "eval_every is none, so that nothing is evaluated; choose --eval-every epoch"
    if settings == {"dropout"} and not _drops(config, classes):
        return f"arch is {config.arch!r}, whose decoder has no dropout; choose --arch deeplabv3plus"
    return ""


def _drops(config: Config, classes: int) -> bool:
    """Whether the decoder has dropout."""
    import torch

    from ess.models.build import model_from_config
    from ess.training.objective import dropouts

    with torch.device("meta"):
        return bool(dropouts(model_from_config(config, classes, weights=None)))


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"
