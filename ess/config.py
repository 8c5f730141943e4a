"""The settings of a training run: one frozen dataclass, filled from a preset, then from a TOML file, then from flags."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from cocolvis.disk.files import read_text
from cocolvis.errors import DataError
from cocolvis.text import did_you_mean
from ess.setting import NONE, Range, setting, settings_of

MOST_STEPS = 99_999_999
"""The most steps of a training: the names of checkpoints have this many digits."""

_COUNT = Range(1, MOST_STEPS)
_SHARE = Range(0, 1)
_DECAY = Range(0, 1, open="most")
_FACTOR = Range(0, 1000)
_RATE = Range(0, 1_000_000)
_SCALE = Range(0, 1000, open="least")
_IMAGES = Range(1, 1_048_576)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of ``ess train``; the defaults are the recommended run of an embedding model on COCO+LVIS.

    The type, range and description of each setting are given here alone: the checks of values, the flags of ``ess train`` and
    the table of settings in docs/ess.md are derived from them.
    """

    arch: str = setting("deeplabv3plus", "Decoder; `ess models` lists the encoders that it works with.")
    encoder: str = setting("resnet50.tv_in1k", "Encoder, by its timm name; a tag after the dot selects its weights.")
    weights: str = setting("imagenet", "Weights of the encoder: imagenet, none, or a safetensors or torch file.")
    output_stride: Literal[8, 16] = setting(16, "Output stride of the encoder.")
    features: str | None = setting(
        None,
        "Only with arch linear: the features that it reads, by their strides (8,16,32) or, for a plain vision transformer, by"
        " blocks counted from 1 (3,6,9,12); the default is 8,16,32, or the last block.",
    )
    norm: Literal["batch", "group"] = setting("batch", "Normalisation in ASPP and the decoder.")
    encoder_bn_momentum: float = setting(
        0.01, "Momentum of the encoder's BatchNorm: 0.01 as published, 0.1 for an encoder trained from scratch.", _SHARE
    )
    freeze_bn: bool = setting(False, "Leave the encoder's BatchNorm unchanged.")
    dropout: float | None = setting(
        None, "Dropout probability in the decoder; the default is that of the architecture.", _DECAY
    )
    dim: int = setting(64, "d, the length of an embedding.", Range(1, 4096))
    normalize: Literal["full", "quarter", "none"] = setting(
        "full", "Where embeddings become unit vectors: at full resolution, at a quarter of it as published, or nowhere."
    )

    loss: Literal["knn", "exact", "auto", "dense"] = setting(
        "auto",
        "The paper's k-NN loss, the exact softmax over all classes with memory O(1) in their number, auto for the exact one up"
        " to 2,000 classes and k-NN beyond, or the dense baseline with one channel per class.",
    )
    k: int = setting(7, "Negatives per pixel.", Range(1, 65_535))
    temperature: float | Literal["learnt"] = setting(
        20.0,
        "T, the factor of the logits; learnt starts at 20 and stays between 1 and 100. The dense loss has none.",
        Range(0, 1_000_000, open="least"),
    )
    distance: Literal["euclidean", "squared", "cosine"] = setting(
        "euclidean", "Distance between the embeddings of a pixel and a class, from which a logit is computed."
    )
    negatives: Literal["nearest", "random", "published"] = setting(
        "nearest", "Negatives of a pixel: the nearest classes, random classes, or as published, collisions included."
    )
    search: Literal["auto", "numba", "triton", "faiss", "torch", "clustered"] = setting(
        "auto", "Method that finds the nearest classes; clustered is for very many classes and misses a few."
    )
    query_stride: Literal[1, 2, 4, 8, 16] = setting(
        1, "Pixels per search for the nearest classes: all pixels of a block of this many share what one of them finds."
    )
    points: int | None = setting(
        None,
        "Only with the dense loss: points per image at which it is computed, most of them where the prediction is uncertain;"
        " the default is all pixels.",
        Range(1, 16_777_216),
    )
    margin: float = setting(0.2, "m of the margin penalty; 0 = off.", _FACTOR)

    repeat_threshold: float = setting(
        0.0,
        "t of repeat-factor sampling: images of classes in less than this share of all images are seen more often; LVIS uses"
        " 0.001, 0 = off.",
        _SHARE,
    )
    class_crop: float = setting(
        0.0,
        "Share of the crops that are placed around a pixel of one of the image's classes, drawn with a probability proportional"
        " to 1 / number of images with the class; 0 = off.",
        _SHARE,
    )
    logit_adjustment: float = setting(
        0.0, "Only with the exact loss: tau of logit adjustment, which adds tau * log prior to the logits; 0 = off.", _FACTOR
    )
    class_weight_power: float = setting(
        0.0,
        "Only with the exact loss: pixels of a class with n pixels weigh n ** -power; 0 = off.",
        Range(0, 10),
    )
    federated: bool = setting(
        False,
        "Only with the exact loss: leave LVIS classes out of the softmax in images where they were neither annotated nor"
        " verified absent.",
    )

    steps: int | None = setting(None, "Length of the training in steps, instead of --epochs.", _COUNT)
    epochs: int | None = setting(40, "Length of the training in epochs, instead of --steps.", _COUNT)
    batch_size: int = setting(16, "Images per step, in all processes together.", _IMAGES)
    accumulate: int = setting(1, "Parts into which each process divides its share of a batch, to save memory.", _IMAGES)
    optimizer: Literal["sgd", "adamw"] = setting(
        "sgd", "SGD as published, or AdamW, which spares norms, biases and class embeddings from weight decay."
    )
    lr: float = setting(1e-2, "Learning rate of the decoder and the class embeddings.", _RATE)
    encoder_lr: float = setting(
        0.1,
        "Learning rate of the encoder, as a multiple of --lr; 0 leaves the encoder unchanged, including its statistics, and"
        " saves the memory of its activations.",
        _RATE,
    )
    power: float = setting(0.9, "Power of the schedule: the learning rate is lr * (1 - step / steps) ** power.", _FACTOR)
    embedding_power: float = setting(0.95, "Power of the schedule of the class embeddings.", _FACTOR)
    min_lr: float = setting(1e-6, "Lower limit of the schedule; learning rates that start below it stay constant.", _RATE)
    warmup: int = setting(0, "Steps over which the learning rate first rises linearly.", Range(0, MOST_STEPS))
    momentum: float = setting(0.9, "Momentum of SGD, or the first beta of AdamW.", _DECAY)
    embedding_momentum: float = setting(0.95, "Momentum or first beta for the class embeddings.", _DECAY)
    weight_decay: float = setting(1e-4, "Weight decay.", _FACTOR)
    clip_norm: float | None = setting(
        None, "Largest norm of the gradient of all parameters together; a longer one is scaled down to it.", _SCALE
    )
    ema: float = setting(0.0, "Decay of averaged weights, which are then the ones evaluated and kept; 0 = off.", _DECAY)

    crop: int = setting(512, "Side length of the training crops in pixels.", Range(1, 16_384))
    scale_min: float = setting(0.5, "Smallest random scale.", _SCALE)
    scale_max: float = setting(2.0, "Largest random scale.", _SCALE)
    flip: float = setting(0.5, "Probability of mirroring an image.", _SHARE)
    color_jitter: float = setting(
        0.0, "Largest share by which brightness, contrast and saturation change; 0 = off.", Range(0, 10)
    )

    seed: int = setting(0, "Determines weights, batches and augmentations.", Range(0, 2**63 - 1))
    device: str = setting("auto", "Device to train on: auto, cpu, cuda, cuda:1 or mps.")
    precision: Literal["auto", "float32", "bf16", "fp16"] = setting(
        "auto",
        "Precision of the network's arithmetic; weights, embeddings and losses are always float32. auto is bf16 on GPUs that"
        " have it natively (compute capability 8.0 and above), and float32 elsewhere.",
    )
    channels_last: bool | None = setting(
        None, "Keep channels last in memory; the default is yes on GPUs that have bf16 natively, and no elsewhere."
    )
    compile: bool = setting(False, "Compile the network with torch.compile.")
    workers: int | Literal["auto"] = setting(
        "auto",
        "Loader processes; 0 loads in the training process. auto is the number of cores for a GPU, at most 8, and 2 elsewhere.",
        Range(0, 1024),
    )
    start_method: Literal["fork", "spawn", "forkserver"] | None = setting(
        None, "How loader processes start; the default is Python's."
    )
    skip_damaged: bool = setting(False, "Skip damaged images and report them, instead of stopping at the first one.")
    track: str = setting(
        "tensorboard", "Where curves go: tensorboard, wandb or another tracker of accelerate, separated by commas, or none."
    )
    log_every: int = setting(20, "Steps between two lines of the log.", _COUNT)
    eval_every: int | Literal["epoch"] | None = setting(
        None, "Steps between two evaluations on val, or epoch; the end of the training is evaluated too.", _COUNT
    )
    eval_limit: int | None = setting(None, "Images per evaluation; the default is all of val.", _COUNT)
    save_every: int = setting(1000, "Steps between two checkpoints.", _COUNT)
    keep: int = setting(2, "How many of the newest checkpoints are kept, besides the best by mIoU.", _COUNT)

    def __post_init__(self) -> None:
        for each in settings_of(Config):
            each.check(getattr(self, each.name))
        if (self.steps is None) == (self.epochs is None):
            raise DataError(f"steps is {self.steps} and epochs is {self.epochs}; expected exactly one of them")
        if self.points is not None and self.loss != "dense":
            raise DataError(f"points is {self.points}, but loss is {self.loss!r}; points need the loss 'dense'")
        if self.scale_min > self.scale_max:
            raise DataError(f"scale_min is {self.scale_min} and scale_max {self.scale_max}; expected scale_min <= scale_max")

    def to_json(self) -> dict[str, Any]:
        """All settings by name, as run.json records them."""
        return asdict(self)

    def to_toml(self) -> str:
        """The settings as a file for ``--config``, without those that are None."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in given.items())


def preset_names() -> list[str]:
    """The presets that ship with the package, each with the settings of a whole run."""
    return _names("ess.presets")


def variant_names() -> list[str]:
    """The variants that can be added to a preset, as in "coco-lvis+exact": systems of the paper, losses, networks."""
    return _names("ess.presets.variants")


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, or of a preset with variants, "NAME+VARIANT+...".

    Raises DataError, listing the known names, if there is none.
    """
    first, *added = name.split("+")
    settings = _shipped("ess.presets", first, "preset")
    while "base" in settings:  # a preset that changes another one
        settings = _shipped("ess.presets", settings.pop("base"), "preset") | settings
    for each in added:
        settings |= _without_points(variant(each))
    return settings


def variant(name: str) -> dict[str, Any]:
    """The settings that a variant changes; raises DataError, listing the known names, if there is none."""
    return _shipped("ess.presets.variants", name, "variant")


def _names(package: str) -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files(package).iterdir() if path.name.endswith(".toml"))


def _shipped(package: str, name: str, kind: str) -> dict[str, Any]:
    if name not in _names(package):
        raise DataError(f"no {kind} {name!r}; there are {', '.join(_names(package))}")
    return tomllib.loads(files(package).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def load(preset_name: str | None = None, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The settings in force: flags override the file, the file overrides the preset, the preset overrides the defaults.

    ``steps`` on one level replaces ``epochs`` on a lower one, and vice versa; a loss other than "dense" replaces ``points``.
    The word "none" turns off an optional setting of a lower level. Raises DataError if a name is unknown or a value is wrong.
    """
    settings: dict[str, Any] = {}
    for where, level in (
        (f"preset {preset_name}", {} if preset_name is None else preset(preset_name)),
        (str(file), {} if file is None else _read_toml(file)),
        ("flags", dict(flags or {})),
    ):
        _refuse_unknown(level, where)
        settings = _merged(settings, level)
    return Config(**settings)


def changed(config: Config, flags: Mapping[str, Any]) -> Config:
    """The settings of a run, changed by flags as in :func:`load`."""
    return Config(**_merged(config.to_json(), flags))


def _merged(settings: dict[str, Any], level: Mapping[str, Any]) -> dict[str, Any]:
    """Settings, changed by those of a higher level, where the word "none" turns off a setting that is optional."""
    length: dict[str, Any] = {"steps": None, "epochs": None} if "steps" in level or "epochs" in level else {}
    optional = [each.name for each in settings_of(Config) if each.optional]
    level = _without_points(level)
    return settings | length | {name: None if value == NONE and name in optional else value for name, value in level.items()}


def _without_points(level: Mapping[str, Any]) -> Mapping[str, Any]:
    """The level, which turns off the points of lower levels if its loss cannot have any and it does not name them."""
    return {"points": NONE, **level} if level.get("loss", "dense") != "dense" else level


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: malformed TOML, or an integer too long for Python
        raise DataError(f"{path}: cannot be read as TOML: {error}") from None


def _refuse_unknown(settings: Mapping[str, Any], where: str) -> None:
    known = [each.name for each in settings_of(Config)]
    for key in settings:
        if key not in known:
            raise DataError(f"{where}: unknown setting {key!r}{did_you_mean(key, known)}")
