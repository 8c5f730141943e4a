"""The dense loss at points, compared with bilinear interpolation written as loops, in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from ess.kernels import points_cpu
from ess.losses import points as module
from ess.losses.points import choose_points, labels_at, logits_at, point_cross_entropy

CLASSES, EXTENT = 5, (20, 24)


@pytest.fixture
def maps():
    """Logits at a quarter of 20 x 24 pixels, and labels on 18 x 21 of them; the second image has few labels, the third none."""
    g = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(3, CLASSES, 5, 6, generator=g, dtype=torch.float64)
    labels = torch.randint(-1, CLASSES, (3, 18, 21), generator=g, dtype=torch.int16)
    labels[1, 2:] = -1
    labels[2] = -1
    return logits, labels


def bilinear(places, height, width):
    """(P, height * width) float64: the weights of the cells of a map at each place; its outermost values are repeated."""
    found = torch.zeros(len(places), height, width, dtype=torch.float64)
    for weights, (y, x) in zip(found, places.double().tolist(), strict=True):
        row, column = y / EXTENT[0] * height - 0.5, x / EXTENT[1] * width - 0.5
        for i in (math.floor(row), math.floor(row) + 1):
            for j in (math.floor(column), math.floor(column) + 1):
                share = (1 - abs(row - i)) * (1 - abs(column - j))
                weights[min(max(i, 0), height - 1), min(max(j, 0), width - 1)] += share
    return found.flatten(1)


def interpolated(logits, places):
    """The logits (P, C) float64 of a map (C, h, w) at places (P, 2)."""
    return bilinear(places, *logits.shape[1:]) @ logits.double().flatten(1).T


def pixels_of(labels, places):
    return torch.tensor([labels[min(int(y), 17), min(int(x), 20)].item() for y, x in places.tolist()])


def test_logits_and_labels_are_those_of_the_places(maps):
    logits, labels = (each[0] for each in maps)
    places = torch.rand(200, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([18.0, 21.0])
    places[:4] = torch.tensor([[0, 0], [18, 21], [17.999, 0.5], [0.25, 20.99]])
    found = logits_at(logits.float(), places, EXTENT)
    torch.testing.assert_close(found.double(), interpolated(logits, places), rtol=1e-4, atol=1e-4)
    assert torch.equal(labels_at(labels.long(), places), pixels_of(labels, places))


def test_logits_in_the_middles_of_pixels_are_those_of_the_resized_map(maps):
    logits = maps[0][0].float()
    places = torch.stack(torch.meshgrid(torch.arange(18) + 0.5, torch.arange(21) + 0.5, indexing="ij"), dim=2)
    whole = F.interpolate(logits[None], size=EXTENT, mode="bilinear", align_corners=False)[0, :, :18, :21]
    found = logits_at(logits, places.view(-1, 2), EXTENT).T.view(CLASSES, 18, 21)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_the_uncertain_points_are_the_most_uncertain_of_three_times_as_many(maps, monkeypatch, fused):
    logits, labels = maps[0][0].float(), maps[1][0]
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *a, **k: drawn.append(rand(*a, **k)) or drawn[-1])
    chosen = choose_points(logits, labels, 41, extent=EXTENT, fused=fused)
    size = torch.tensor([18.0, 21.0])
    assert [len(each) for each in drawn] == [123, 11] and torch.equal(chosen[30:], drawn[1] * size)
    places = drawn[0] * size
    second, first = interpolated(logits, places).sort(dim=1).values[:, -2:].T
    margins = torch.where(pixels_of(labels, places) < 0, torch.inf, first - second)
    best = places[margins.argsort()[:30]]
    assert {*map(tuple, chosen[:30].tolist())} == {*map(tuple, best.tolist())}
    assert margins.isinf().sum() > 10
    few = choose_points(logits, maps[1][1], 400, extent=EXTENT, fused=fused)  # more than there are labelled ones
    assert len(few) == 400 and (few >= 0).all() and (few <= size).all()


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_the_loss_and_its_gradient_are_the_means_over_the_labelled_points(maps, monkeypatch, backend):
    logits, labels = maps
    kept, original = [], module.choose_points
    monkeypatch.setattr(module, "choose_points", lambda *a, **k: kept.append(original(*a, **k)) or kept[-1])
    ours, truth = logits.float().requires_grad_(), logits.clone().requires_grad_()
    torch.manual_seed(0)
    found = point_cross_entropy(ours, labels, 60, extent=EXTENT, backend=backend)
    targets = [pixels_of(mask, places) for mask, places in zip(labels, kept, strict=True)]
    pairs = [(interpolated(z, places), t) for z, places, t in zip(truth, kept, targets, strict=True)]
    expected = [F.cross_entropy(z, t, ignore_index=-1) if (t >= 0).any() else z.sum() * 0 for z, t in pairs]
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-4, atol=1e-6)
    assert found[2] == 0 and [len(places) for places in kept] == [60] * 3 and 1 < (targets[1] >= 0).sum() < 60
    factors = torch.tensor([2.0, 3.0, 4.0])
    (found @ factors).backward()
    sum(f * loss for f, loss in zip(factors.double(), expected, strict=True)).backward()
    torch.testing.assert_close(ours.grad.double(), truth.grad, rtol=1e-3, atol=1e-5)


def test_bf16_maps_are_computed_in_float32(maps):
    logits, labels = maps
    torch.manual_seed(0)
    half = point_cross_entropy(logits.bfloat16(), labels, 50, extent=EXTENT)
    torch.manual_seed(0)
    assert half.dtype == torch.float32 and torch.equal(
        half, point_cross_entropy(logits.bfloat16().float(), labels, 50, extent=EXTENT)
    )


def many(classes=40, points=300):
    """Logits (2, 40, 5, 6) float32, places (2, P, 2) on an extent of 20 x 24 pixels, targets (2, P) some of which are -1."""
    g = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(2, classes, 5, 6, generator=g)
    places = torch.rand(2, points, 2, generator=g) * torch.tensor([20.0, 24.0])
    places[:, :2] = torch.tensor([[0.0, 0.0], [20.0, 24.0]])
    return logits, places, torch.randint(-1, classes, (2, points), generator=g)


def test_compiled_margins_are_those_of_torch():
    logits, places, _ = many()
    logits[0, 7] = logits[0, 9]  # where both are largest, the margin is 0
    logits[0, 7, 2, 2], logits[0, 9, 2, 2] = 50, 50
    for image, each in zip(logits, places, strict=True):
        found = points_cpu.margins(image.permute(1, 2, 0).numpy(), each.numpy(), EXTENT, threads=2)
        wanted = module._margins(image.double(), each.double(), EXTENT)
        torch.testing.assert_close(torch.from_numpy(found).double(), wanted, rtol=1e-4, atol=2e-5)
    assert (points_cpu.margins(logits[0].permute(1, 2, 0).numpy(), places[0].numpy(), EXTENT, threads=1) == 0).sum() > 5


def test_the_number_of_threads_changes_no_bit():
    logits, places, targets = many()
    grid = logits.permute(0, 2, 3, 1).numpy()
    one, three = (
        points_cpu.losses(grid, places.numpy(), targets.numpy(), EXTENT, ignore_index=-1, gradient=True, threads=threads)
        for threads in (1, 3)
    )
    assert (one.losses == three.losses).all() and (one.grid == three.grid).all() and one.grid.any()
    rest = points_cpu.losses(grid, places.numpy(), targets.numpy(), EXTENT, ignore_index=-1, gradient=False, threads=1)
    assert rest.grid is None and (rest.losses == one.losses).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_a_logit_that_is_not_finite_shows_in_the_loss(maps, backend, value):
    logits = maps[0].float()
    logits[0, 3, 2, 2] = value
    found = point_cross_entropy(logits, maps[1], 300, extent=EXTENT, backend=backend)
    assert found.isfinite().tolist() == [False, True, True]


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_logits_far_apart_do_not_overflow(maps, backend):
    logits = (1e4 * maps[0]).float().requires_grad_()
    found = point_cross_entropy(logits, maps[1], 60, extent=EXTENT, backend=backend)
    found.sum().backward()
    assert found.isfinite().all() and found[0] > 1000 and logits.grad.isfinite().all()


@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.full((3, 18, 21), 5)}, "labels hold 5: expected 0..4"),
        ({"labels": torch.zeros(3, 18, 21)}, "labels"),
        ({"labels": torch.zeros(2, 18, 21, dtype=torch.long)}, r"logits \(3, 5, 5, 6\) and labels \(2, 18, 21\)"),
        ({"extent": (17, 24)}, r"extent is \(17, 24\): expected at least \(18, 21\)"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(maps, backend, change, message):
    arguments = {"logits": maps[0], "labels": maps[1], "points": 9, "extent": EXTENT, "backend": backend} | change
    with pytest.raises(ValueError, match=message):
        point_cross_entropy(**arguments)


@pytest.mark.parametrize(("device", "backend"), [("cpu", "triton"), ("meta", "fused")])
def test_a_backend_that_does_not_exist_there_is_refused(maps, device, backend):
    with pytest.raises(ValueError, match=f"backend is '{backend}' on {device}: expected auto, torch or, on a CPU, fused"):
        point_cross_entropy(maps[0].to(device), maps[1].to(device), 60, extent=EXTENT, backend=backend)
