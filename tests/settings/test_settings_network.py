"""The effect of the network settings."""

from collections import Counter

import pytest
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from effects import Steps, changes, tiny, trained
from runs import config
from safetensors.torch import save_file
from torch import nn

from ess.data.batches import Batch
from ess.models.build import model_from_config
from ess.models.deeplabv3plus import RATES
from ess.models.network import SegmentationModel
from ess.training.loop import optimise
from ess.training.objective import Objective

CLASSES = 9


def network(weights=None, **settings) -> SegmentationModel:
    torch.manual_seed(0)
    return model_from_config(config(**settings), CLASSES, weights=weights)


def pictures(count=2, side=64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@changes("arch", "encoder")
@pytest.mark.parametrize(
    ("arch", "encoder", "decoder"),
    [
        ("deeplabv3plus", "mobilenetv2_100", "DeepLabV3PlusDecoder"),
        ("fpn", "mobilenetv2_100", "FPNDecoder"),
        ("fpn", "resnet18", "FPNDecoder"),
    ],
)
def test_the_network_has_the_decoder_and_the_encoder(arch, encoder, decoder):
    model = network(arch=arch, encoder=encoder)
    assert decoder in {type(module).__name__ for module in model.decoder.modules()}
    with torch.device("meta"):
        plain = timm.create_model(encoder, features_only=True)
    assert Counter(p.shape for p in model.encoder.parameters()) == Counter(p.shape for p in plain.parameters())


@changes("weights")
def test_the_encoder_begins_with_the_weights(dataset, tmp_path, monkeypatch):
    torch.manual_seed(5)
    whole = timm.create_model("mobilenetv2_100")
    file = str(tmp_path / "encoder.safetensors")
    save_file(whole.state_dict(), file)
    given, taken = whole.state_dict(), network(weights=file).encoder.state_dict()
    assert len(taken) > 200 and all(torch.equal(taken[name], given[name]) for name in taken)

    Steps(monkeypatch)
    asked = []
    monkeypatch.setattr("ess.training.loop.model_from_config", lambda *a, weights: asked.append(weights) or tiny(*a))
    for number, wanted in enumerate(("none", "imagenet", file)):
        trained(dataset, tmp_path / str(number), weights=wanted, steps=1)
    trained(dataset, tmp_path / "1", weights="imagenet", steps=2, resume=True)
    assert asked == [None, "imagenet", file, None]


@changes("output_stride")
@pytest.mark.parametrize("stride", [8, 16])
def test_the_encoder_has_the_output_stride_and_the_decoder_its_rates(stride):
    model = network(output_stride=stride)
    assert model.encoder(pictures())[-1].shape[-2:] == (64 // stride, 64 // stride)
    assert tuple(branch[0].dilation[0] for branch in model.decoder.aspp.branches[1:]) == RATES[stride]
    assert model.padded(17) == {8: 24, 16: 32}[stride]


@changes("features")
@pytest.mark.parametrize(("features", "sides"), [(None, [8, 4, 2]), ("4,32", [16, 2])])
def test_the_linear_decoder_reads_the_features(features, sides):
    model = network(arch="linear", features=features).eval()
    assert [each.shape[-1] for each in model.encode(pictures())] == sides
    assert model.decoder(model.encode(pictures())).shape[-1] == sides[0]


@changes("norm")
@pytest.mark.parametrize(("norm", "layer"), [("batch", nn.BatchNorm2d), ("group", nn.GroupNorm)])
def test_the_decoder_has_the_norm(norm, layer):
    model = network(norm=norm)
    kinds = Counter(type(m) for m in model.decoder.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm))
    assert [*kinds] == [layer] and kinds[layer] == 8
    assert not any(isinstance(m, nn.GroupNorm) for m in model.encoder.modules())


@changes("encoder_bn_momentum")
@pytest.mark.parametrize("momentum", [0.01, 0.3])
def test_batch_norm_of_the_encoder_moves_by_its_momentum(momentum):
    model = network(encoder_bn_momentum=momentum).train()
    layers = {
        part: [m for m in getattr(model, part).modules() if isinstance(m, nn.BatchNorm2d)] for part in ("encoder", "decoder")
    }
    means = {}
    for layer in (layers["encoder"][0], layers["encoder"][-1], layers["decoder"][-1]):
        layer.register_forward_pre_hook(lambda module, inputs: means.update({module: inputs[0].detach().mean(dim=(0, 2, 3))}))
    model(pictures())
    for layer, mean in means.items():
        expected = mean * (0.1 if layer in layers["decoder"] else momentum)  # starting from 0
        torch.testing.assert_close(layer.running_mean, expected, rtol=1e-4, atol=1e-6)
    assert len(means) == 3


@changes("freeze_bn")
@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_of_the_encoder_learns_and_counts_unless_it_is_frozen(frozen):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objective = Objective(model, config(freeze_bn=frozen, loss="exact", distance="cosine")).train()
    labels = torch.arange(2 * 64 * 64).view(2, 64, 64) % CLASSES
    batch = Batch((pictures() * 50 + 120).clamp(0, 255).byte(), labels, torch.arange(2))
    optimise(Accelerator(cpu=True), objective, torch.optim.SGD(model.parameters(), lr=1.0), batch)
    still = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    norms = {name for name in before if name.startswith("encoder.") and "bn" in name}
    assert len(norms) > 200
    assert still == (norms if frozen else set())


@changes("dropout")
@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.1), (0.0, 0.0), (0.6, 0.6)])
def test_the_decoder_drops_the_given_share(dropout, expected):
    model = tiny(config(), CLASSES)
    model.encoder.append(nn.Dropout(0.3))
    Objective(model, config(dropout=dropout)).train()
    for layer, share in ((model.decoder[2], expected), (model.encoder[3], 0.3)):
        kept = layer(torch.ones(1, 100, 10, 10))
        assert (kept == 0).float().mean() == pytest.approx(share, abs=0.03)
        assert kept.max() == pytest.approx(1 / (1 - share))
    assert network().decoder.aspp.project[1].p == 0.1


@changes("dim")
@pytest.mark.parametrize("dim", [12, 5])
def test_embeddings_have_the_given_length(dim):
    model = network(dim=dim).eval()
    assert model(pictures()).shape == (2, dim, 64, 64) and model.classes().shape == (CLASSES, dim)


@changes("normalize")
@pytest.mark.parametrize("normalize", ["full", "quarter", "none"])
def test_embeddings_become_unit_vectors_at_the_given_resolution(normalize):
    model, decoded = network(normalize=normalize).eval(), []
    model.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    embeddings, learned = model(pictures()), model.class_embeddings
    raw = decoded[0] / decoded[0].norm(dim=1, keepdim=True) if normalize == "quarter" else decoded[0]
    expected = F.interpolate(raw, size=(64, 64), mode="bilinear", align_corners=False)
    expected = expected / expected.norm(dim=1, keepdim=True) if normalize == "full" else expected
    torch.testing.assert_close(embeddings, expected)
    torch.testing.assert_close(model.classes(), learned if normalize == "none" else learned / learned.norm(dim=1, keepdim=True))
