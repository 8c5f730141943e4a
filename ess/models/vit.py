"""Plain vision transformers as encoders: the features of four blocks, all at one resolution, and a pyramid made of them."""

import timm
import torch
from timm.layers import LayerNorm2d
from torch import nn


class PlainEncoder(nn.Module):
    """A vision transformer of timm without what stands behind its blocks; images are multiples of its ``patch``.

    (B, 3, H, W) -> (features, prefixes): of the blocks at 1/4, 1/2, 3/4 and all of the depth, through the final norm, each
    (B, ``width``, H/patch, W/patch), and each one's class and register tokens (B, n, ``width``).
    """

    def __init__(self, name: str, **options):
        super().__init__()
        self.model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
        depth = len(self.model.blocks)
        self.blocks = self.model.prune_intermediate_layers([depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)])
        self.width = self.model.embed_dim
        self.patch = self.model.patch_embed.patch_size[0]

    def forward(self, images: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        given = {"indices": self.blocks, "norm": True, "return_prefix_tokens": True, "intermediates_only": True}
        return tuple(zip(*self.model.forward_intermediates(images, **given), strict=True))


class FeaturePyramid(nn.Module):
    """What a :class:`PlainEncoder` gives -> features as staged encoders have them, at 1/4, 1/2, 1 and 2 times its patch.

    As in ViTDet (Li et al., ECCV 2022), but each level from a block of its own. Decoders of segmentation-models-pytorch also
    want the image and its half before these: two tensors without channels.
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
        found = [level(features) for level, features in zip(self.levels, given[0], strict=True)]
        height, width = found[0].shape[-2:]
        return [found[0].new_empty(len(found[0]), 0, height * scale, width * scale) for scale in (4, 2)] + found
