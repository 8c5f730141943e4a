"""The fused cross entropies against definitions in float64 that make the whole pixels x classes array."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy
from ess.losses.neighbours import nearest

DISTANCES = ("euclidean", "squared", "cosine")
SHAPES = [(2, 2, 9), (31, 13, 50), (700, 256, 40), (1284, 12, 90), (5000, 3, 20)]


def problem(classes, dim, width, seed=0):
    """Embeddings (2, D, 3, W) of unit length, two of them equal to class embeddings; labels, some ignored; classes."""
    g = torch.Generator().manual_seed(seed)
    e = F.normalize(torch.randn(classes, dim, generator=g), dim=1)
    o = F.normalize(torch.randn(2, dim, 3, width, generator=g), dim=1)
    labels = torch.randint(classes, (2, 3, width), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.2] = -1
    o[0, :, 0, 0], labels[0, 0, 0] = e[1], 1
    o[1, :, 2, 1], labels[1, 2, 1] = e[0], 1
    return o, labels, e


def extras(classes, seed=1):
    g = torch.Generator().manual_seed(seed)
    return {
        "bias": torch.randn(classes, generator=g),
        "class_weight": torch.rand(classes, generator=g) + 0.1,
        "class_mask": torch.rand(2, classes, generator=g) < 0.6,
    }


def definition(o, labels, e, temperature, distance, bias=None, class_weight=None, class_mask=None):
    """The weighted loss of each pixel, (B, H, W), 0 where ignored."""
    pixels = o.permute(0, 2, 3, 1)
    if distance == "cosine":
        z = temperature * pixels @ e.T
    else:
        squares = (pixels[..., None, :] - e).square().sum(-1)
        zero = squares == 0
        roots = torch.where(zero, squares, squares.masked_fill(zero, 1).sqrt())
        z = -temperature * (squares if distance == "squared" else roots)
    z = z if bias is None else z + bias
    targets = labels.clamp_min(0)
    if class_mask is not None:
        kept = class_mask[:, None, None, :].expand_as(z).scatter(3, targets[..., None], True)
        z = z.masked_fill(~kept, -torch.inf)
    losses = z.logsumexp(3) - z.gather(3, targets[..., None]).squeeze(3)
    weight = 1 if class_weight is None else class_weight[targets]
    return losses * weight * (labels != -1)


def error(found, truth):
    return ((found.double() - truth).norm() / truth.norm().clamp_min(1e-300)).item()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("classes", "dim", "width"), SHAPES)
@pytest.mark.parametrize("names", [(), ("bias",), ("class_mask",), ("bias", "class_weight", "class_mask")])
def test_value_and_gradients_are_those_of_the_definition(classes, dim, width, distance, names):
    o, labels, e = problem(classes, dim, width)
    more = {name: value for name, value in extras(classes).items() if name in names}
    single = [x.clone().requires_grad_() for x in (o, e)]
    double = [x.double().requires_grad_() for x in (o, e)]
    wide = {name: value if name == "class_mask" else value.double() for name, value in more.items()}
    if "bias" in names:
        for tensors, settings in ((single, more), (double, wide)):
            settings["bias"] = settings["bias"].clone().requires_grad_()
            tensors.append(settings["bias"])
    found = exact_cross_entropy(
        single[0], labels, single[1], temperature=7.0, distance=distance, reduction="sum", backend="fused", **more
    )
    truth = definition(double[0], labels, double[1], 7.0, distance, **wide).sum()
    found.backward()
    truth.backward()
    assert error(found, truth) < 1e-6
    for mine, theirs in zip(single, double, strict=True):
        assert error(mine.grad, theirs.grad) < 5e-6


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_fused_and_torch_agree_in_every_reduction(distance, reduction):
    o, labels, e = problem(40, 5, 30)
    found = []
    for backend in ("fused", "torch"):
        a, b = o.clone().requires_grad_(), e.clone().requires_grad_()
        more = extras(40)
        more["bias"].requires_grad_()
        loss = exact_cross_entropy(a, labels, b, distance=distance, reduction=reduction, backend=backend, **more)
        (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape)).sum().backward()
        found.append((loss.detach(), a.grad, b.grad, more["bias"].grad))
    for mine, theirs in zip(*found, strict=True):
        assert error(mine, theirs.double()) < 5e-6


def test_mean_divides_by_the_weights():
    o, labels, e = problem(12, 4, 20)
    weight = extras(12)["class_weight"]
    expected = definition(o.double(), labels, e.double(), 20.0, "euclidean", class_weight=weight.double()).sum()
    expected /= weight.double()[labels[labels != -1]].sum()
    for backend in ("fused", "torch"):
        found = exact_cross_entropy(o, labels, e, class_weight=weight, backend=backend)
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_any_strides_and_types():
    o, labels, e = problem(50, 6, 30)
    expected = exact_cross_entropy(o, labels, e, backend="fused")
    assert torch.equal(
        exact_cross_entropy(o.to(memory_format=torch.channels_last), labels.short(), e, backend="fused"), expected
    )
    sliced = torch.cat([o, o], dim=3)[..., ::2]
    assert torch.isfinite(exact_cross_entropy(sliced, labels, e, backend="fused"))
    half = exact_cross_entropy(o.bfloat16(), labels, e.bfloat16(), backend="fused")
    assert half.item() == pytest.approx(expected.item(), rel=0.02)


def test_losses_near_zero_keep_their_digits():
    e = torch.eye(3)
    o = (e[0] * 3).view(1, 3, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.long)
    found = exact_cross_entropy(o, labels, e, temperature=10.0, distance="cosine", backend="fused")
    assert found.item() == pytest.approx(2 * torch.tensor(-30.0).double().exp().item(), rel=1e-5)


def test_nothing_counted_is_zero_with_zero_gradients():
    o, labels, e = problem(9, 4, 5)
    o.requires_grad_()
    loss = exact_cross_entropy(o, torch.full_like(labels, -1), e, backend="fused")
    loss.backward()
    assert loss.item() == 0 and not o.grad.any()


def test_refusals():
    o, labels, e = problem(9, 4, 5)
    for wrong, message in (
        ({"bias": torch.zeros(8)}, r"bias has the shape \(8,\): expected \(9,\)"),
        ({"class_weight": torch.zeros(9, 1)}, r"class_weight has the shape \(9, 1\)"),
        ({"class_mask": torch.ones(1, 9, dtype=torch.bool)}, r"class_mask has the shape \(1, 9\): expected \(2, 9\)"),
        ({"class_mask": torch.ones(2, 9)}, "class_mask is torch.float32: expected bool"),
        ({"backend": "magic"}, "backend is 'magic': expected one of auto, fused, torch"),
    ):
        with pytest.raises(ValueError, match=message):
            exact_cross_entropy(o, labels, e, **wrong)
    with pytest.raises(ValueError, match=r"no kernel for torch.float64 on cpu"):
        exact_cross_entropy(o.double(), labels, e.double(), backend="fused")


def test_compile_around_it_works():
    o, labels, e = problem(9, 4, 5)
    compiled = torch.compile(lambda a, b: exact_cross_entropy(a * 2, labels, b) * 3, backend="eager")
    assert compiled(o, e).item() == pytest.approx(3 * exact_cross_entropy(o * 2, labels, e).item(), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("classes", "dim", "width", "k"), [(2, 2, 9, 1), (31, 13, 50, 30), (1284, 12, 90, 7), (5000, 3, 300, 4)]
)
def test_among_few_the_value_and_gradients_are_those_of_torch_in_double_precision(classes, dim, width, k, distance):
    o, labels, e = problem(classes, dim, width)
    found = []
    for backend, dtype in (("fused", torch.float32), ("torch", torch.float64)):
        a, b = (x.detach().clone().to(dtype).requires_grad_() for x in (o, e))
        loss = knn_cross_entropy(a, labels, b, k=k, temperature=7.0, distance=distance, reduction="none", backend=backend)
        (loss * torch.linspace(1, 2, loss.numel()).view(loss.shape)).sum().backward()
        found.append((loss.detach(), a.grad, b.grad))
    for mine, theirs in zip(*found, strict=True):
        assert error(mine, theirs) < 5e-6


@pytest.mark.parametrize("backend", ["fused", "torch"])
def test_an_image_without_counted_pixels_has_no_loss_among_few_either(backend):
    o, labels, e = problem(9, 3, 8)
    o.requires_grad_()
    loss = knn_cross_entropy(o, labels.fill_(-1), e, backend=backend)
    loss.backward()
    assert loss.item() == 0 and not o.grad.any()


@pytest.mark.parametrize(("stride", "tall", "wide"), [(2, 1, 2), (4, 2, 2), (8, 2, 4), (16, 4, 4)])
def test_pixels_of_a_block_share_what_its_middle_finds(stride, tall, wide):
    g = torch.Generator().manual_seed(5)
    o, e = torch.randn(2, 3, 7, 9, generator=g), torch.randn(20, 3, generator=g)
    labels = torch.randint(-1, 20, (2, 7, 9), generator=g)
    losses = knn_cross_entropy(o, labels, e, k=3, query_stride=stride, reduction="none")
    for image, y, x in labels.ne(-1).nonzero().tolist():
        middle = o[image, :, min(y // tall * tall + tall // 2, 6), min(x // wide * wide + wide // 2, 8)]
        target = int(labels[image, y, x])
        others = [c for c in nearest(middle[None], e, 4)[0].tolist() if c != target][:3]
        z = -20 * (o[image, :, y, x] - e[[target, *others]]).norm(dim=1)
        torch.testing.assert_close(losses[image, y, x], z.logsumexp(0) - z[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="query_stride is 3: expected one of 1, 2, 4, 8, 16"):
        knn_cross_entropy(o, labels, e, query_stride=3)


@pytest.mark.long
def test_the_benchmarks_measure_every_contender(tmp_path):
    found = measured("losses.py", "--images", "1", "--size", "16", "--plot", str(tmp_path))
    names = {
        "published",
        "exact",
        "exact, cosine",
        "k-NN",
        "k-NN, query_stride 4",
        "k-NN, clustered",
        "dense",
        "dense, fused",
        "dense at points",
    }
    assert names <= found["time"]["9"].keys()
    for contender in found["time"]["9"].values():
        assert contender["pixels"] == 256 and contender["us_a_pixel"] > 0 and contender["times_as_fast_as_published"] > 0
    assert found["time"]["9"]["published"]["times_as_fast_as_published"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"losses-time.svg"}

    found = measured("search.py", "--size", "32", "--queries", "300")["classes"]["9"]
    assert {*found["prediction"]} == {"embedding", "embedding, full", "dense", "dense, full", "dense_pixels"}
    assert min(found["prediction"].values()) > 0 and found["prediction"]["dense_pixels"] == 1024
    assert found["random"]["numba"]["recall"] == found["near"]["faiss"]["recall_1"] == 1
    assert {*found["random"]} == {"numba", "faiss", "clustered"}


def measured(script, *options):
    command = [sys.executable, Path(__file__).parents[2] / "benchmarks" / script, "--classes", "9", "--rounds", "1", "--json"]
    return json.loads(subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout)
