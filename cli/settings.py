"""An option of `ess train` for every setting of a run."""

from dataclasses import fields
from types import UnionType
from typing import Literal, get_args, get_origin, get_type_hints

import click

from ess.config import Config

HELP = {
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


def setting_options(command):
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
        command = click.option(name, field.name, type=kind, default=None, help=HELP[field.name] + default)(command)
    return command


class _Integers(click.Choice):
    """A choice between numbers, handed on as int."""

    def convert(self, value, param, ctx) -> int:
        return int(super().convert(str(value), param, ctx))

    def __init__(self, values):
        super().__init__([str(value) for value in values])
