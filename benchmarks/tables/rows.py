"""The three tables: their rows, and the settings of each row."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: the ``settings`` in which its runs differ from the others, and the row that it is compared with.

    Rows of a ``family`` share a learning rate, which is chosen with the first of them.
    """

    name: str
    family: str
    against: str
    settings: Settings = field(default_factory=dict)
    only_on_request: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: ``settings`` are common to its rows, ``parts`` are its data sets, each of which every row is trained on.

    ``pooled`` parts are the folds of a cross validation, whose pictures are scored together; other parts are tables of their
    own. The learning rates are chosen from ``rates`` on the part ``choosing``, with its split "val", which is taken from the
    training pictures; a family in ``given`` has its rate from there. ``evaluations`` is the number of times that this split is
    scored during a training.
    """

    name: str
    rows: tuple[Row, ...]
    settings: Settings
    parts: tuple[str, ...]
    pooled: bool
    choosing: str
    seeds: int = 1
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    given: Mapping[str, float] = field(default_factory=dict)
    evaluations: int = 5

    def row(self, name: str) -> Row:
        """The row of this name."""
        return next(row for row in self.rows if row.name == name)


_COMMON = {
    "optimizer": "adamw",
    "epochs": None,
    "workers": 0,
    "track": "none",
    "device": "cpu",
    "margin": 0.2,
    "scale_min": 1.0,
    "scale_max": 1.0,
    "flip": 0.0,
}

_DENSE = {"loss": "dense"}
_KNN = {"loss": "knn"}
_EXACT = {"loss": "exact"}

_REAL = Table(
    "real",
    (
        Row("dense", "dense", "exact-d64", _DENSE),
        Row("dense-points", "dense", "dense", _DENSE | {"points": 4096}),
        Row("exact", "exact", "exact", _EXACT),
        Row("knn", "exact", "exact", _KNN),
        Row("random-negatives", "random", "knn", _KNN | {"negatives": "random"}),
        Row("no-normalisation", "no-normalisation", "knn", _KNN | {"normalize": "none"}),
        Row("no-margin", "exact", "knn", _KNN | {"margin": 0.0}),
        *(Row(f"exact-d{dim}", "exact", "exact", _EXACT | {"dim": dim}) for dim in (6, 24)),
        *(Row(f"exact-d{dim}", "wide", "exact", _EXACT | {"dim": dim}) for dim in (64, 128, 256)),
        Row("knn-d64", "wide", "exact-d64", _KNN | {"dim": 64}),
        Row("squared", "squared", "exact", _EXACT | {"distance": "squared"}),
        Row("cosine", "cosine", "exact", _EXACT | {"distance": "cosine"}),
        Row("t10", "exact", "exact", _EXACT | {"temperature": 10.0}),
        Row("t40", "exact", "exact", _EXACT | {"temperature": 40.0}),
        Row("t-learnt", "exact", "exact", _EXACT | {"temperature": "learnt"}),
        Row(
            "fine-tuned",
            "dense",
            "dense-points",
            _DENSE | {"points": 16384, "encoder_lr": 0.1, "crop": 256},
            only_on_request=True,
        ),
    ),
    _COMMON
    | {
        "arch": "linear",
        "encoder": "tf_efficientnet_lite0",
        "encoder_lr": 0.0,
        "dim": 12,
        "crop": 128,
        "batch_size": 4,
        "steps": 100,
        "eval_limit": 4,
    },
    parts=("fold0", "fold1", "fold2", "fold3"),
    pooled=True,
    choosing="fold0",
)

_SMALL = _COMMON | {
    "arch": "deeplabv3plus",
    "encoder": "resnet18",
    "weights": "none",
    "encoder_bn_momentum": 0.1,
    "encoder_lr": 1.0,
    "crop": 48,
    "batch_size": 8,
    "dim": 12,
    "eval_limit": 32,
}
"""A network that is trained from scratch on generated pictures, as in the preset "demo"."""


def _losses(embedding: str, crop: int) -> tuple[Row, ...]:
    """The losses that both tables of generated pictures compare, the dense one with the row ``embedding``.

    The loss at points uses a quarter of the pixels of a ``crop``.
    """
    return (
        Row("dense", "dense", embedding, _DENSE),
        Row("dense-points", "dense", "dense", _DENSE | {"points": crop**2 // 4}),
        Row("exact", "exact", "exact", _EXACT),
        Row("knn", "knn", "exact", _KNN),
    )


_LONGTAIL = Table(
    "longtail",
    (
        *_losses("exact-d64", 48),
        Row("exact-d64", "wide", "exact", _EXACT | {"dim": 64}),
        Row("knn-d64", "knn-wide", "exact-d64", _KNN | {"dim": 64}),
        Row("random-negatives", "random", "knn", _KNN | {"negatives": "random"}),
        Row("logit-adjustment", "exact", "exact", _EXACT | {"logit_adjustment": 1.0}),
        Row("repeat-factor", "exact", "exact", _EXACT | {"repeat_threshold": 0.01}),
    ),
    _SMALL | {"steps": 400},
    parts=("all",),
    pooled=True,
    choosing="all",
    seeds=3,
    rates=(1e-3, 3e-3, 1e-2, 3e-2),
)

_SCALE = Table(
    "scale",
    _losses("exact", 64),
    _COMMON
    | {
        "arch": "fpn",
        "encoder": "tf_efficientnet_lite0",
        "encoder_lr": 0.3,
        "crop": 64,
        "batch_size": 16,
        "dim": 64,
        "eval_limit": 32,
        "steps": 600,
    },
    parts=("100", "1000", "10000"),
    pooled=False,
    choosing="1000",
    rates=(3e-3, 1e-2, 3e-2),
)

TABLES = {table.name: table for table in (_REAL, _LONGTAIL, _SCALE)}
