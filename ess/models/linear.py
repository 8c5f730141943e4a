"""Linear evaluation: normalisation and a 1x1 convolution on chosen features of an encoder, as for DINOv2 and DINOv3."""

from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn

from cocolvis.errors import DataError
from ess.models.encoders import PLAIN
from ess.models.vit import PlainEncoder

_FINEST = 8
"""By default, staged encoders give their features from this stride on."""


class LinearDecoder(nn.Module):
    """Features (B, C_i, H/s_i, W/s_i) -> (B, channels, H/s, W/s), s the smallest of their strides.

    Coarser features are resized bilinearly to the finest ones and concatenated; then come BatchNorm and a 1x1 convolution, the
    head of the linear evaluations of DINOv2 (Oquab et al., 2023) and DINOv3 (Siméoni et al., 2025). There is no dropout unless
    it is set.
    """

    def __init__(self, widths: Sequence[int], channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(sum(widths))
        self.dropout = nn.Dropout2d(0.0)
        self.head = nn.Conv2d(sum(widths), channels, 1)
        nn.init.normal_(self.head.weight, std=0.01)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        size = max(tuple(each.shape[-2:]) for each in features)
        alike = [F.interpolate(each, size=size, mode="bilinear", align_corners=False) for each in features]
        return self.head(self.dropout(self.norm(torch.cat(alike, dim=1))))


def linear(encoder: str, channels: int, features: str | None, pretrained: bool, options: dict[str, Any]) -> tuple:
    """(encoder, decoder, multiple) of linear evaluation; raises DataError if the encoder does not have the ``features``.

    Staged encoders are read at the strides that ``features`` names ("8,16,32"), by default 8, 16 and 32. Plain vision
    transformers are read after the blocks that it names, counted from 1 ("3,6,9,12"), each followed by the final norm. Their
    default is the last block alone, as in the published linear evaluations: DINOv2 reports four blocks as a variant of its own.
    """
    if encoder.partition(".")[0] in PLAIN:
        depth = len(_described(encoder, {}).blocks)
        blocks = _chosen(features, range(1, depth + 1), (depth,), f"{encoder} has blocks")
        vit = PlainEncoder(encoder, [block - 1 for block in blocks], prefixes=False, pretrained=pretrained, **options)
        return vit, LinearDecoder([vit.width] * len(blocks), channels), vit.patch
    options = options | {"features_only": True, "feature_cls": "getter"}
    strides = _described(encoder, options).feature_info.reduction()
    chosen = _chosen(features, strides, [s for s in strides if s >= _FINEST], f"{encoder} has features at strides")
    indices = [strides.index(stride) for stride in chosen]
    staged: Any = timm.create_model(encoder, pretrained=pretrained, out_indices=indices, **options)
    _drop_unread_branches(staged.model, chosen)
    return staged, LinearDecoder(staged.feature_info.channels(), channels), max(strides)


def _described(encoder: str, options: dict[str, Any]) -> Any:
    """The encoder without numbers, to read its description."""
    with torch.device("meta"):
        return timm.create_model(encoder, **{k: v for k, v in options.items() if k != "pretrained_cfg_overlay"})


def _chosen(features: str | None, known: Sequence[int], default: Sequence[int], what: str) -> list[int]:
    """The numbers that ``features`` names, in increasing order; raises DataError unless all of them are ``known``."""
    if features is None:
        return [*default]
    try:
        wanted = sorted({int(number) for number in features.split(",")})
    except ValueError:
        wanted = []
    if not wanted or not {*wanted} <= {*known}:
        shown = f"{known[0]} to {known[-1]}" if isinstance(known, range) else ", ".join(map(str, known))
        raise DataError(f"features is {features!r}: {what} {shown}; expected some of these numbers, separated by commas")
    return wanted


def _drop_unread_branches(model: Any, strides: Sequence[int]) -> None:
    """Remove the last layers of an HRNet that only lead to features at other strides; other encoders drop them themselves."""
    if not hasattr(model, "stage4"):
        return
    branches = model.stage4[-1].fuse_layers
    for number in range(len(branches)):
        if 4 * 2**number not in strides:
            branches[number] = nn.ModuleList([nn.Identity()])
            if number < len(model.incre_modules):
                model.incre_modules[number] = nn.Identity()
