"""The command ``ess``: train, evaluate and use embedding segmentation models."""

import logging
import sys
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin, get_type_hints

import click

from cli.options import Group, json_option, path_argument, path_option, print_json, print_table, progress
from ess.config import Config, load, preset_names

_HELP = {
    "arch": "Decoder; `ess models` lists the pairs that work.",
    "encoder": "Encoder, by its timm name.",
    "weights": "Encoder weights: imagenet, none, or a safetensors file.",
    "output_stride": "Output stride of the encoder.",
    "norm": "Normalisation in ASPP and decoder.",
    "encoder_bn_momentum": "BatchNorm momentum of the encoder; 0.1 when it is trained from scratch.",
    "dim": "d, the length of an embedding.",
    "normalize": "Where embeddings become unit vectors; quarter as published.",
    "loss": "The paper's k-NN loss, the exact softmax, the cheaper of these two, or the O(C) baseline.",
    "k": "Negatives of a pixel.",
    "temperature": "T, the factor of the logits.",
    "distance": "What the logits are made of.",
    "negatives": "Which classes are a pixel's negatives.",
    "search": "Who looks for the nearest classes; clustered misses a few.",
    "query_stride": "One pixel in so many searches, for all of its block.",
    "margin": "m of the margin penalty; 0 = off.",
    "repeat_threshold": "t of repeat-factor sampling: classes in fewer images than this share are seen more often; 0 = off.",
    "logit_adjustment": "tau of logit adjustment, for --loss exact; 0 = off.",
    "class_weight_power": "Classes weigh pixels ** -power, for --loss exact; 0 = off.",
    "steps": "Training steps, instead of --epochs.",
    "epochs": "Training epochs, instead of --steps.",
    "batch_size": "Images a step.",
    "lr": "Learning rate of the decoder and the class embeddings.",
    "encoder_lr": "Learning rate of the encoder, as a multiple of --lr.",
    "power": "Power of the polynomial schedule.",
    "embedding_power": "The same for the class embeddings.",
    "min_lr": "The schedule never falls below this.",
    "momentum": "Momentum of SGD.",
    "embedding_momentum": "The same for the class embeddings.",
    "weight_decay": "Weight decay of SGD.",
    "crop": "Side of the training crops in pixels.",
    "scale_min": "Smallest random scale.",
    "scale_max": "Largest random scale.",
    "flip": "Probability of mirroring.",
    "seed": "Decides weights, batches and augmentations.",
    "device": "auto, cpu, cuda, cuda:1, mps.",
    "workers": "Loader processes; 0 loads in the training process.",
    "start_method": "How loader processes start.",
    "log_every": "Steps between two console lines.",
    "eval_every": "Steps between two evaluations on val.",
    "eval_limit": "Images in such an evaluation.",
    "save_every": "Steps between two checkpoints.",
    "keep": "So many of the newest checkpoints are kept, and the best.",
}


def _setting_options(command):
    """An option for every setting of :class:`ess.config.Config`; one that is not given is None."""
    hints = get_type_hints(Config)
    for field in reversed(fields(Config)):
        kinds = get_args(hints[field.name]) if isinstance(hints[field.name], UnionType) else (hints[field.name],)
        kind = kinds[0]
        if get_origin(kind) is Literal:
            values = get_args(kind)
            kind = _Integers(values) if isinstance(values[0], int) else click.Choice(values)
        default = "" if field.default is None else f"  [default: {field.default}]"
        name = "--" + field.name.replace("_", "-")
        command = click.option(name, field.name, type=kind, default=None, help=_HELP[field.name] + default)(command)
    return command


class _Integers(click.Choice):
    """A choice between numbers, handed on as int."""

    def convert(self, value, param, ctx) -> int:
        return int(super().convert(str(value), param, ctx))

    def __init__(self, values):
        super().__init__([str(value) for value in values])


_run = path_argument("run")
_data = path_argument("data")
_device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
_checkpoint = click.option(
    "--checkpoint", default="newest", show_default=True, type=click.Choice(["newest", "best"]), help="Best by mIoU on val."
)
_image_root = path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="ess")
def main() -> None:
    """Train embedding segmentation models with more than a thousand classes on one GPU."""


@main.command()
@_data
@path_option("--out", required=True, help="Folder of the run.")
@click.option("--preset", type=click.Choice(preset_names()), help="Shipped settings to start from; see `ess preset`.")
@path_option("--config", "config_file", help="TOML file of settings, stronger than the preset.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out; other flags need not be repeated.")
@_image_root
@_setting_options
def train(data, out, preset, config_file, resume, image_root, **flags) -> None:
    """Train a model on a data set that `cocolvis build` wrote.

    A flag wins over --config, that over --preset, that over the defaults, which are the paper's COCO+LVIS run.

    \b
    Example:
      ess train ~/cocolvis --out run --preset coco-lvis --batch-size 8
    """
    given = {name: value for name, value in flags.items() if value is not None}
    begun = resume and (out / "run.json").exists()
    config = _resumed(out, given) if begun and not (preset or config_file) else load(preset, config_file, given)
    from cocolvis.dataset import Dataset
    from ess.train import train as run

    _log_to_stderr()
    dataset = Dataset.open(data, image_root)
    run(dataset, out, config, resume=resume)
    click.echo(f"The run lies in {out}; evaluate it with `ess eval {out} {data}`.")


def _resumed(out: Path, given: dict) -> Config:
    """The settings of a run with those that flags change."""
    from ess.checkpoint import Run

    settings = Run.open(out).config.to_json()
    if "steps" in given or "epochs" in given:
        settings |= {"steps": None, "epochs": None}
    return Config(**settings | given)


@main.command(name="eval")
@_run
@_data
@click.option("--split", default="val", show_default=True, help="Split to evaluate on.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N images.")
@click.option("--published", is_flag=True, help="Average the IoU as the published code does: absent but predicted counts 0.")
@_checkpoint
@_device
@_image_root
@json_option
def evaluate(run, data, split, limit, published, checkpoint, device, image_root, as_json) -> None:
    """Score a run: mIoU, accuracies and mIoU by frequency group, over classes that occur in the truth.

    \b
    Example:
      ess eval run ~/cocolvis --split val
    """
    from cocolvis.dataset import Dataset
    from ess.evaluate import evaluate as score
    from ess.predict import Predictor

    dataset = Dataset.open(data, image_root)
    with progress("eval") as show:
        predictor = Predictor.from_run(run, device, checkpoint)
        scores = score(predictor, dataset, split=split, limit=limit, published=published, progress=show)
    if as_json:
        print_json(scores)
        return
    groups = {f"mIoU, {name}": value for name, value in scores["groups"].items()}
    named = {"mIoU": "miou", "pixel accuracy": "pixel_accuracy", "mean accuracy": "mean_accuracy", "fw IoU": "fw_iou"}
    rows = {name: scores[key] for name, key in named.items()} | groups
    print_table(("score", "value"), [(name, "none" if value is None else f"{value:.4f}") for name, value in rows.items()])
    click.echo(f"\n{scores['images']} images of split {split}")


@main.command()
@_run
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE...")
@path_option("--out", required=True, help="Folder for the PNGs.")
@_checkpoint
@_device
def predict(run, images, out, checkpoint, device) -> None:
    """Segment pictures of any size: NAME.png holds 16-bit class ids, NAME_overlay.png shows them with their names.

    \b
    Example:
      ess predict run photo.jpg --out predictions
    """
    from ess.predict import Predictor, predict_files

    with progress("predict") as show:
        predict_files(Predictor.from_run(run, device, checkpoint), images, out, progress=show)
    click.echo(f"The predictions lie in {out}.")


@main.command()
@click.option("--arch", help="Only the encoders of this decoder.")
@json_option
def models(arch, as_json) -> None:
    """List the pairs of decoder and encoder that work.

    \b
    Example:
      ess models --arch deeplabv3plus
    """
    from ess.models import encoders_of, pairs

    found = pairs() if arch is None else [(arch, encoder) for encoder in encoders_of(arch)]
    if as_json:
        print_json({"pairs": [{"arch": a, "encoder": e} for a, e in found]})
        return
    print_table(("arch", "encoder"), found)


@main.command()
@click.argument("name", required=False)
@json_option
def preset(name, as_json) -> None:
    """List the shipped presets, or print the settings that one of them puts in force.

    \b
    Example:
      ess preset coco-lvis
    """
    settings = {n: load(n).to_json() for n in ([name] if name else preset_names())}
    if as_json:
        print_json({"presets": settings})
    elif name:
        print_table(("setting", "value"), [(key, str(value)) for key, value in settings[name].items()])
    else:
        shown = ("arch", "encoder", "loss", "dim", "crop", "batch_size", "steps", "epochs")
        print_table(("preset", *shown), [(n, *(str(s[key]) for key in shown)) for n, s in settings.items()])


def _log_to_stderr() -> None:
    """Show the log of the training loop, and of nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log = logging.getLogger("ess")
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)


if __name__ == "__main__":
    main()
