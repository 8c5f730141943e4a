"""The settings of a training run: one frozen dataclass, filled from a preset, then a TOML file, then flags."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from cocolvis.errors import DataError

_POSITIVE = "dim k batch_size crop log_every save_every steps epochs eval_every eval_limit keep"
_NOT_NEGATIVE = (
    "encoder_bn_momentum margin lr encoder_lr min_lr momentum embedding_momentum weight_decay workers"
    " repeat_threshold logit_adjustment class_weight_power"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of ``ess train``; the defaults are the paper's COCO+LVIS run.

    Model: ``arch`` and ``encoder`` are a pair of ``ess models``; ``weights`` is "imagenet", "none" or a file; ``dim`` is d, the
    length of an embedding; ``normalize`` is where embeddings become unit vectors: "full" resolution, the head's "quarter"
    resolution (as published), or "none". ``encoder_bn_momentum`` is right for pretrained encoders; from scratch take 0.1.

    Loss: "knn" (the paper's, over ``k`` negatives of kind ``negatives``, found by ``search`` for one pixel in
    ``query_stride``), "exact" (softmax over all classes), "auto" (the cheaper of these two for so many classes) or "dense" (the
    baseline with one output channel a class). ``temperature`` is T, ``margin`` the regulariser's m, 0 = off.

    Long tail: with ``repeat_threshold`` t images of classes in less than t of all images are seen more often (LVIS: 0.001);
    ``logit_adjustment`` is tau, ``class_weight_power`` the power of a class's pixels that divides its weight, both for "exact";
    0 = off.

    Schedule: either ``steps`` or ``epochs`` counts; the learning rate is lr * (1 - step / steps) ** power, never below
    ``min_lr``; the encoder's is ``encoder_lr`` times that; class embeddings have a power and a momentum of their own.

    Augmentation: scale in ``scale_min``..``scale_max``, a random ``crop`` (pixels a side), mirrored with probability ``flip``.
    """

    arch: str = "deeplabv3plus"
    encoder: str = "resnet50"
    weights: str = "imagenet"
    output_stride: Literal[8, 16] = 16
    norm: Literal["batch", "group"] = "batch"
    encoder_bn_momentum: float = 0.01
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
    logit_adjustment: float = 0.0
    class_weight_power: float = 0.0

    steps: int | None = None
    epochs: int | None = 40
    batch_size: int = 16
    lr: float = 1e-2
    encoder_lr: float = 0.1
    power: float = 0.9
    embedding_power: float = 0.95
    min_lr: float = 1e-6
    momentum: float = 0.9
    embedding_momentum: float = 0.95
    weight_decay: float = 1e-4

    crop: int = 512
    scale_min: float = 0.5
    scale_max: float = 2.0
    flip: float = 0.5

    seed: int = 0
    device: str = "auto"
    workers: int = 2
    start_method: Literal["fork", "spawn", "forkserver"] | None = None
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
        for names, least in ((_POSITIVE, 1), (_NOT_NEGATIVE, 0)):
            for name in names.split():
                _at_least(name, getattr(self, name), least)
        if self.temperature <= 0 or not 0 < self.scale_min <= self.scale_max or not 0 <= self.flip <= 1:
            raise DataError(
                f"temperature {self.temperature}, scale {self.scale_min}..{self.scale_max}, flip {self.flip}:"
                " expected a positive temperature, 0 < scale_min <= scale_max and flip in 0..1"
            )

    def to_json(self) -> dict[str, Any]:
        """All settings by name, as run.json records them."""
        return asdict(self)


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    return sorted(path.name.removesuffix(".toml") for path in files("ess.presets").iterdir() if path.name.endswith(".toml"))


def preset(name: str) -> dict[str, Any]:
    """The settings of a shipped preset; a DataError that lists them all when there is none of this name."""
    if name not in preset_names():
        raise DataError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    return tomllib.loads(files("ess.presets").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


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
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
            if value in get_args(option) and not isinstance(value, bool):
                return
        elif type(value) is option or (option is float and type(value) is int):
            return
    words = [str(get_args(o)) if get_origin(o) is Literal else ("none" if o is type(None) else o.__name__) for o in allowed]
    raise DataError(f"setting {name} is {value!r}; expected {' or '.join(words)}")


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise DataError(f"setting {name} is {value}; expected {least} or more")
