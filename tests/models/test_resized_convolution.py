"""The convolution of a resized map against interpolation followed by PyTorch's convolution."""

import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from ess.models.build import build_model
from ess.models.deeplabv3plus import DeepLabV3PlusDecoder
from ess.models.resized_convolution import resized_convolution

SIZES = [((5, 7), (20, 28)), ((9, 9), (33, 33)), ((6, 4), (12, 8)), ((1, 1), (4, 3)), ((3, 5), (3, 5)), ((8, 9), (5, 4))]


def in_two_steps(maps, weight, size):
    resized = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return F.conv2d(resized, weight, padding=weight.shape[-1] // 2)


@pytest.mark.parametrize("taps", [1, 3, 5])
@pytest.mark.parametrize(("before", "size"), SIZES)
def test_the_map_and_both_gradients_are_those_of_two_steps(before, size, taps):
    torch.manual_seed(0)
    maps = torch.randn(2, 6, *before, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 6, taps, taps, dtype=torch.float64, requires_grad=True)
    found, expected = resized_convolution(maps, weight, size), in_two_steps(maps, weight, size)
    torch.testing.assert_close(found, expected)
    gradient = torch.randn_like(expected)
    gradients = [torch.autograd.grad(result, (maps, weight), gradient) for result in (found, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_errors_are_about_those_of_two_steps(dtype, memory_format):
    torch.manual_seed(0)
    maps, weight = torch.randn(1, 64, 9, 9).to(dtype), torch.randn(64, 64, 3, 3).to(dtype)
    exact = in_two_steps(maps.double(), weight.double(), (33, 33))
    maps, weight = (value.contiguous(memory_format=memory_format) for value in (maps, weight))
    errors = [(way(maps, weight, (33, 33)) - exact).std() for way in (resized_convolution, in_two_steps)]
    assert 0 < errors[0] < 2 * errors[1]


@pytest.mark.parametrize("size", [(16, 20), (17, 19)])
def test_the_decoder_is_the_published_one(size):
    """Its block of 3 x 3 convolves the concatenated maps."""
    torch.manual_seed(0)
    decoder = DeepLabV3PlusDecoder(8, 16, 5).double().eval()
    low, high = torch.randn(2, 8, *size, dtype=torch.float64), torch.randn(2, 16, 5, 5, dtype=torch.float64)
    context = F.interpolate(decoder.aspp(high), size=size, mode="bilinear", align_corners=False)
    (conv, *rest), last = decoder.head
    maps = F.conv2d(torch.cat([decoder.skip(low), context], dim=1), conv.weight, padding=1)
    for module in (*rest, last):
        maps = module(maps)
    torch.testing.assert_close(decoder([low, high]), maps)


def test_the_weights_keep_their_names():
    names = set(build_model(encoder="resnet18", classes=5, dim=3).decoder.state_dict())
    assert {"head.0.0.weight", "head.0.1.running_mean", "head.1.weight", "head.1.bias"} <= names
    assert not any("bias" in name and name.startswith("head.0.0") for name in names)


class Resized(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 6, 3, 3))

    def forward(self, maps):
        return resized_convolution(maps, self.weight, (4 * maps.shape[2], 4 * maps.shape[3]))


def test_exported_files_take_other_sizes(tmp_path):
    torch.manual_seed(0)
    module, sizes = Resized().eval(), {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(module, (torch.randn(1, 6, 8, 12),), dynamic_shapes=(sizes,))
    torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for size in ((5, 7), (11, 9)):
        maps = torch.randn(1, 6, *size)
        (found,) = session.run(None, {session.get_inputs()[0].name: maps.numpy()})
        for other in (torch.from_numpy(found), program.module()(maps)):
            torch.testing.assert_close(other, module(maps), atol=1e-4, rtol=1e-4)
