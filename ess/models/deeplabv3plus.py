"""The decoder of DeepLabV3+ (Chen et al., ECCV 2018): atrous spatial pyramid pooling, a skip from stride 4, one 3x3 block."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ess.models.resized_convolution import resized_convolution

RATES = {16: (6, 12, 18), 8: (12, 24, 36)}
"""Output stride of the encoder -> dilations of the three 3x3 branches, which span the same pixels of the image."""


class DeepLabV3PlusDecoder(nn.Module):
    """Features (B, low_channels, H/4, W/4) and (B, high_channels, H/s, W/s), s the output stride -> (B, channels, H/4, W/4)."""

    def __init__(self, low_channels: int, high_channels: int, channels: int, output_stride: int = 16):
        super().__init__()
        self.skip = _conv(low_channels, 48, 1)
        self.aspp = ASPP(high_channels, RATES[output_stride])
        self.head = nn.Sequential(_block(_FusingConv2d(48 + 256, 256, 3, padding=1, bias=False)), nn.Conv2d(256, channels, 1))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        low, high = features
        block, last = self.head.children()
        fuse, norm, activation = block.children()
        return last(activation(norm(fuse(self.skip(low), self.aspp(high)))))


class _FusingConv2d(nn.Conv2d):
    """A convolution of fine maps followed by coarse ones, which are resized to the resolution of the fine ones."""

    def forward(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:  # type: ignore[override]  # two maps, not one
        of_fine, of_coarse = self.weight.split((fine.shape[1], coarse.shape[1]), dim=1)
        resized = resized_convolution(coarse, of_coarse, fine.shape[-2:])
        return F.conv2d(fine, of_fine, self.bias, padding=self.padding).add_(resized)


class ASPP(nn.Module):
    """Five branches of 256 channels, fused to 256 again: a 1x1, three dilated 3x3 convolutions, and image pooling."""

    def __init__(self, in_channels: int, rates: tuple[int, ...]):
        super().__init__()
        self.branches = nn.ModuleList([_conv(in_channels, 256, 1), *(_conv(in_channels, 256, 3, rate) for rate in rates)])
        self.pooling = _conv(in_channels, 256, 1)
        self.project = nn.Sequential(_conv(256 * (len(rates) + 2), 256, 1), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = _resize(self.pooling(F.adaptive_avg_pool2d(x, 1)), x)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))


def to_group_norm(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside ``module`` by a GroupNorm of gcd(32, channels) groups."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(math.gcd(32, child.num_features), child.num_features))
        else:
            to_group_norm(child)


def _conv(in_channels: int, channels: int, size: int, rate: int = 1) -> nn.Sequential:
    """A convolution that keeps the resolution, followed by BatchNorm and ReLU."""
    return _block(nn.Conv2d(in_channels, channels, size, padding=rate * (size // 2), dilation=rate, bias=False))


def _block(conv: nn.Conv2d) -> nn.Sequential:
    """A convolution followed by BatchNorm and ReLU."""
    nn.init.kaiming_normal_(conv.weight)
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
