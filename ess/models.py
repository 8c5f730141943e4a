"""The networks: an encoder, a decoder with one output a pixel, and the class embeddings; and what can be built of them."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cocolvis.errors import DataError
from ess.config import Config
from ess.deeplabv3plus import RATES, DeepLabV3PlusDecoder, to_group_norm
from ess.neighbours import DISTANCES, nearest
from ess.weights import encoder_weights

HEADS = ("embedding", "dense")
NORMS = ("batch", "group")
NORMALIZE = ("full", "quarter", None)

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnest50d", "regnety_008")
_CONVNEXTS = ("convnext_tiny", "convnext_small")
_MOBILE = ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b3")
_DILATED = (*_MOBILE, *_RESNETS, *_CONVNEXTS)  # can keep a resolution below stride 32
_PYRAMIDS = ("densenet121", "swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224", "pvt_v2_b0", "pvt_v2_b2")
_PLAIN = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")  # one resolution throughout
_STAGED = (*_DILATED, "hrnet_w18", *_PYRAMIDS)

ENCODERS = {
    "deeplabv3plus": _DILATED,
    "unet": _STAGED,
    "unetplusplus": _STAGED,
    "manet": _STAGED,
    "linknet": _STAGED,
    "fpn": _STAGED,
    "upernet": _STAGED,
    "segformer": _STAGED,
    "pspnet": (*_RESNETS, *_CONVNEXTS, *_PYRAMIDS),  # of the others it would leave parts unused
    "pan": _DILATED,
    "dpt": _PLAIN,
}
"""Architecture -> the timm encoders that it works with; all of these expect ImageNet's mean and standard deviation.

"deeplabv3plus" is :mod:`ess.deeplabv3plus`, which also takes any other timm encoder with features at stride 4 and at the output
stride; the others are the decoders of segmentation-models-pytorch.
"""

_ENCODER_OPTIONS = {name: {"strict_img_size": False} for name in _PYRAMIDS if name.startswith("swin")}
_ENCODER_OPTIONS |= {name: {"dynamic_img_size": True, "num_classes": 0} for name in _PLAIN}
_SMALLEST = {"pan": 128}  # smaller images are padded to this


class SegmentationModel(nn.Module):
    """An encoder and a decoder with one output for each pixel, and where ``dim`` is not None the class embeddings.

    ``decoder(encoder(images))`` gives ``dim`` channels, or ``classes`` logits where ``dim`` is None, at any resolution.
    ``normalize``: "full" gives unit vectors at every pixel; "quarter" normalises what the decoder gives and upsamples then,
    as the published code does; None leaves pixel and class embeddings as they are. ``distance`` is by which predictions are
    nearest. Images are padded with zeros at the bottom and the right to a multiple of ``multiple`` and to ``smallest``, and
    the outputs cropped accordingly.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        classes: int,
        dim: int | None,
        *,
        normalize: str | None = "full",
        distance: str = "euclidean",
        multiple: int = 32,
        smallest: int = 1,
    ):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.class_embeddings = None if dim is None else nn.Parameter(torch.empty(classes, dim).uniform_(-1, 1))
        self.normalize = normalize
        self.distance = distance
        self.multiple = multiple
        self.smallest = smallest

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) floating, less ImageNet's mean -> embeddings (B, d, H, W) float32, or logits (B, C, H, W)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, self.padded(width) - width, 0, self.padded(height) - height))
        return self.output(padded)[:, :, :height, :width]

    def output(self, padded: torch.Tensor) -> torch.Tensor:
        """:meth:`forward` of images whose sides are as :meth:`padded` makes them."""
        output = self.decoder(self.encoder(padded))
        if self.class_embeddings is None:
            return _resize(output, padded)
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.normalize == "quarter":
            output = F.normalize(output, dim=1)
        output = _resize(output, padded)
        return F.normalize(output, dim=1) if self.normalize == "full" else output

    def classes(self) -> torch.Tensor:
        """The class embeddings (C, d), unit length along d unless ``normalize`` is None."""
        if self.class_embeddings is None:
            raise ValueError("a dense head has no class embeddings: build the model with head 'embedding'")
        return self.class_embeddings if self.normalize is None else F.normalize(self.class_embeddings, dim=1)

    @torch.no_grad()
    def predict(self, images: torch.Tensor) -> torch.Tensor:
        """Images as in :meth:`forward` -> (B, H, W) int64, the index 0..C-1 of the nearest class or the largest logit."""
        return self.classify(self(images))

    @torch.no_grad()
    def classify(self, output: torch.Tensor) -> torch.Tensor:
        """What :meth:`forward` gives -> (B, H, W) int64, the index 0..C-1 of the nearest class or the largest logit."""
        if self.class_embeddings is None:
            return output.argmax(dim=1)
        pixels = output.permute(0, 2, 3, 1)
        return nearest(pixels.flatten(0, 2), self.classes(), 1, distance=self.distance).view(pixels.shape[:3])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Every parameter once, under "encoder", "decoder" or "classes", as the method trains them at rates of their own."""
        classes = [] if self.class_embeddings is None else [self.class_embeddings]
        return {"encoder": [*self.encoder.parameters()], "decoder": [*self.decoder.parameters()], "classes": classes}

    def padded(self, length: int) -> int:
        """The side, in pixels, that images of this side are padded to."""
        return max(self.smallest, (length + self.multiple - 1) // self.multiple * self.multiple)


def build_model(
    arch: str = "deeplabv3plus",
    encoder: str = "resnet50",
    *,
    classes: int = 1284,
    dim: int = 12,
    head: str = "embedding",
    output_stride: int = 16,
    norm: str = "batch",
    normalize: str | None = "full",
    distance: str = "euclidean",
    encoder_bn_momentum: float = 0.01,
    weights: str | Path | None = None,
) -> SegmentationModel:
    """A model of one of :func:`pairs`, its encoder's BatchNorm at momentum 0.01 unless told otherwise, as published.

    ``head`` "dense" gives C logits instead of ``dim`` channels; ``output_stride`` 8 or 16 is for "deeplabv3plus" alone;
    ``norm`` "group" puts GroupNorm for BatchNorm in the decoder. ``weights`` of the encoder: None, "imagenet", or a file.
    """
    _check_pair(arch, encoder)
    _check("head", head, HEADS)
    _check("norm", norm, NORMS)
    _check("normalize", normalize, NORMALIZE)
    _check("output_stride", output_stride, tuple(RATES))
    _check("distance", distance, DISTANCES)
    state = None if weights is None else encoder_weights(encoder, weights)
    options = {"pretrained_cfg_overlay": {"state_dict": state}} if state else {}
    options |= _ENCODER_OPTIONS.get(encoder, {})
    channels = dim if head == "embedding" else classes
    build = _deeplabv3plus if arch == "deeplabv3plus" else _smp
    encoder_module, decoder, multiple = build(arch, encoder, channels, output_stride, bool(state), options)
    if norm == "group":
        to_group_norm(decoder)
    for module in encoder_module.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = encoder_bn_momentum
    dim = dim if head == "embedding" else None
    sizes = {"multiple": multiple, "smallest": _SMALLEST.get(arch, 1)}
    return SegmentationModel(encoder_module, decoder, classes, dim, normalize=normalize, distance=distance, **sizes)


def model_from_config(config: Config, classes: int, *, weights: str | Path | None) -> SegmentationModel:
    """The model that the settings of a run describe, over ``classes`` classes; ``weights`` as in :func:`build_model`."""
    return build_model(
        config.arch,
        config.encoder,
        classes=classes,
        dim=config.dim,
        head="dense" if config.loss == "dense" else "embedding",
        output_stride=config.output_stride,
        norm=config.norm,
        normalize=None if config.normalize == "none" else config.normalize,
        distance=config.distance,
        encoder_bn_momentum=config.encoder_bn_momentum,
        weights=weights,
    )


def pairs() -> list[tuple[str, str]]:
    """Every (architecture, encoder) that :func:`build_model` builds."""
    return [(arch, encoder) for arch, encoders in ENCODERS.items() for encoder in encoders]


def encoders_of(arch: str) -> tuple[str, ...]:
    """The timm encoders that an architecture is listed with; a DataError that names all when it is unknown."""
    if arch not in ENCODERS:
        raise DataError(f"no architecture is named {arch!r}{_meant(arch, ENCODERS)}: expected one of {', '.join(ENCODERS)}")
    return ENCODERS[arch]


def _deeplabv3plus(arch: str, encoder: str, channels: int, output_stride: int, pretrained: bool, options: dict) -> tuple:
    """(encoder, decoder, multiple) of our own DeepLabV3+ on the encoder's first features at stride 4 and its last."""
    import timm

    try:
        with torch.device("meta"):
            strides = timm.create_model(encoder, features_only=True).feature_info.reduction()
        taken = {"features_only": True, "out_indices": (strides.index(4), len(strides) - 1), "output_stride": output_stride}
        features = timm.create_model(encoder, pretrained=pretrained, **taken, **options)
    except Exception as error:  # each family of timm says in its own way what it cannot do
        works = ", ".join(ENCODERS[arch])
        raise DataError(
            f"{arch} does not work with {encoder!r}: it has no features at strides 4 and {output_stride}"
            f" ({str(error).splitlines()[0] if str(error) else type(error).__name__}); with {arch} work {works}"
        ) from None
    return features, DeepLabV3PlusDecoder(*features.feature_info.channels(), channels, output_stride), output_stride


def _smp(arch: str, encoder: str, channels: int, output_stride: int, pretrained: bool, options: dict) -> tuple:
    """(encoder, decoder, multiple) of a segmentation-models-pytorch architecture, its last upsampling left to us."""
    import segmentation_models_pytorch as smp

    model = smp.create_model(arch, f"tu-{encoder}", encoder_weights=pretrained or None, classes=channels, **options)
    if arch == "dpt":
        model.encoder.model.norm = nn.Identity()  # stands behind the features, would never be trained
    head = model.segmentation_head.head if arch == "dpt" else model.segmentation_head[0]
    multiple = model.encoder.output_stride * (2 if arch == "dpt" else 1)  # dpt halves its one resolution once more
    return model.encoder, _SmpDecoder(model.decoder, head), multiple


class _SmpDecoder(nn.Module):
    """A decoder of segmentation-models-pytorch and its last convolution."""

    def __init__(self, decoder: nn.Module, head: nn.Module):
        super().__init__()
        self.decoder = decoder
        self.head = head

    def forward(self, features: list[torch.Tensor] | tuple[list[torch.Tensor], list[torch.Tensor]]) -> torch.Tensor:
        return self.head(self.decoder(*features) if isinstance(features, tuple) else self.decoder(features))


def _resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def _check(what: str, value, known: Sequence) -> None:
    if value not in known:
        raise DataError(f"{what} is {value!r}: expected {' or '.join(map(repr, known))}")


def _check_pair(arch: str, encoder: str) -> None:
    """A DataError that says what works, unless this pair does, or is our decoder on another encoder of timm: that is tried."""
    import timm

    listed = encoders_of(arch)
    if encoder not in listed and not (arch == "deeplabv3plus" and timm.is_model(encoder)):
        known = dict.fromkeys(name for names in ENCODERS.values() for name in names)
        wrong = f"{arch} does not work with {encoder!r}" if encoder in known else f"no encoder is named {encoder!r}"
        raise DataError(f"{wrong}{_meant(encoder, listed)}: with {arch} work {', '.join(listed)}")


def _meant(name: str, known: Sequence) -> str:
    near = difflib.get_close_matches(name, known)
    return f"; did you mean {', '.join(near)}?" if near else ""
