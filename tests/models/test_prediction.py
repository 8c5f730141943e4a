"""Networks prepared for prediction: outputs, what is folded, and what must not be."""

import copy

import pytest
import torch
from torch import nn

from ess.models.build import build_model
from ess.models.network import SegmentationModel
from ess.models.prediction import for_prediction

CPU = torch.device("cpu")


def trained(model):
    """The model with the statistics and the weights of BatchNorm that some training might have left."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def toy(encoder):
    return trained(SegmentationModel(encoder, nn.Conv2d(8, 3, 1), classes=5, dim=3))


class ReadTwice(nn.Module):
    """Something else reads the output of the convolution."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Standardized(nn.Conv2d):
    """Its weights are not the ones that it stores."""

    def forward(self, input):
        return self._conv_forward(input, self.weight / self.weight.std(), self.bias)


class Shared(nn.Module):
    """One convolution before two normalisations."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x))


@pytest.mark.parametrize(
    ("arch", "encoder", "left"),
    [
        ("deeplabv3plus", "resnet50", 0),
        ("deeplabv3plus", "efficientnet_b0", 0),
        ("unet", "densenet121", 62),  # normalises sums and concatenations, too
        ("linear", "resnet18", 1),  # normalises features
        ("pan", "resnet18", 0),
        ("upernet", "swin_tiny_patch4_window7_224", 0),
    ],
)
def test_the_outputs_stay_and_batch_norm_goes(arch, encoder, left):
    torch.manual_seed(0)
    model = trained(build_model(arch, encoder, classes=20, dim=6))
    before = copy.deepcopy(model.state_dict())
    folded = for_prediction(model, CPU)
    assert norms(model) > norms(folded) == left
    images = torch.randn(2, 3, 61, 83)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "encoder", [ReadTwice(), Shared(), nn.Sequential(Standardized(3, 8, 3, padding=1), nn.BatchNorm2d(8))], ids=str
)
def test_what_cannot_be_folded_stays(encoder):
    model = toy(encoder)
    assert for_prediction(model, CPU) is model and norms(model)


def test_a_normalisation_alone_stays_and_its_neighbour_goes():
    model = toy(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)))
    folded = for_prediction(model, CPU)
    assert [type(module).__name__ for module in folded.encoder] == [
        "BatchNorm2d",
        "Conv2d",
        "Sequential",
        "ReLU",
        "BatchNorm2d",
    ]
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model(images))


def test_a_network_without_batch_norm_is_not_copied():
    model = build_model("segformer", "swin_tiny_patch4_window7_224", classes=5, dim=3, norm="group")
    assert not norms(model) and for_prediction(model, CPU) is model and not model.training


def test_no_hook_is_left_behind():
    model = toy(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    for each in (model, for_prediction(model, CPU)):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in each.modules())
