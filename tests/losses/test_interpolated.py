"""The dense loss over interpolated logits, against float64 autograd through PyTorch's own interpolation."""

import pytest
import torch
import torch.nn.functional as F

from ess.kernels import interpolated_cpu
from ess.losses import interpolated
from ess.losses.cross_entropy import dense_cross_entropy
from ess.losses.interpolated import interpolated_cross_entropy

CASES = [
    (2, (3, 4), (12, 16), (12, 16)),
    (7, (3, 4), (12, 16), (11, 15)),
    (40, (1, 1), (9, 5), (9, 5)),
    (40, (5, 2), (18, 13), (17, 13)),
    (40, (6, 7), (6, 7), (6, 7)),
    (40, (9, 8), (7, 5), (6, 5)),
    (2000, (2, 3), (8, 12), (8, 12)),
]
"""(classes, grid, extent, size), with factors that are no integers, without a factor, and with a grid finer than the labels."""


def given(classes, grid, size, scale=3.0):
    g = torch.Generator().manual_seed(classes)
    logits = scale * torch.randn(3, classes, *grid, generator=g)
    labels = torch.randint(-1, classes, (3, *size), generator=g)
    labels[2] = -1
    return logits, labels


def reference(logits, labels, extent, reduction):
    logits = logits.double().requires_grad_()
    whole = F.interpolate(logits, size=extent, mode="bilinear", align_corners=False)
    whole = whole[:, :, : labels.shape[1], : labels.shape[2]]
    loss = F.cross_entropy(whole, labels, ignore_index=-1, reduction=reduction)
    (loss * 0.3).backward()
    return loss.detach(), logits.grad


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("classes", "grid", "extent", "size"), CASES)
def test_value_and_gradient_are_those_of_float64(classes, grid, extent, size, reduction, backend):
    logits, labels = given(classes, grid, size)
    wanted, gradient = reference(logits, labels, extent, reduction)
    logits.requires_grad_()
    loss = interpolated_cross_entropy(logits, labels, extent=extent, reduction=reduction, backend=backend)
    (loss * 0.3).backward()
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())


@pytest.mark.parametrize("most", [1, 3 * 5 * 12 * 12, 10**9])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_images_that_are_interpolated_in_turns_have_the_same_loss(most, reduction, monkeypatch):
    seen = []

    def counted(logits, *rest, **settings):
        seen.append(len(logits))
        return dense_cross_entropy(logits, *rest, **settings)

    monkeypatch.setattr(interpolated, "_MOST", most)
    monkeypatch.setattr(interpolated, "dense_cross_entropy", counted)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, 3, generator=generator, requires_grad=True)
    labels = torch.randint(-1, 5, (4, 12, 12), generator=generator)
    wanted, gradient = reference(logits.detach(), labels, (12, 12), reduction)
    loss = interpolated_cross_entropy(logits, labels, reduction=reduction, backend="torch")
    (loss * 0.3).backward()
    assert seen == {1: [1, 1, 1, 1], 3 * 5 * 12 * 12: [3, 1], 10**9: [4]}[most]
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item())


def test_a_loss_near_zero_keeps_its_digits():
    logits = torch.zeros(1, 5, 2, 2)
    logits[:, 3] = 30.0
    labels = torch.full((1, 8, 8), 3)
    wanted, _ = reference(logits, labels, (8, 8), "sum")
    assert interpolated_cross_entropy(logits, labels, reduction="sum").item() == pytest.approx(wanted.item(), rel=1e-4)
    assert 0 < wanted < 1e-10


def test_logits_far_apart_do_not_overflow():
    logits, labels = given(40, (3, 4), (12, 16), scale=1e4)
    wanted, gradient = reference(logits, labels, (12, 16), "mean")
    logits.requires_grad_()
    loss = interpolated_cross_entropy(logits, labels)
    (loss * 0.3).backward()
    torch.testing.assert_close(loss.detach().double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_shows_in_the_loss(value):
    logits, labels = given(40, (3, 4), (12, 16))
    logits[0, 5, 1, 1] = value
    assert not interpolated_cross_entropy(logits, labels).isfinite()


def test_only_ignored_pixels_give_zero():
    logits, labels = given(7, (3, 4), (12, 16))
    logits.requires_grad_()
    loss = interpolated_cross_entropy(logits, torch.full_like(labels, -1))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_the_number_of_threads_changes_no_bit():
    logits, labels = given(40, (5, 2), (18, 13))
    grid = logits.permute(0, 2, 3, 1).numpy()
    one, three = (
        interpolated_cpu.interpolated(grid, labels.numpy(), (18, 13), ignore_index=-1, gradient=True, threads=threads)
        for threads in (1, 3)
    )
    assert (one.losses == three.losses).all() and (one.grid == three.grid).all()


def test_without_a_gradient_none_is_computed(monkeypatch):
    logits, labels = given(7, (3, 4), (12, 16))
    found = interpolated_cpu.interpolated(
        logits.permute(0, 2, 3, 1).numpy(), labels.numpy(), (12, 16), ignore_index=-1, gradient=False, threads=1
    )
    assert found.grid is None
    whole = interpolated_cross_entropy(logits, labels, reduction="sum")
    assert found.losses.sum() == pytest.approx(whole.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(2, 12, 16, dtype=torch.long)}, r"logits \(3, 7, 3, 4\) and labels \(2, 12, 16\)"),
        ({"labels": torch.full((3, 12, 16), 7)}, "labels hold 7: expected 0..6"),
        ({"labels": torch.zeros(3, 12, 16)}, "expected an integer type"),
        ({"extent": (11, 16)}, r"extent is \(11, 16\): expected at least \(12, 16\)"),
        ({"reduction": "none"}, "reduction is 'none': expected mean or sum"),
        ({"backend": "numba"}, "backend is 'numba'"),
        ({"logits": torch.zeros(3, 7, 3, 4, dtype=torch.float64), "backend": "fused"}, "no kernel for torch.float64 on cpu"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    logits, labels = given(7, (3, 4), (12, 16))
    arguments = {"logits": logits, "labels": labels} | change
    with pytest.raises(ValueError, match=message):
        interpolated_cross_entropy(arguments.pop("logits"), arguments.pop("labels"), **arguments)
