"""Plain vision transformers as encoders: the features of some blocks, all at one resolution, and a pyramid made from them."""

from typing import Any

import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn


class PlainEncoder(nn.Module):
    """A timm vision transformer without its classifier; the sides of images are multiples of ``patch`` pixels.

    Images (B, 3, H, W) -> (features, prefixes) of ``blocks``, counted from 0, by default four at 1/4, 1/2, 3/4 and all of the
    depth: features (B, ``width``, H/patch, W/patch) after the final norm, and class and register tokens (B, n, ``width``).
    Without ``prefixes``, the features alone.
    """

    def __init__(self, name: str, blocks: list[int] | None = None, *, prefixes: bool = True, **options):
        super().__init__()
        model: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
        depth = len(model.blocks)
        self.model = model
        self.prefixes = prefixes
        chosen = blocks or [depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        self.blocks: list[int] = model.prune_intermediate_layers(chosen)
        self.width: int = model.embed_dim
        self.patch: int = model.patch_embed.patch_size[0]

    def forward(self, images: torch.Tensor) -> Any:
        options = {"indices": self.blocks, "norm": True, "return_prefix_tokens": self.prefixes, "intermediates_only": True}
        found = self.model.forward_intermediates(images, **options)
        return tuple(zip(*found, strict=True)) if self.prefixes else found


class FeaturePyramid(nn.Module):
    """The output of a :class:`PlainEncoder` -> features at strides of 1/4, 1/2, 1 and 2 patches, like those of staged encoders.

    As in ViTDet (Li et al., ECCV 2022), except that each level comes from a different block. The decoders of
    segmentation-models-pytorch expect features at strides 1 and 2 before these; they get two tensors without channels.
    """

    def __init__(self, width: int):
        super().__init__()
        self.channels = (0, 0, width // 4, width // 2, width, width)
        quarter = (nn.ConvTranspose2d(width, width // 2, 2, 2), LayerNorm2d(width // 2), nn.GELU())
        self.levels = nn.ModuleList(
            [
                nn.Sequential(*quarter, nn.ConvTranspose2d(width // 2, width // 4, 2, 2)),
                nn.ConvTranspose2d(width, width // 2, 2, 2),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, given: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]) -> list[torch.Tensor]:
        levels = [level(features) for level, features in zip(self.levels, given[0], strict=True)]
        height, width = levels[0].shape[-2:]
        return [levels[0].new_empty(len(levels[0]), 0, height * scale, width * scale) for scale in (4, 2)] + levels
