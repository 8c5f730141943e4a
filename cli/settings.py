"""An option of `ess train` for every setting of a run."""

from dataclasses import fields
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

import click

from ess.config import Config

HELP = {
    "arch": "Decoder; `ess models` lists the pairs that work.",
    "encoder": "Encoder, by its timm name.",
    "weights": "Encoder weights: imagenet, none, or a safetensors file.",
    "output_stride": "Output stride of the encoder.",
    "norm": "Normalisation in ASPP and decoder.",
    "encoder_bn_momentum": "BatchNorm momentum of the encoder; 0.1 when it is trained from scratch.",
    "freeze_bn": "Leave the encoder's BatchNorm as it is.",
    "dropout": "Probability of dropout in the decoder.",
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
    "class_crop": "Share of crops around a pixel of a class of the image, rare ones first; 0 = off.",
    "logit_adjustment": "tau of logit adjustment, where the loss is exact; 0 = off.",
    "class_weight_power": "Classes weigh pixels ** -power, where the loss is exact; 0 = off.",
    "federated": "Leave out LVIS classes that nobody looked for in an image, where the loss is exact.",
    "steps": "Training steps, instead of --epochs.",
    "epochs": "Training epochs, instead of --steps.",
    "batch_size": "Images a step, of all processes together.",
    "accumulate": "Parts in which a process has its share of a batch pass.",
    "optimizer": "SGD as published, or AdamW.",
    "lr": "Learning rate of the decoder and the class embeddings.",
    "encoder_lr": "Learning rate of the encoder, as a multiple of --lr; 0 leaves it exactly as it is.",
    "power": "Power of the polynomial schedule.",
    "embedding_power": "The same for the class embeddings.",
    "min_lr": "The schedule never falls below this, and raises no rate that is lower.",
    "warmup": "Steps over which the learning rate rises first.",
    "momentum": "Momentum of SGD, first beta of AdamW.",
    "embedding_momentum": "The same for the class embeddings.",
    "weight_decay": "Weight decay.",
    "ema": "Decay of averaged weights, which are then evaluated and kept; 0 = off.",
    "crop": "Side of the training crops in pixels.",
    "scale_min": "Smallest random scale.",
    "scale_max": "Largest random scale.",
    "flip": "Probability of mirroring.",
    "color_jitter": "Brightness, contrast and saturation change by up to this share; 0 = off.",
    "seed": "Decides weights, batches and augmentations.",
    "device": "auto, cpu, cuda, cuda:1, mps.",
    "precision": "Of the network's arithmetic.",
    "channels_last": "Keep channels last in memory, which many GPUs prefer.",
    "compile": "Compile the network with torch.compile.",
    "workers": "Loader processes; 0 loads in the training process.",
    "start_method": "How loader processes start.",
    "skip_damaged": "Pass over images that cannot be read, and tell which; otherwise the first one ends the training.",
    "track": "Where curves go: tensorboard, wandb, ... with commas between, or none.",
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
        kinds = get_args(hints[field.name]) if get_origin(hints[field.name]) in (Union, UnionType) else (hints[field.name],)
        name, kind = field.name.replace("_", "-"), kinds[0]
        help = HELP[field.name] + ("" if field.default in (None, False) else f"  [default: {field.default}]")
        if kind is bool:
            command = click.option(f"--{name}/--no-{name}", field.name, default=None, help=help)(command)
            continue
        if get_origin(kind) is Literal:
            values = get_args(kind)
            kind = _Integers(values) if isinstance(values[0], int) else click.Choice(values)
        command = click.option(f"--{name}", field.name, type=kind, default=None, help=help)(command)
    return command


class _Integers(click.Choice):
    """A choice between numbers, handed on as int."""

    def convert(self, value, param, ctx) -> int:
        return int(super().convert(str(value), param, ctx))

    def __init__(self, values):
        super().__init__([str(value) for value in values])
