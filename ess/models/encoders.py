"""The encoders, the decoders that work with each, and the facts that timm provides about their weights."""

from typing import TYPE_CHECKING, Any

from cocolvis.errors import DataError
from cocolvis.text import did_you_mean

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "resnest50d", "regnety_008")
_CONVNEXTS = tuple(f"convnext{name}" for name in ("_tiny", "_small", "_base", "_large", "v2_tiny", "v2_base", "v2_large"))
_LITES = tuple(f"tf_efficientnet_lite{size}" for size in range(5))
_MOBILE = ("mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", "efficientnet_b3", *_LITES)
_DILATED = (*_MOBILE, *_RESNETS, *_CONVNEXTS)  # support an output stride below 32
_SWINS = tuple(f"swin_{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large"))
_SWINS += ("swinv2_tiny_window8_256", "swinv2_small_window8_256")
_SWINS += ("swinv2_base_window12to16_192to256", "swinv2_large_window12to16_192to256")
_PYRAMIDS = ("densenet121", *_SWINS, "pvt_v2_b0", "pvt_v2_b2")
_STAGED = (*_DILATED, "hrnet_w18", *_PYRAMIDS)
PLAIN = tuple(f"deit_{size}_patch16_224" for size in ("tiny", "small", "base"))  # all blocks have one resolution
PLAIN += tuple(f"deit3_{size}_patch16_224" for size in ("small", "base", "large"))
PLAIN += tuple(f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large"))
PLAIN += tuple(
    f"vit_{size}_{kind}"
    for kind in ("patch14_dinov2", "patch14_reg4_dinov2", "patch16_dinov3")
    for size in ("small", "base", "large")
)
PLAIN += ("eva02_small_patch14_336", "eva02_base_patch14_448", "eva02_large_patch14_448")

ENCODERS = {
    "deeplabv3plus": _DILATED,
    "unet": _STAGED,
    "unetplusplus": _STAGED,
    "manet": _STAGED,
    "linknet": _STAGED,
    "fpn": _STAGED,
    "upernet": (*_STAGED, *PLAIN),
    "segformer": (*_STAGED, *PLAIN),
    "pspnet": (*_RESNETS, *_CONVNEXTS, *_PYRAMIDS),  # parts of the others would stay unused
    "pan": _DILATED,
    "dpt": PLAIN,
    "linear": (*_STAGED, *PLAIN),
}
"""Architecture -> the timm encoders it works with. A name may carry one of the encoder's tags ("convnext_tiny.fb_in22k").

"deeplabv3plus" is :mod:`ess.models.deeplabv3plus`, which also accepts any other timm encoder with features at stride 4 and at
the output stride. "linear" is :mod:`ess.models.linear`. The others are the decoders of segmentation-models-pytorch.
"""

OPTIONS = {name: {"strict_img_size": False} for name in _SWINS}
"""Encoder -> the options of timm that let it accept images of any size."""


def pairs() -> list[tuple[str, str]]:
    """Every (architecture, encoder) that :func:`ess.models.build.build_model` builds."""
    return [(arch, encoder) for arch, encoders in ENCODERS.items() for encoder in encoders]


def encoders_of(arch: str) -> tuple[str, ...]:
    """The timm encoders listed for an architecture. Raises DataError, listing all architectures, if it is unknown."""
    if arch not in ENCODERS:
        known = f"expected one of {', '.join(ENCODERS)}{did_you_mean(arch, ENCODERS)}"
        raise DataError(f"no architecture is named {arch!r}: {known}")
    return ENCODERS[arch]


def pretrained_tags(encoder: str) -> list[str]:
    """The tags of the weights that timm knows for an encoder, given without a tag. The first is timm's default."""
    import timm

    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{encoder}.*")]
    cfg = timm.get_pretrained_cfg(encoder)
    default = cfg.tag if cfg else None
    return sorted(tags, key=lambda tag: tag != default)


def decoders_of(encoder: str) -> list[str]:
    """The architectures for which an encoder, with or without a tag, is listed."""
    return [arch for arch, encoders in ENCODERS.items() if encoder.partition(".")[0] in encoders]


def describe(encoder: str) -> dict[str, Any]:
    """Facts that help to choose an encoder: parameters, strides of its features, decoders, license, and tags of its weights."""
    import timm
    import torch

    listed = list(dict.fromkeys(name for _, name in pairs()))
    name = encoder.partition(".")[0]
    if name not in listed:
        raise DataError(f"no encoder is named {encoder!r}: `ess models` lists all{did_you_mean(name, listed)}")
    cfg = check_pair(decoders_of(encoder)[0], encoder)
    with torch.device("meta"):
        model: Any = timm.create_model(encoder, num_classes=0)
    strides = sorted({info["reduction"] for info in model.feature_info})
    return {
        "encoder": encoder,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "strides": strides,
        "decoders": decoders_of(encoder),
        "license": cfg.license,
        "tags": pretrained_tags(name),
    }


def check_pair(arch: str, encoder: str) -> "PretrainedCfg":
    """Timm's description of the encoder's weights.

    Raises DataError, listing what works, unless the pair is listed. Our own decoder may be tried on any other timm encoder.
    """
    import timm

    listed = encoders_of(arch)
    name, _, tag = encoder.partition(".")
    if name not in listed and not (arch == "deeplabv3plus" and timm.is_model(name)):
        known = dict.fromkeys(name for names in ENCODERS.values() for name in names)
        wrong = f"{arch} does not work with {encoder!r}" if name in known else f"no encoder is named {encoder!r}"
        raise DataError(f"{wrong}: {arch} works with {', '.join(listed)}{did_you_mean(name, listed)}")
    if tag and tag not in pretrained_tags(name):
        tags = pretrained_tags(name)
        raise DataError(f"{name} has no weights tagged {tag!r}: there are {', '.join(tags)}{did_you_mean(tag, tags)}")
    cfg = timm.get_pretrained_cfg(encoder)
    if cfg is None:
        raise DataError(f"timm describes no weights of {encoder!r}: {arch} works with {', '.join(listed)}")
    return cfg
