"""The Triton kernels of the k-NN loss against a definition in float64: its candidates, its value and its gradients.

``test_triton.py`` runs these tests in Triton's interpreter if there is no GPU.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from triton_cases import DEVICE, INTERPRETED, error, kernel, long, problem

from ess.kernels.distances import COSINE, DISTANCES, EUCLIDEAN, SQUARED
from ess.losses import cross_entropy, fused
from ess.losses.cross_entropy import knn_cross_entropy

if INTERPRETED or DEVICE == "cuda":
    from ess.kernels.gpu import candidates, search, sums


EACH = [EUCLIDEAN, long(SQUARED), long(COSINE)]


def drawn(labels, classes, k, seed=2):
    """(P, 1 + k) int32: the target of each pixel, and k distinct other classes."""
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(labels.numel(), classes, generator=g)
    order.scatter_(1, labels.view(-1, 1).clamp_min(0), 2.0)
    return torch.cat([labels.view(-1, 1), order.argsort(dim=1)[:, :k]], dim=1).int()


def definition(o, e, ids, weights, temperature, distance):
    """The loss of each pixel, (P,), and the gradients of their weighted sum, in float64."""
    o, e = (x.detach().double().requires_grad_() for x in (o, e))
    pixels, others = o.transpose(1, 2).flatten(0, 1)[:, None], e[ids.long().clamp_min(0)]
    if distance == COSINE:
        z = temperature * (pixels * others).sum(2)
    else:
        squares = (pixels - others).square().sum(2)
        zero = squares == 0
        z = -temperature * (squares if distance == SQUARED else squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0))
    losses = -F.logsigmoid(z[:, 0] - z[:, 1:].logsumexp(1)) * (ids[:, 0] >= 0)
    return losses.detach(), *torch.autograd.grad((losses * weights).sum(), (o, e))


def run(o, e, ids, weights, temperature, distance):
    o, e, ids, weights = (x.to(DEVICE) for x in (o, e, ids, weights))
    losses = candidates.losses(o, e, ids, temperature=temperature, distance=distance)
    found = (losses, *candidates.gradients(o, e, ids, weights, temperature=temperature, distance=distance))
    return [x.cpu() for x in found]


def signed(pixels, seed=1):
    return torch.rand(pixels, generator=torch.Generator().manual_seed(seed)) - 0.3


def assert_matches(o, e, ids, weights=None, bounds=(1e-5, 1e-4, 1e-4), temperature=10.0, distance=EUCLIDEAN):
    arguments = (o, e, ids, torch.ones(len(ids)) if weights is None else weights, temperature, distance)
    for mine, theirs, bound in zip(run(*arguments), definition(*arguments), bounds, strict=True):
        assert mine.shape == theirs.shape and error(mine, theirs) <= bound


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
@pytest.mark.parametrize(("classes", "dim", "size", "k"), [(2, 2, 9, 1), (75, 5, 150, 7), (12, 16, 20, 11), (33, 33, 70, 3)])
def test_it_is_the_definition(classes, dim, size, k, distance):
    o, labels, e = problem(classes, dim, size)
    assert_matches(o, e, drawn(labels, classes, k), signed(2 * size), distance=distance)


@kernel
@pytest.mark.parametrize("distance", EACH[:2])
@pytest.mark.parametrize("near", [long(0.1), long(1e-2), 1e-4, 0.0])
@pytest.mark.parametrize("shift", [0, 1])
def test_pixels_near_a_class_keep_their_precision(near, shift, distance):
    o, labels, e = problem(75, 12, 40, near)
    ids = drawn(labels, 75, 7)
    ids[:, 1] = torch.where(labels < 0, 0, (labels + 1) % 75).flatten()  # not to be a target and its negative at once
    ids[:, 2:] = torch.where(ids[:, 2:] == ids[:, 1:2], (ids[:, :1].clamp_min(0) + 2) % 75, ids[:, 2:])
    if shift:
        o = o.roll(1, 0)  # near to anything but their candidates, except by chance
        ids[:, 1] = labels.roll(1, 0).flatten().clamp_min(0)
    assert_matches(o, e, ids, temperature=20.0, distance=distance)


@kernel
@pytest.mark.parametrize("distance", EACH)
def test_classes_that_are_equal(distance):
    o, labels, e = problem(20, 4, 40, 0.0)
    ids = torch.cat(
        [labels.view(-1, 1), torch.where(labels < 0, 0, labels + 20).view(-1, 1), drawn(labels, 20, 5)[:, 1:]], dim=1
    )
    assert_matches(o, torch.cat([e, e]), ids.int(), distance=distance)


@kernel
@pytest.mark.parametrize("distance", EACH)
def test_a_class_can_be_a_candidate_several_times(distance):
    o, labels, e = problem(20, 4, 40)
    ids = labels.clamp_min(0).view(-1, 1).expand(-1, 3).clone()
    ids[:, 2] = 5
    assert_matches(o, e, ids.int(), signed(80), distance=distance)


@kernel
@pytest.mark.parametrize("distance", EACH)
def test_ignored_pixels_may_hold_anything(distance):
    o, labels, e = problem(40, 5, 40)
    ids, weights = drawn(labels, 40, 4), signed(80)
    expected = run(o, e, ids, weights, 10.0, distance)
    ignored = (labels == -1)[:, None].expand_as(o)
    ids[labels.flatten() == -1, 1:] = 2**31 - 1
    found = run(o.masked_fill(ignored, torch.nan), e, ids, weights, 10.0, distance)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert not found[0].view(2, -1)[labels == -1].any() and not found[1][ignored].any()


@kernel
@pytest.mark.parametrize("distance", EACH)
def test_the_order_of_the_pixels_changes_no_bit(distance, monkeypatch):
    o, labels, e = problem(10, 5, 300)
    ids, weights = drawn(labels, 10, 6), signed(600)
    expected = run(o, e, ids, weights, 10.0, distance)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(3))
    there = torch.cat([order, order + 300])
    for copies in (64, 1):
        monkeypatch.setattr(sums, "_COPIES", copies)
        found = run(o[:, :, order], e, ids[there], weights[there], 10.0, distance)
        assert torch.equal(found[0], expected[0][there]) and torch.equal(found[1], expected[1][:, :, order])
        assert torch.equal(found[2], expected[2])


@kernel
@pytest.mark.parametrize("distance", EACH)
@pytest.mark.parametrize("scale", [1e-20, long(1e20)])
def test_gradients_keep_their_digits_at_any_scale(scale, distance):
    o, labels, e = problem(40, 5, 40)
    ids, weights = drawn(labels, 40, 4), signed(80)
    small, plain = (run(o, e, ids, weights * s, 10.0, distance) for s in (scale, 1.0))
    for mine, theirs in zip(small[1:], plain[1:], strict=True):
        torch.testing.assert_close(mine / scale, theirs, rtol=1e-5, atol=1e-6)
    assert not any(x.any() for x in run(o, e, ids, torch.zeros(80), 10.0, distance)[1:])


@kernel
@pytest.mark.parametrize(("distance", "temperature"), [(EUCLIDEAN, 10.0), long(SQUARED, 0.5), (COSINE, 0.5)])
def test_long_embeddings_do_not_overflow(distance, temperature):
    o, labels, e = problem(40, 5, 40)
    assert_matches(1e4 * o, 1e4 * e, drawn(labels, 40, 7), temperature=temperature / 1e3, distance=distance)


@kernel
@pytest.mark.parametrize("distance", EACH)
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), long(torch.float16, 2**-11)])
def test_half_precision_costs_the_gradient_of_pixels_one_rounding(dtype, step, distance):
    o, labels, e = problem(40, 5, 40)
    o, e, ids, weights = o.to(dtype), e.to(dtype), drawn(labels, 40, 7), torch.full((80,), 2.0**-20)
    assert_matches(o, e, ids, weights, (1e-5, step, 1e-4), distance=distance)
    by_pixels, by_classes = run(o, e, ids, weights, 10.0, distance)[1:]
    assert by_pixels.dtype == (torch.float32 if dtype == torch.float16 else dtype) and by_classes.dtype == torch.float32


@kernel
def test_any_strides():
    o, labels, e = problem(40, 5, 40)
    ids, weights = drawn(labels, 40, 4), signed(80)
    expected = run(o, e, ids, weights, 10.0, EUCLIDEAN)
    channels_last = o.transpose(1, 2).contiguous().transpose(1, 2)
    for strided in (channels_last, torch.stack([o, -o], dim=3).flatten(2)[..., ::2], o.flip(0).contiguous().flip(0)):
        found = run(strided, e.T.contiguous().T, ids.T.contiguous().T, weights.view(2, 40).T.contiguous().T.flatten(), 10.0, 0)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)


@kernel
def test_images_of_one_pixel():
    o, labels, e = problem(9, 3, 8)
    alone = o.transpose(1, 2).reshape(16, 3, 1)
    found, expected = (
        search.candidates(*(x.to(DEVICE) for x in given), 4, products=False).cpu()
        for given in ((alone, labels.view(16, 1), e), (o, labels, e))
    )
    counted = labels.flatten() >= 0
    assert torch.equal(found[counted], expected[counted]) and torch.equal(found[:, 0], expected[:, 0])
    losses, moves, classes = run(alone, e, found, signed(16), 10.0, EUCLIDEAN)
    plain = run(o, e, found, signed(16), 10.0, EUCLIDEAN)
    assert torch.equal(losses, plain[0]) and torch.equal(moves.view(2, 8, 3).transpose(1, 2), plain[1])
    assert torch.equal(classes, plain[2])


@kernel
def test_nothing_counted_is_zero():
    o, labels, e = problem(40, 5, 40)
    for found in run(o, e, drawn(labels.fill_(-1), 40, 4), signed(80), 10.0, EUCLIDEAN):
        assert not found.any()


@kernel
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize(("classes", "dim", "k"), [(2, 2, 1), (70, 3, 7), long(33, 12, 32)])
def test_candidates_are_the_target_and_the_nearest_others(classes, dim, k, products):
    o, labels, e = problem(classes, dim, 90)
    labels[0] = -1  # whole blocks without a label are skipped
    o[0] = torch.nan
    for strided in (o, o.transpose(1, 2).contiguous().transpose(1, 2)):
        found = search.candidates(*(x.to(DEVICE) for x in (strided, labels.short(), e)), k, products=products).cpu()
        assert found.dtype == torch.int32 and torch.equal(found[:, 0], labels.flatten().int())
        counted = labels.flatten() >= 0
        pixels, ids = o.transpose(1, 2).flatten(0, 1)[counted].double(), found[counted].long()
        scores = -pixels @ e.double().T if products else torch.cdist(pixels, e.double())
        scores.scatter_(1, ids[:, :1], torch.inf)
        expected = scores.sort(dim=1, stable=True)
        assert (scores.gather(1, ids[:, 1:]) - expected.values[:, :k]).abs().max() < 1e-5
        assert (ids[:, 1:] == expected.indices[:, :k]).float().mean() > 0.99


@kernel
def test_candidates_take_the_lower_id_among_equals():
    g = torch.Generator().manual_seed(0)
    pixels, e = torch.randint(-1, 2, (1, 3, 60), generator=g).float(), torch.randint(-1, 2, (80, 3), generator=g).float()
    labels = torch.randint(80, (1, 60), generator=g)
    scores = torch.cdist(pixels[0].T.double(), e.double()).scatter(1, labels.view(-1, 1), torch.inf)
    found = search.candidates(*(x.to(DEVICE) for x in (pixels, labels, e)), 5, products=False).cpu()
    assert torch.equal(found[:, 1:].long(), scores.sort(dim=1, stable=True).indices[:, :5])


@kernel
def test_the_search_finds_the_nearest_other_class_for_the_margin(monkeypatch):
    e = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    e[40:50] = e[:10]  # at the distance 0
    expected = cross_entropy._nearest_others(e)
    monkeypatch.setattr(fused, "on_gpu", lambda embeddings: True)
    monkeypatch.setattr(fused, "chosen", lambda *arguments: True)
    assert torch.equal(cross_entropy._nearest_others(e.to(DEVICE)).cpu(), expected)


class Operations(TorchDispatchMode):
    """Counts the operations of torch by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.append(function.__name__)
        return function(*arguments, **(named or {}))


def gradients(o, labels, e, **how):
    """(loss, gradients) of a weighted sum of the losses."""
    o, e = (x.to(DEVICE, copy=True).requires_grad_() for x in (o, e))
    loss = knn_cross_entropy(o, labels.to(DEVICE), e, temperature=10.0, generator=torch.Generator(DEVICE).manual_seed(0), **how)
    (loss * torch.linspace(1, 2, loss.numel(), device=DEVICE).view(loss.shape)).sum().backward()
    return [x.detach().cpu() for x in (loss, o.grad, e.grad)]


@kernel
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    "how",
    [
        {},
        long({"k": 100}),
        {"negatives": "random"},
        {"negatives": "published"},
        {"query_stride": 4},
        long({"reduction": "none"}),
    ],
    ids=str,
)
def test_the_whole_loss_is_that_of_torch_in_double_precision(how, distance, monkeypatch):
    o, labels, e = problem(30, 5, 48)
    o, labels = o.view(2, 5, 6, 8), labels.view(2, 6, 8).masked_fill(labels.view(2, 6, 8) < 0, 255)
    how = {"k": 4, "distance": distance, "ignore_index": 255} | how
    expected = gradients(o.double(), labels, e.double(), backend="torch", **how)
    monkeypatch.setattr(fused, "on_gpu", lambda embeddings: True)
    if how.get("negatives") == "random":  # which are drawn for other pixels than without a GPU
        ids = candidates_of(o, labels, e, how, monkeypatch)
        weights = torch.where(labels == 255, 0.0, 1 / (labels != 255).sum()).flatten()
        losses, *expected = definition(o.flatten(2), e, ids, weights, 10.0, DISTANCES.index(distance))
        expected = [(losses * weights).sum(), expected[0].view(o.shape), expected[1]]
    for mine, theirs in zip(gradients(o, labels, e, backend="fused", **how), expected, strict=True):
        assert mine.shape == theirs.shape and error(mine, theirs) < 2e-5


def candidates_of(o, labels, e, how, monkeypatch):
    """The candidates of the loss, (P, K)."""
    seen, over_candidates = [], fused.over_candidates
    with monkeypatch.context() as patch:
        patch.setattr(fused, "over_candidates", lambda *given: seen.append(given[3].cpu()) or over_candidates(*given))
        gradients(o, labels, e, **how)
    [ids] = seen
    counted = labels.flatten() != 255
    assert (ids[counted, 0] == labels.flatten()[counted]).all() and (ids[~counted, 0] == -1).all()
    assert (ids[counted].sort(dim=1).values.diff(dim=1) > 0).all() and ids[counted].max() < len(e)
    return ids


@kernel
def test_the_number_of_operations_does_not_depend_on_the_pixels_and_none_waits_for_them(monkeypatch):
    monkeypatch.setattr(fused, "on_gpu", lambda embeddings: True)
    for name in ("_QUERIES", "_ELEMENTS"):  # with few of these, other ways to compute the loss need several chunks
        monkeypatch.setattr(cross_entropy, name, 100)
    counts = []
    for size in (6, 12):
        o, labels, e = problem(30, 5, size * size)
        with Operations() as seen:
            gradients(o.view(2, 5, size, size), labels.view(2, size, size), e, k=4)
        counts.append(len(seen.names))
        assert not [name for name in seen.names if name.startswith("nonzero")]
    assert counts[0] == counts[1]
