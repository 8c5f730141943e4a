"""All pairs of architecture and encoder; image sizes, normalisation, parameter groups, refusals, and weights offline."""

from dataclasses import replace

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from cocolvis.errors import DataError
from ess.config import Config
from ess.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ess.models.build import build_model, model_from_config
from ess.models.encoders import ENCODERS, pairs, pretrained_tags
from ess.models.network import SegmentationModel

SMALL = "resnet18"
QUICK = [("deeplabv3plus", e) for e in ("mobilenetv2_100", "resnet50", "efficientnet_b0", "convnext_tiny")]
QUICK += [(arch, SMALL) for arch in ENCODERS if arch not in ("deeplabv3plus", "dpt")]
QUICK += [("unet", "swin_tiny_patch4_window7_224"), ("segformer", "pvt_v2_b0"), ("upernet", "swinv2_tiny_window8_256")]
QUICK += [("dpt", "vit_small_patch14_dinov2"), ("upernet", "vit_tiny_patch16_224"), ("segformer", "vit_small_patch16_dinov3")]
QUICK += [("linear", "vit_tiny_patch16_224"), ("linear", "swin_tiny_patch4_window7_224"), ("fpn", "tf_efficientnet_lite0")]

SMALLEST = ["mobilenetv2_100", "mobilenetv3_large_100", "efficientnet_b0", SMALL, "resnet50", "resnext50_32x4d", "resnest50d"]
SMALLEST += ["tf_efficientnet_lite0"]
SMALLEST += ["regnety_008", "convnext_tiny", "convnextv2_tiny", "hrnet_w18", "densenet121", "swin_tiny_patch4_window7_224"]
SMALLEST += ["swinv2_tiny_window8_256", "pvt_v2_b0", "deit_tiny_patch16_224", "deit3_small_patch16_224", "vit_tiny_patch16_224"]
SMALLEST += ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3", "eva02_small_patch14_336"]
"""The smallest encoder of each family. The same code builds the larger ones."""


@pytest.fixture(scope="module")
def small() -> SegmentationModel:
    torch.manual_seed(0)
    return build_model("fpn", SMALL, classes=20, dim=6).eval()


def assert_pair_works(arch, encoder):
    """Shapes, unit length, a gradient for every parameter, any image size, and a state dict that restores the model."""
    torch.manual_seed(0)
    model = build_model(arch, encoder, classes=20, dim=6).train()
    output = model(torch.randn(2, 3, 64, 64))
    assert output.shape == (2, 6, 64, 64)
    torch.testing.assert_close(output.norm(dim=1), torch.ones(2, 64, 64))
    (output[:, 0].mean() + model.classes()[:, 0].mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    images = torch.randn(1, 3, 61, 83)
    with torch.no_grad():
        output = model.eval()(images)
        assert output.shape == (1, 6, 61, 83)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for value in model.state_dict().values():
            value.zero_()
        assert not torch.equal(model(images), output)
        model.load_state_dict(state)
        assert torch.equal(model(images), output)
    assert model.predict(images).shape == (1, 61, 83)


def assert_structure_works(arch, encoder):
    """Shapes and gradients at odd image sizes on the meta device, where no numbers are computed."""
    with torch.device("meta"):
        model = build_model(arch, encoder, classes=20, dim=6)
        for size in ((13, 9), (61, 83)):
            output = model(torch.empty(2, 3, *size))
            assert output.shape == (2, 6, *size)
        (output.mean() + model.classes().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert len(model.state_dict()) >= len(list(model.parameters()))


@pytest.mark.parametrize(("arch", "encoder"), QUICK)
def test_pair(arch, encoder):
    assert (arch, encoder) in pairs()
    assert_pair_works(arch, encoder)


@pytest.mark.long
@pytest.mark.parametrize(("arch", "encoder"), [pair for pair in pairs() if pair[1] in SMALLEST])
def test_every_architecture_with_the_smallest_of_every_family(arch, encoder):
    assert_pair_works(arch, encoder)


@pytest.mark.long
@pytest.mark.parametrize(("arch", "encoder"), pairs())
def test_the_structure_of_every_pair(arch, encoder):
    assert_structure_works(arch, encoder)


LARGE = "vit_large_patch14_reg4_dinov2.lvd142m"


@pytest.mark.parametrize(("arch", "encoder"), [("upernet", LARGE), ("dpt", LARGE), ("pspnet", "pvt_v2_b0")])
def test_the_structure_of_pairs_with_demands(arch, encoder):
    assert_structure_works(arch, encoder)


def test_every_encoder_gets_the_statistics_that_its_weights_were_trained_with():
    pixels = torch.rand(1, 3, 8, 8)
    others = {}
    for encoder in dict.fromkeys(encoder for _, encoder in pairs()):
        cfg = timm.get_pretrained_cfg(encoder)
        model = SegmentationModel(nn.Identity(), nn.Identity(), 2, None, multiple=1, mean=cfg.mean, std=cfg.std)
        assert model.state_dict() == {}
        assert pretrained_tags(encoder), encoder
        wanted = (pixels - torch.tensor(cfg.mean).view(3, 1, 1)) / torch.tensor(cfg.std).view(3, 1, 1)
        imagenet = (pixels - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
        torch.testing.assert_close(model(imagenet), wanted)
        if model.scale is not None:
            others[encoder] = cfg.mean
    assert {name[:4] for name in others} == {"vit_", "eva0", "tf_e"} and others["vit_tiny_patch16_224"] == (0.5, 0.5, 0.5)


def test_a_built_model_has_the_statistics_of_its_tag():
    def scale(encoder):
        with torch.device("meta"):
            return build_model("upernet", encoder, classes=5).scale

    assert scale("convnext_base.clip_laion2b").shape == (3, 1, 1)
    assert scale("vit_base_patch16_224.dino") is None


@pytest.mark.parametrize(("arch", "encoder"), [("deeplabv3plus", SMALL), ("pan", SMALL), ("dpt", "deit_tiny_patch16_224")])
@pytest.mark.parametrize("head", ["embedding", "dense"])
def test_any_size(arch, encoder, head):
    model = build_model(arch, encoder, classes=20, dim=6, head=head).eval()
    images = torch.randn(1, 3, 61, 83)
    with torch.no_grad():
        output = model(images)
        assert output.shape == (1, 6 if head == "embedding" else 20, 61, 83)
        prediction = model.predict(images)
    assert prediction.shape == (1, 61, 83) and prediction.dtype == torch.int64
    scores = output if head == "dense" else -torch.cdist(output[0].flatten(1).T, model.classes()).T.view(1, 20, 61, 83)
    assert (prediction == scores.argmax(dim=1)).float().mean() > 0.999


def test_padding_is_at_the_bottom_and_the_right(small):
    images = torch.randn(1, 3, 61, 83)
    padded = torch.zeros(1, 3, 64, 96)
    padded[:, :, :61, :83] = images
    with torch.no_grad():
        torch.testing.assert_close(small(images), small(padded)[:, :, :61, :83])


def test_normalize_modes(small):
    images = torch.randn(2, 3, 64, 64)
    outputs = {}
    with torch.no_grad():
        for small.normalize in (None, "quarter", "full"):
            outputs[small.normalize] = small(images)
            lengths = small.classes().norm(dim=1)
            assert torch.allclose(lengths, torch.ones(20)) == (small.normalize is not None)
        raw = small.decoder(small.encoder(images))
    assert raw.shape[-2:] == (16, 16)
    up = {"size": (64, 64), "mode": "bilinear", "align_corners": False}
    unit = raw / raw.norm(dim=1, keepdim=True)
    torch.testing.assert_close(outputs[None], nn.functional.interpolate(raw, **up))
    torch.testing.assert_close(outputs["quarter"], nn.functional.interpolate(unit, **up))
    torch.testing.assert_close(outputs["full"].norm(dim=1), torch.ones(2, 64, 64))
    assert outputs["quarter"].norm(dim=1).min() < 0.999


def test_prediction_uses_the_distance_of_the_model():
    images = torch.rand(1, 3, 4, 4) + 1
    model = SegmentationModel(nn.Identity(), nn.Identity(), 2, 3, normalize=None, multiple=1)
    model.class_embeddings.data = torch.tensor([[1.5, 1.5, 1.5], [9.0, 9.0, 9.0]])
    assert (model.predict(images) == 0).all()
    model.distance = "cosine"
    assert (model.predict(images) == 1).all()


def test_class_embeddings_start_uniform():
    e = SegmentationModel(nn.Identity(), nn.Identity(), 1284, 12).class_embeddings
    assert e.shape == (1284, 12) and -1 <= e.min() < -0.99 and 0.99 < e.max() <= 1 and abs(e.mean()) < 0.02


@pytest.mark.parametrize("head", ["embedding", "dense"])
def test_groups_hold_every_parameter_once(head):
    model = build_model("fpn", SMALL, classes=20, dim=6, head=head)
    groups = model.parameter_groups()
    assert list(groups) == ["encoder", "decoder", "classes"]
    held = [id(p) for group in groups.values() for p in group]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(groups["classes"]) == (head == "embedding")
    assert groups["encoder"][0].shape == (64, 3, 7, 7)
    if head == "dense":
        with pytest.raises(ValueError, match="no class embeddings"):
            model.classes()


@pytest.mark.parametrize("arch", ["deeplabv3plus", "fpn", "unet"])
def test_norms(arch):
    def norms(module, kind):
        return [m for m in module.modules() if isinstance(m, kind)]

    batch, group = (build_model(arch, SMALL, classes=20, norm=norm) for norm in ("batch", "group"))
    assert {m.momentum for m in norms(batch.encoder, nn.BatchNorm2d)} == {0.01}
    assert {m.momentum for m in norms(batch.decoder, nn.BatchNorm2d)} <= {0.1}
    assert not norms(group.decoder, nn.BatchNorm2d) and norms(group.encoder, nn.BatchNorm2d)
    assert group.train()(torch.randn(1, 3, 64, 64)).isfinite().all()
    if arch == "deeplabv3plus":
        assert {(m.num_groups, m.num_channels) for m in norms(group.decoder, nn.GroupNorm)} == {(32, 256), (16, 48)}


@pytest.mark.parametrize("arch", ["deeplabv3plus", "upernet"])
def test_batch_norm_behind_image_pooling_wants_two_images(arch):
    model = build_model(arch, SMALL, classes=20).train()
    with pytest.raises(DataError, match=r"batch size 1 .* norm 'group'"):
        model(torch.randn(1, 3, 64, 64))
    assert build_model(arch, SMALL, classes=20, norm="group").train()(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize(("output_stride", "rates"), [(16, (6, 12, 18)), (8, (12, 24, 36))])
def test_deeplabv3plus_is_the_published_one(output_stride, rates):
    model = build_model("deeplabv3plus", SMALL, classes=1284, head="dense", output_stride=output_stride).eval()
    with torch.no_grad():
        low, high = model.encoder(torch.randn(1, 3, 64, 64))
        assert low.shape[1:] == (64, 16, 16) and high.shape[1:] == (512, 64 // output_stride, 64 // output_stride)
        assert model.decoder([low, high]).shape == (1, 1284, 16, 16)
    convs = [m for m in model.decoder.aspp.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.kernel_size[0], c.dilation[0], c.groups) for c in convs if c.kernel_size[0] == 3] == [(3, r, 1) for r in rates]
    shapes = [
        tuple(m.weight.shape)
        for m in (*model.decoder.skip, *model.decoder.head[0], model.decoder.head[1])
        if hasattr(m, "bias")
    ]
    assert shapes == [(48, 64, 1, 1), (48,), (256, 304, 3, 3), (256,), (1284, 256, 1, 1)]


def test_mixed_precision_gives_unit_float32(small):
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = small(torch.randn(1, 3, 64, 64))
    assert output.dtype == torch.float32
    torch.testing.assert_close(output.norm(dim=1), torch.ones(1, 64, 64))


def test_model_from_config():
    config = Config(arch="fpn", encoder=SMALL, dim=5, normalize="none", distance="cosine", norm="group")
    model = model_from_config(config, 7, weights=None)
    assert (tuple(model.class_embeddings.shape), model.normalize, model.distance) == ((7, 5), None, "cosine")
    dense = model_from_config(replace(config, loss="dense", normalize="full"), 7, weights=None)
    assert dense.class_embeddings is None and dense.normalize == "full"


def test_our_decoder_takes_encoders_of_timm_that_no_table_lists():
    assert "resnet26" not in ENCODERS["deeplabv3plus"]
    model = build_model(encoder="resnet26", classes=5, dim=3).eval()
    assert model(torch.zeros(1, 3, 33, 47)).shape == (1, 3, 33, 47)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "deeplabv3"}, "no architecture is named 'deeplabv3': expected one of .*unet.*; did you mean deeplabv3plus"),
        (
            {"encoder": "resnet5"},
            r"no encoder is named 'resnet5': deeplabv3plus works with mobilenetv2_100, .*; did you mean resnet50.*\?$",
        ),
        ({"encoder": "deit_tiny_patch16_224"}, "deeplabv3plus does not work with 'deit_tiny_patch16_224'"),
        (
            {"encoder": "vgg11"},
            "deeplabv3plus does not work with 'vgg11': it has no features at strides 4 and 16 .* works with mobilenetv2",
        ),
        ({"arch": "dpt"}, "dpt does not work with 'resnet50': dpt works with deit_tiny"),
        (
            {"encoder": "resnet50.a1_in2k"},
            r"resnet50 has no weights tagged 'a1_in2k': there are a1_in1k, .*; did you mean .*a1_in1k.*\?$",
        ),
        ({"encoder": "resnet5.a1_in1k"}, "no encoder is named 'resnet5.a1_in1k': .*; did you mean resnet50"),
        ({"head": "linear"}, "head is 'linear': expected 'embedding' or 'dense'"),
        ({"norm": "layer"}, "norm is 'layer': expected 'batch' or 'group'"),
        ({"normalize": "half"}, "normalize is 'half': expected 'full' or 'quarter' or None"),
        ({"output_stride": 32}, "output_stride is 32: expected 16 or 8"),
        ({"distance": "l1"}, "distance is 'l1'"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(DataError, match=message) as refusal:
        build_model(**arguments)
    assert "\n" not in str(refusal.value)


@pytest.fixture
def unreachable(monkeypatch):
    """A hub client with an empty cache and no network."""

    def fail(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *a, **k: pytest.fail("downloads though the hub is out of reach")
    )


@pytest.mark.parametrize(("arch", "encoder"), [("deeplabv3plus", SMALL), ("dpt", "deit_tiny_patch16_224")])
def test_imagenet_weights_out_of_reach_are_reported_without_a_download(arch, encoder, unreachable):
    with pytest.raises(DataError) as refusal:
        build_model(arch, encoder, weights="imagenet")
    for part in (f"timm/{encoder}", str(huggingface_hub.constants.HF_HUB_CACHE), "--weights none", "--weights FILE"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)


def whole_model(encoder):
    torch.manual_seed(5)
    return timm.create_model(encoder).state_dict()


LOADABLE = [
    ("deeplabv3plus", SMALL, "layer4.1.conv2.weight"),
    ("deeplabv3plus", "mobilenetv2_100", "blocks.6.0.conv_pwl.weight"),
    ("upernet", "convnext_tiny", "stages.3.blocks.2.conv_dw.weight"),
    ("segformer", "swin_tiny_patch4_window7_224", "layers.3.blocks.1.mlp.fc2.weight"),
    ("dpt", "deit_tiny_patch16_224", "blocks.11.mlp.fc2.weight"),
    ("upernet", "convnextv2_tiny.fcmae", "stages.3.blocks.2.conv_dw.weight"),
    ("upernet", "swinv2_tiny_window8_256", "layers.3.blocks.1.mlp.fc2.weight"),
    ("dpt", "vit_small_patch14_reg4_dinov2.lvd142m", "pos_embed"),
    ("segformer", "vit_small_patch16_dinov3.lvd1689m", "blocks.11.attn.qkv.weight"),
]


@pytest.mark.parametrize(("arch", "encoder", "name"), LOADABLE)
def test_weights_of_a_file_arrive(arch, encoder, name, tmp_path):
    state = whole_model(encoder)
    classifier = timm.get_pretrained_cfg(encoder).classifier
    without = {k: v for k, v in state.items() if not k.startswith(classifier)}
    safetensors.torch.save_file(without, tmp_path / "w.safetensors")
    model = build_model(arch, encoder, classes=20, weights=tmp_path / "w.safetensors")
    assert any(p.shape == state[name].shape and torch.equal(p, state[name]) for p in model.encoder.parameters())


def test_weights_of_the_cache_and_of_torch_files_arrive(tmp_path, monkeypatch):
    state = whole_model(SMALL)
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    cached = {("timm/resnet18.a1_in1k", "model.safetensors"): str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: cached[repo, file])
    for weights in ("imagenet", tmp_path / "w.pth"):
        model = build_model("fpn", SMALL, classes=20, weights=weights)
        assert torch.equal(model.encoder.model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_position_embeddings_of_another_size_are_resized(tmp_path):
    state = whole_model("deit_tiny_patch16_224")
    smooth = torch.linspace(0, 1, 14).view(1, 1, 14, 1).expand(1, 14, 14, 192).reshape(1, 196, 192)
    state["pos_embed"] = torch.cat([torch.full((1, 1, 192), 5.0), smooth], dim=1)
    larger = timm.create_model("deit_tiny_patch16_224", img_size=384).state_dict() | {"head.weight": torch.ones(7, 192)}
    larger["pos_embed"] = timm.layers.resample_abs_pos_embed(state["pos_embed"], [24, 24], num_prefix_tokens=1)
    safetensors.torch.save_file(larger, tmp_path / "384.safetensors")
    model = build_model("dpt", "deit_tiny_patch16_224", classes=20, weights=tmp_path / "384.safetensors")
    torch.testing.assert_close(model.encoder.model.pos_embed, state["pos_embed"], atol=0.03, rtol=0)
    assert torch.equal(model.encoder.model.blocks[3].mlp.fc1.weight, larger["blocks.3.mlp.fc1.weight"])


def test_the_names_of_the_project_that_trained_the_weights_are_understood(tmp_path):
    """DINOv2's own file has "mask_token" and "register_tokens", and a class token in its position embedding."""
    state = timm.create_model("vit_small_patch14_reg4_dinov2").state_dict()
    theirs = {name: value for name, value in state.items() if name not in ("reg_token", "pos_embed")}
    theirs |= {"register_tokens": state["reg_token"], "mask_token": torch.zeros(1, 384)}
    theirs["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), state["pos_embed"]], dim=1)
    torch.save(theirs, tmp_path / "dinov2.pth")
    model = build_model("dpt", "vit_small_patch14_reg4_dinov2", classes=20, weights=tmp_path / "dinov2.pth")
    for name in ("pos_embed", "reg_token", "blocks.7.ls1.gamma"):
        assert torch.equal(model.encoder.model.get_parameter(name), state[name]), name


def test_weights_that_do_not_fit_are_refused(tmp_path):
    def refuse(message, state=None, path=tmp_path / "w.safetensors"):
        if state is not None:
            safetensors.torch.save_file(state, path)
        with pytest.raises(DataError, match=message) as refusal:
            build_model("fpn", SMALL, weights=str(path))
        assert "\n" not in str(refusal.value)

    state = whole_model(SMALL)
    refuse("lacks 2 .* resnet18: bn1.bias, bn1.weight", {k: v for k, v in state.items() if k not in ("bn1.bias", "bn1.weight")})
    refuse("has unknown 1 .*: extra", state | {"extra": torch.ones(1)})
    refuse("has other shapes of 1 .*: bn1.bias", state | {"bn1.bias": torch.ones(3)})
    with pytest.raises(DataError, match=r"lacks .* vit_small_patch14_dinov2: blocks"):
        build_model("dpt", "vit_small_patch14_dinov2", weights=tmp_path / "w.safetensors")
    refuse("lacks 1", {k: v for k, v in whole_model("resnet34").items() if k != "conv1.weight"})
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    refuse("cannot be read as weights", path=tmp_path / "bad.safetensors")
    torch.save({"f": Config}, tmp_path / "code.pth")
    refuse("cannot be read as weights", path=tmp_path / "code.pth")
    refuse("no such weights file", path=tmp_path / "nothing.safetensors")
