"""The settings of a training run: one frozen dataclass, filled from a preset, then a TOML file, then flags."""

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from cocolvis.disk.files import read_text
from cocolvis.errors import DataError

MOST_STEPS = 99_999_999
"""The most steps of a training: as many digits has the name of a checkpoint."""


class _Range(NamedTuple):
    """The numbers from ``least`` to ``most``, or those between them where ``open`` says so of that end."""

    least: float
    most: float
    open: Literal["", "least", "most"] = ""

    def holds(self, value: float) -> bool:
        """Whether a number is one of them; NaN never is."""
        return self.least <= value <= self.most and not (self.open and value == getattr(self, self.open))

    def __str__(self) -> str:
        first = f"more than {self.least}" if self.open == "least" else f"{self.least} or more"
        return f"{first}, {'less than' if self.open == 'most' else 'at most'} {self.most}"


_COUNT = _Range(1, MOST_STEPS)
_SHARE = _Range(0, 1)
_DECAY = _Range(0, 1, open="most")
_FACTOR = _Range(0, 1000)
_RATE = _Range(0, 1_000_000)
_SCALE = _Range(0, 1000, open="least")

_RANGES = {
    "encoder_bn_momentum": _SHARE,
    "dropout": _DECAY,
    "dim": _Range(1, 4096),
    "k": _Range(1, 65_535),
    "temperature": _Range(0, 1_000_000, open="least"),
    "margin": _FACTOR,
    "repeat_threshold": _SHARE,
    "class_crop": _SHARE,
    "logit_adjustment": _FACTOR,
    "class_weight_power": _Range(0, 10),
    "steps": _COUNT,
    "epochs": _COUNT,
    "batch_size": _Range(1, 1_048_576),
    "accumulate": _Range(1, 1_048_576),
    "lr": _RATE,
    "encoder_lr": _RATE,
    "power": _FACTOR,
    "embedding_power": _FACTOR,
    "min_lr": _RATE,
    "warmup": _Range(0, MOST_STEPS),
    "momentum": _DECAY,
    "embedding_momentum": _DECAY,
    "weight_decay": _FACTOR,
    "ema": _DECAY,
    "crop": _Range(1, 16_384),
    "scale_min": _SCALE,
    "scale_max": _SCALE,
    "flip": _SHARE,
    "color_jitter": _Range(0, 10),
    "seed": _Range(0, 2**63 - 1),
    "workers": _Range(0, 1024),
    "log_every": _COUNT,
    "eval_every": _COUNT,
    "eval_limit": _COUNT,
    "save_every": _COUNT,
    "keep": _COUNT,
}
"""Which numbers each setting may be; every setting that is a number stands here."""

_NAMES = {type(None): "none", str: "text in one line"}
"""What types are called in messages, where not by their names in Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of ``ess train``; the defaults are the paper's COCO+LVIS run.

    Model: ``arch`` and ``encoder`` are a pair of ``ess models``; ``weights`` is "imagenet", "none" or a file; ``dim`` is d, the
    length of an embedding; ``normalize`` is where embeddings become unit vectors: "full" resolution, the head's "quarter"
    resolution (as published), or "none". ``encoder_bn_momentum`` is right for pretrained encoders; from scratch take 0.1;
    ``freeze_bn`` leaves the encoder's BatchNorm as it is. ``dropout`` is the decoder's, None as the architecture has it.

    Loss: "knn" (the paper's, over ``k`` negatives of kind ``negatives``, found by ``search`` for one pixel in
    ``query_stride``), "exact" (softmax over all classes), "auto" (the cheaper of these two for so many classes) or "dense" (the
    baseline with one output channel a class). ``temperature`` is T, ``margin`` the regulariser's m, 0 = off.

    Long tail: with ``repeat_threshold`` t images of classes in less than t of all images are seen more often (LVIS: 0.001);
    a share ``class_crop`` of the crops is placed around a pixel of a class of the image, rare ones first. For "exact" alone, or
    "auto" where that is it: ``logit_adjustment`` is tau, ``class_weight_power`` the power of a class's pixels that divides its
    weight; ``federated`` leaves LVIS classes out of the softmax in images where they were neither annotated nor verified
    absent. 0 = off.

    Schedule: either ``steps`` or ``epochs`` counts; the learning rate is lr * (1 - step / steps) ** power, never below
    ``min_lr`` (or ``lr``, where that is less), after a linear rise over ``warmup`` steps; the encoder's is ``encoder_lr`` times
    that, and 0 leaves it exactly as it is, its statistics too; class embeddings have a power and a momentum of their own.
    ``momentum`` is SGD's, or AdamW's first beta. ``ema`` is the decay of averaged weights, which are then what is evaluated and
    kept; 0 = off.

    ``batch_size`` is the images of a step, in all processes together; ``accumulate`` in how many parts each process has its
    share pass. ``precision`` is that of the network's arithmetic; weights, losses and class embeddings are float32.

    Augmentation: scale in ``scale_min``..``scale_max``, a random ``crop`` (pixels a side), mirrored with probability ``flip``;
    brightness, contrast and saturation by factors in 1 - ``color_jitter``..1 + ``color_jitter``.

    ``skip_damaged``: a damaged image (its picture missing, not decodable or of a wrong size, its mask broken) is told once and
    passed over; another one takes its place in a batch, and it is missing in an evaluation. Otherwise it ends the training.
    """

    arch: str = "deeplabv3plus"
    encoder: str = "resnet50"
    weights: str = "imagenet"
    output_stride: Literal[8, 16] = 16
    norm: Literal["batch", "group"] = "batch"
    encoder_bn_momentum: float = 0.01
    freeze_bn: bool = False
    dropout: float | None = None
    dim: int = 12
    normalize: Literal["full", "quarter", "none"] = "full"

    loss: Literal["knn", "exact", "auto", "dense"] = "knn"
    k: int = 7
    temperature: float = 20.0
    distance: Literal["euclidean", "squared", "cosine"] = "euclidean"
    negatives: Literal["nearest", "random", "published"] = "nearest"
    search: Literal["auto", "numba", "triton", "faiss", "torch", "clustered"] = "auto"
    query_stride: Literal[1, 2, 4, 8, 16] = 1
    margin: float = 0.2

    repeat_threshold: float = 0.0
    class_crop: float = 0.0
    logit_adjustment: float = 0.0
    class_weight_power: float = 0.0
    federated: bool = False

    steps: int | None = None
    epochs: int | None = 40
    batch_size: int = 16
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 1e-2
    encoder_lr: float = 0.1
    power: float = 0.9
    embedding_power: float = 0.95
    min_lr: float = 1e-6
    warmup: int = 0
    momentum: float = 0.9
    embedding_momentum: float = 0.95
    weight_decay: float = 1e-4
    ema: float = 0.0

    crop: int = 512
    scale_min: float = 0.5
    scale_max: float = 2.0
    flip: float = 0.5
    color_jitter: float = 0.0

    seed: int = 0
    device: str = "auto"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    workers: int = 2
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
    skip_damaged: bool = False
    track: str = "tensorboard"
    log_every: int = 20
    eval_every: int | None = None
    eval_limit: int | None = None
    save_every: int = 1000
    keep: int = 2

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            _check(name, getattr(self, name), kind)
        if (self.steps is None) == (self.epochs is None):
            raise DataError(f"steps is {self.steps} and epochs is {self.epochs}; expected exactly one of them")
        for name, numbers in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not numbers.holds(value):
                raise DataError(f"setting {name} is {_short(value)}; expected {numbers}")
        if self.scale_min > self.scale_max:
            raise DataError(f"scale_min is {self.scale_min} and scale_max {self.scale_max}; expected scale_min <= scale_max")

    def to_json(self) -> dict[str, Any]:
        """All settings by name, as run.json records them."""
        return asdict(self)

    def to_toml(self) -> str:
        """The settings as a file that ``--config`` takes; what is None is left out."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in given.items())


def preset_names() -> list[str]:
    """The presets that ship with the package, each the settings of a whole run."""
    return _names("ess.presets")


def variant_names() -> list[str]:
    """What can be added to a preset, as in "coco-lvis+baseline": the systems and ablations of the paper, and networks."""
    return _names("ess.presets.variants")


def preset(name: str) -> dict[str, Any]:
    """The settings of a shipped preset, or of one with variants: "NAME+VARIANT+..."; a DataError that lists what there is."""
    first, *added = name.split("+")
    settings = _shipped("ess.presets", first, "preset")
    for each in added:
        settings |= variant(each)
    return settings


def variant(name: str) -> dict[str, Any]:
    """The settings that a variant changes; a DataError that lists them all when there is none of this name."""
    return _shipped("ess.presets.variants", name, "variant")


def _names(package: str) -> list[str]:
    return sorted(path.name.removesuffix(".toml") for path in files(package).iterdir() if path.name.endswith(".toml"))


def _shipped(package: str, name: str, kind: str) -> dict[str, Any]:
    if name not in _names(package):
        raise DataError(f"no {kind} {name!r}; there are {', '.join(_names(package))}")
    return tomllib.loads(files(package).joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def load(preset_name: str | None = None, file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """The settings in force: a flag wins over the file, the file over the preset, the preset over the defaults.

    ``steps`` on one level replaces ``epochs`` of a lower one, and the other way round. Unknown keys and values of a wrong type
    are a DataError.
    """
    settings: dict[str, Any] = {}
    for where, level in (
        (f"preset {preset_name}", preset(preset_name) if preset_name else {}),
        (str(file), _read_toml(file) if file else {}),
        ("flags", dict(flags or {})),
    ):
        _refuse_unknown(level, where)
        if "steps" in level or "epochs" in level:
            settings |= {"steps": None, "epochs": None}
        settings |= level
    return Config(**settings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # a ValueError is each of TOML, and of very long numbers
        raise DataError(f"{path}: cannot be read as TOML: {error}") from None


def _refuse_unknown(settings: Mapping[str, Any], where: str) -> None:
    known = [field.name for field in fields(Config)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise DataError(f"{where}: unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def _check(name: str, value: Any, kind: Any) -> None:
    """Refuse a value that is not of the annotated type; an int is welcome where a float is expected."""
    allowed = get_args(kind) if get_origin(kind) is not Literal and get_args(kind) else (kind,)
    for option in allowed:
        if get_origin(option) is Literal:
            if any(value == choice and type(value) is type(choice) for choice in get_args(option)):
                return
        elif option is str:
            if type(value) is str and value and value.isprintable():
                return
        elif type(value) is option or (option is float and type(value) is int):
            return
    words = [str(get_args(o)) if get_origin(o) is Literal else _NAMES.get(o, o.__name__) for o in allowed]
    raise DataError(f"setting {name} is {_short(value)}; expected {' or '.join(words)}")


def _short(value: Any) -> str:
    """A value as it is told in one line."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print the longest numbers
        return "far too large"
    return text if len(text) <= 60 else f"{text[:57]}..."
