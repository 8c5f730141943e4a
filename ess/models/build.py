"""Builds networks: our own DeepLabV3+, the decoders of segmentation-models-pytorch, and a linear layer, on encoders of timm."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cocolvis.errors import DataError
from ess.config import Config
from ess.kernels.distances import DISTANCES
from ess.models.deeplabv3plus import RATES, DeepLabV3PlusDecoder, to_group_norm
from ess.models.encoders import ENCODERS, OPTIONS, PLAIN, check_pair
from ess.models.network import SegmentationModel
from ess.models.weights import encoder_weights

HEADS = ("embedding", "dense")
NORMS = ("batch", "group")
NORMALIZE = ("full", "quarter", None)

_SMALLEST = {"pan": 128, "pspnet": 32}
"""Architecture -> the side in pixels to which smaller images are padded."""


def build_model(
    arch: str = "deeplabv3plus",
    encoder: str = "resnet50",
    *,
    classes: int = 1284,
    dim: int = 12,
    head: str = "embedding",
    output_stride: int = 16,
    features: str | None = None,
    norm: str = "batch",
    normalize: str | None = "full",
    distance: str = "euclidean",
    encoder_bn_momentum: float = 0.01,
    weights: str | Path | None = None,
) -> SegmentationModel:
    """A model of one of :func:`ess.models.encoders.pairs`. The encoder's BatchNorm has momentum 0.01 by default, as published.

    ``head`` "dense" gives C logits instead of ``dim`` channels. ``output_stride``, 8 or 16, applies only to "deeplabv3plus".
    ``features`` are those that "linear" reads, as in :func:`ess.models.linear.linear`. ``norm`` "group" replaces BatchNorm by
    GroupNorm in the decoder. ``weights`` of the encoder are None for random ones, "imagenet", or a file. Raises DataError if an
    argument does not fit.
    """
    cfg = check_pair(arch, encoder)
    _check("head", head, HEADS)
    _check("norm", norm, NORMS)
    _check("normalize", normalize, NORMALIZE)
    _check("output_stride", output_stride, tuple(RATES))
    _check("distance", distance, DISTANCES)
    state = None if weights is None else encoder_weights(encoder, weights)
    options: dict[str, Any] = {"pretrained_cfg_overlay": {"state_dict": state}} if state else {}
    options |= OPTIONS.get(cfg.architecture or "", {})
    channels = dim if head == "embedding" else classes
    if features is not None and arch != "linear":
        raise DataError(f"features is {features!r}, but arch is {arch!r}: only arch linear can choose its features")
    if arch == "linear":
        from ess.models.linear import linear

        encoder_module, decoder, multiple = linear(encoder, channels, features, bool(state), options)
    else:
        build = _deeplabv3plus if arch == "deeplabv3plus" else _plain if cfg.architecture in PLAIN else _smp
        encoder_module, decoder, multiple = build(arch, encoder, channels, output_stride, bool(state), options)
    if norm == "group":
        to_group_norm(decoder)
    for module in encoder_module.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = encoder_bn_momentum
    return SegmentationModel(
        encoder_module,
        decoder,
        classes,
        dim if head == "embedding" else None,
        normalize=normalize,
        distance=distance,
        multiple=multiple,
        smallest=_SMALLEST.get(arch, 1),
        mean=cfg.mean,
        std=cfg.std,
    )


def model_from_config(config: Config, classes: int, *, weights: str | Path | None) -> SegmentationModel:
    """The model for the settings of a run, with ``classes`` classes and ``weights`` as in :func:`build_model`."""
    return build_model(
        config.arch,
        config.encoder,
        classes=classes,
        dim=config.dim,
        head="dense" if config.loss == "dense" else "embedding",
        output_stride=config.output_stride,
        features=config.features,
        norm=config.norm,
        normalize=None if config.normalize == "none" else config.normalize,
        distance=config.distance,
        encoder_bn_momentum=config.encoder_bn_momentum,
        weights=weights,
    )


def _deeplabv3plus(arch: str, encoder: str, channels: int, output_stride: int, pretrained: bool, options: dict) -> tuple:
    """(encoder, decoder, multiple) of our own DeepLabV3+ on the encoder's features at stride 4 and its last ones."""
    import timm

    try:
        with torch.device("meta"):
            whole: Any = timm.create_model(encoder, features_only=True)
        strides = whole.feature_info.reduction()
        options |= {"features_only": True, "out_indices": (strides.index(4), len(strides) - 1), "output_stride": output_stride}
        features: Any = timm.create_model(encoder, pretrained=pretrained, **options)
    except Exception as error:  # timm's model families raise different exceptions if they do not support this
        works = ", ".join(ENCODERS[arch])
        raise DataError(
            f"{arch} does not work with {encoder!r}: it has no features at strides 4 and {output_stride}"
            f" ({str(error).splitlines()[0] if str(error) else type(error).__name__}); {arch} works with {works}"
        ) from None
    low, high = features.feature_info.channels()
    return features, DeepLabV3PlusDecoder(low, high, channels, output_stride), output_stride


def _smp(arch: str, encoder: str, channels: int, output_stride: int, pretrained: bool, options: dict) -> tuple:
    """(encoder, decoder, multiple) of an architecture of segmentation-models-pytorch, without its last upsampling."""
    import segmentation_models_pytorch as smp

    model = smp.create_model(arch, f"tu-{encoder}", encoder_weights=pretrained or None, classes=channels, **options)
    return model.encoder, _SmpDecoder(model.decoder, model.segmentation_head[0]), model.encoder.output_stride


def _plain(arch: str, encoder: str, channels: int, output_stride: int, pretrained: bool, options: dict) -> tuple:
    """(encoder, decoder, multiple) of a plain vision transformer, with DPT, or with another decoder after a feature pyramid."""
    from segmentation_models_pytorch.base import initialization
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead
    from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    from ess.models.vit import FeaturePyramid, PlainEncoder

    vit = PlainEncoder(encoder, pretrained=pretrained, **options)
    head: nn.Module
    if arch == "dpt":  # "16" stands for any patch size: DPT halves and doubles the grid of patches relative to it
        decoder, head = DPTDecoder([vit.width] * 4, [16] * 4), DPTSegmentationHead(256, channels).head
    else:
        pyramid = FeaturePyramid(vit.width)
        decoder = {"upernet": UPerNetDecoder, "segformer": SegformerDecoder}[arch](pyramid.channels)
        head = nn.Conv2d(256, channels, 1)
    initialization.initialize_decoder(decoder)
    initialization.initialize_head(head)
    if arch == "dpt":
        return vit, _SmpDecoder(decoder, head), 2 * vit.patch
    return vit, nn.Sequential(pyramid, _SmpDecoder(decoder, head)), vit.patch


class _SmpDecoder(nn.Module):
    """A decoder of segmentation-models-pytorch and its last convolution."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.head = head

    def forward(self, features: list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]) -> torch.Tensor:
        return self.head(self.decoder(*features) if isinstance(features, tuple) else self.decoder(features))


def _check(what: str, value, known: Sequence) -> None:
    if value not in known:
        raise DataError(f"{what} is {value!r}: expected {' or '.join(map(repr, known))}")
