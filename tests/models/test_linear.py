"""Linear evaluation: the decoder against its formula, the features against timm, refusals, and real weights."""

import os
from pathlib import Path

import cv2
import pytest
import timm
import torch
import torch.nn.functional as F

from cocolvis.errors import DataError
from ess.data.transforms import normalize
from ess.models.build import build_model

BROWN_BEAR = 294
"""The class of ImageNet-1k."""


def test_the_decoder_is_its_formula_on_the_features_that_timm_gives():
    torch.manual_seed(0)
    model = build_model("linear", "resnet18", classes=9, dim=5, features="32,8", normalize=None).eval()
    norm, head = model.decoder.norm, model.decoder.head
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    plain = timm.create_model("resnet18", features_only=True, out_indices=(2, 4)).eval()
    plain.load_state_dict({name.removeprefix("model."): tensor for name, tensor in model.encoder.state_dict().items()})
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        fine, coarse = plain(images)
        both = torch.cat([fine, F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)], dim=1)
        normed = (both - norm.running_mean.view(-1, 1, 1)) / (norm.running_var.view(-1, 1, 1) + norm.eps).sqrt()
        expected = torch.einsum("bchw,dc->bdhw", normed, head.weight[:, :, 0, 0]) + head.bias.view(-1, 1, 1)
        torch.testing.assert_close(model.decoder(model.encode(images)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(model.encode(images), (64, 96)), model(images))


def test_a_plain_transformer_gives_its_last_block_or_the_chosen_ones():
    torch.manual_seed(0)
    model = build_model("linear", "vit_tiny_patch16_224", classes=9, dim=5).eval()
    chosen = build_model("linear", "vit_tiny_patch16_224", classes=9, dim=5, features="3,12").eval()
    chosen.encoder.load_state_dict(model.encoder.state_dict())
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict({name.removeprefix("model."): tensor for name, tensor in model.encoder.state_dict().items()})
    images = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        last = plain.forward_features(images)[:, 1:].transpose(1, 2).view(1, 192, 2, 3)
        third = plain.norm(plain.forward_intermediates(images, indices=[2], norm=False, output_fmt="NLC")[1][0])
        (found,), both = model.encoder(images), chosen.encoder(images)
    torch.testing.assert_close(found, last)
    torch.testing.assert_close(both[1], last)
    torch.testing.assert_close(both[0].flatten(2).transpose(1, 2), third)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": "8,64"}, "features is '8,64': resnet18 has features at strides 2, 4, 8, 16, 32; expected some of these"),
        ({"features": "8;16"}, "features is '8;16': resnet18 has features at strides"),
        ({"encoder": "vit_tiny_patch16_224", "features": "0"}, "features is '0': vit_tiny_patch16_224 has blocks 1 to 12"),
        ({"arch": "fpn", "features": "8"}, "features is '8', but arch is 'fpn': only arch linear can choose its features"),
    ],
)
def test_features_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        build_model(**{"arch": "linear", "encoder": "resnet18"} | arguments)


@pytest.mark.parametrize("features", [None, *(pytest.param(each, marks=pytest.mark.long) for each in ("4", "8,32"))])
def test_no_layer_of_an_hrnet_is_left_without_a_gradient(features):
    with torch.device("meta"):
        model = build_model("linear", "hrnet_w18", classes=9, dim=5, features=features)
        (model(torch.empty(1, 3, 61, 83)).mean() + model.classes().mean()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_real_weights_see_what_is_in_a_real_picture():
    """From our encoder's features of a bear, timm's classifier concludes that it is a brown bear."""
    file, data = os.environ.get("COCOLVIS_REAL_WEIGHTS"), os.environ.get("COCOLVIS_REAL_DATA")
    if not (file and data):
        pytest.skip("no real weights: set COCOLVIS_REAL_WEIGHTS to those of tf_efficientnet_lite0, and COCOLVIS_REAL_DATA")
    picture = cv2.imread(str(Path(data) / "coco" / "val2017" / "000000000285.jpg"), cv2.IMREAD_IGNORE_ORIENTATION | 1)
    if picture is None:
        pytest.skip("the real data has no picture 000000000285")
    model = build_model("linear", "tf_efficientnet_lite0", classes=9, features="32", weights=file).eval()
    whole = timm.create_model("tf_efficientnet_lite0", pretrained_cfg_overlay={"file": file}, pretrained=True).eval()
    pixels = torch.from_numpy(cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA)[..., ::-1].copy())
    with torch.no_grad():
        (features,) = model.encode(normalize(pixels.permute(2, 0, 1)[None]))
        scores = whole.forward_head(whole.bn2(whole.conv_head(features))).softmax(1)[0]
    assert scores.argmax() == BROWN_BEAR and scores.max() > 0.5
