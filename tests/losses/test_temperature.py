"""A learnt temperature: its gradient compared with float64 autograd, its limits, and that nothing else changes."""

import math

import pytest
import torch
import torch.nn.functional as F

from ess.config import Config
from ess.losses import cross_entropy, temperature
from ess.losses.cross_entropy import exact_cross_entropy, knn_cross_entropy

CLASSES = 40


@pytest.fixture(scope="module")
def inputs():
    """Unit vectors; one pixel has the embedding of its class, others are very near to theirs."""
    g = torch.Generator().manual_seed(0)
    e = F.normalize(torch.randn(CLASSES, 6, generator=g, dtype=torch.float64), dim=1)
    o = F.normalize(torch.randn(2, 6, 9, 11, generator=g, dtype=torch.float64), dim=1)
    labels = torch.randint(-1, CLASSES, (2, 9, 11), generator=g)
    labels[0, 0] = torch.arange(11)
    o[0, :, 0] = (e[:11] + torch.linspace(0, 1e-3, 11)[:, None]).T
    return o.float().double(), labels, e.float().double()


def by_autograd(o, labels, e, log_t, distance, k, bias=None):
    """The summed loss over all classes, or with k over the target and the k nearest others, from its definition."""
    pixels = o.permute(0, 2, 3, 1).flatten(0, 2)
    if distance == "cosine":
        near = pixels @ e.T
    else:
        squares = (pixels[:, None] - e).square().sum(2)
        near = -squares if distance == "squared" else -squares.where(squares > 0, 1).sqrt().where(squares > 0, 0)
    z = log_t.exp() * near + (0 if bias is None else bias)
    targets = labels.flatten()
    own = F.one_hot(targets.clamp_min(0), CLASSES).bool()
    if k:
        others = near.masked_fill(own, -torch.inf).topk(k).indices
        z = z.masked_fill(~own.scatter(1, others, True), -torch.inf)
    return F.cross_entropy(z, targets, ignore_index=-1, reduction="sum")


@pytest.mark.parametrize("distance", ["euclidean", "squared", "cosine"])
@pytest.mark.parametrize("start", [3.0, 20.0])
@pytest.mark.parametrize(("loss", "backend"), [("exact", "torch"), ("exact", "fused"), ("knn", "torch"), ("knn", "fused")])
@pytest.mark.parametrize("gpu", [False, True])
def test_the_gradient_is_that_of_autograd(inputs, distance, start, loss, backend, gpu):
    """Also in the form for GPUs, which is a formula of torch and can be computed anywhere."""
    o, labels, e = inputs
    bias = torch.linspace(-1, 1, CLASSES).double() if loss == "exact" else None
    log_t = torch.tensor(math.log(start), dtype=torch.float64)
    leaves = [tensor.clone().requires_grad_() for tensor in (o, e, log_t)]
    by_autograd(leaves[0], labels, leaves[1], leaves[2], distance, 5 if loss == "knn" else 0, bias).backward()
    kind = torch.float64 if backend == "torch" else torch.float32
    ours = [tensor.to(kind, copy=True).requires_grad_() for tensor in (o, e, log_t)]
    embeddings, classes, t = (
        (*temperature.scaled(*ours, distance), 1.0) if gpu else temperature.with_temperature(*ours, distance)
    )
    more = {"temperature": t, "distance": distance, "reduction": "sum", "backend": backend}
    if loss == "exact":
        (3 * exact_cross_entropy(embeddings, labels, classes, bias=bias.to(kind), **more)).backward()
    else:
        (3 * knn_cross_entropy(embeddings, labels, classes, k=5, **more)).backward()
    for found, expected in zip(ours, leaves, strict=True):
        bound = 1e-9 if kind == torch.float64 else 2e-4 * expected.grad.abs().max().item()
        torch.testing.assert_close(found.grad.double(), 3 * expected.grad, rtol=0, atol=3 * bound)
    assert leaves[2].grad.abs() > 1


def test_the_gradient_is_a_difference_quotient(inputs):
    """Without embeddings that need gradients, too."""
    o, labels, e = inputs
    log_t = torch.tensor(math.log(5.0), dtype=torch.float64, requires_grad=True)
    embeddings, classes, t = temperature.with_temperature(o, e, log_t, "euclidean")
    exact_cross_entropy(embeddings, labels, classes, temperature=t).backward()
    above, below = (exact_cross_entropy(o, labels, e, temperature=5 * math.exp(step)) for step in (1e-5, -1e-5))
    assert log_t.grad.item() == pytest.approx(((above - below) / 2e-5).item(), rel=1e-7)


def test_the_search_gets_the_embeddings_themselves(inputs, monkeypatch):
    seen, original = [], cross_entropy.nearest
    monkeypatch.setattr(cross_entropy, "nearest", lambda *a, **k: seen.append(a[:2]) or original(*a, **k))
    o, labels, e = (tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs)
    embeddings, classes, t = temperature.with_temperature(o, e, temperature.log_temperature(), "euclidean")
    with_t = knn_cross_entropy(embeddings, labels, classes, temperature=t)
    plain = knn_cross_entropy(o, labels, e, temperature=t)
    assert torch.equal(with_t, plain) and all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    assert embeddings.data_ptr() == o.data_ptr() and classes.data_ptr() == e.data_ptr()


def test_it_starts_at_the_default_and_has_limits():
    log_t = temperature.log_temperature()
    assert log_t.exp().item() == pytest.approx(Config().temperature) and log_t.dtype == torch.float32
    for wrong, right in ((-3.0, 1.0), (9.0, 100.0), (math.log(30), 30.0)):
        log_t.data.fill_(wrong)
        temperature.limit(log_t)
        assert log_t.exp().item() == pytest.approx(right)
