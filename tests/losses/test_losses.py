"""The losses against definitions in float64, pixel by pixel, and in the limits where plain formulas break."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ess.losses.cross_entropy import dense_cross_entropy, exact_cross_entropy, knn_cross_entropy, margin_penalty

DISTANCES = ("euclidean", "squared", "cosine")


def problem(classes=30, dim=12, size=(2, 5, 3), ignored=0.2, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    batch, height, width = size
    embeddings = F.normalize(torch.randn(batch, dim, height, width, generator=g, dtype=dtype), dim=1)
    labels = torch.randint(classes, size, generator=g)
    labels[torch.rand(size, generator=g) < ignored] = -1
    return embeddings, labels.to(torch.int16), F.normalize(torch.randn(classes, dim, generator=g, dtype=dtype), dim=1)


def similarity(o, e, temperature, distance):
    """The logits of one pixel (D,) for the classes (C, D), by definition."""
    if distance == "cosine":
        return temperature * (e * o).sum(1)
    squares = (e - o).square().sum(1)
    if distance == "squared":
        return -temperature * squares
    zero = squares == 0
    return -temperature * torch.where(zero, squares, squares.masked_fill(zero, 1).sqrt())


def definition(embeddings, labels, classes, temperature, distance, candidates=None):
    """The loss of each counted pixel. ``candidates(logits, target)`` lists its negatives; by default all other classes."""
    losses = []
    for b, y, x in (labels != -1).nonzero().tolist():
        t = int(labels[b, y, x])
        z = similarity(embeddings[b, :, y, x], classes, temperature, distance)
        ids = candidates(z, t) if candidates else [c for c in range(len(classes)) if c != t]
        losses.append(torch.log1p(torch.exp(z[ids] - z[t]).sum()))
    return torch.stack(losses)


def nearest_others(k):
    return lambda z, t: [c for c in z.argsort(descending=True).tolist() if c != t][:k]


def assert_matches(loss, truth, embeddings, classes):
    """Assert that value and gradients in float32 are close to ``truth`` in float64."""
    a, b = (x.detach().clone().requires_grad_() for x in (embeddings, classes))
    c, d = (x.detach().double().requires_grad_() for x in (embeddings, classes))
    got, want = loss(a, b), truth(c, d)
    got.backward()
    want.backward()
    assert abs(got.item() - want.item()) <= 1e-5 * abs(want.item())
    for mine, theirs in ((a.grad, c.grad), (b.grad, d.grad)):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("classes", "dim"), [(2, 2), (3, 64), (150, 6), (2000, 12)])
def test_exact_is_the_definition(classes, dim, distance):
    embeddings, labels, e = problem(classes, dim)
    for temperature in (20.0, 3.0):
        assert_matches(
            lambda o, e, t=temperature: exact_cross_entropy(o, labels, e, temperature=t, distance=distance),
            lambda o, e, t=temperature: definition(o, labels, e, t, distance).mean(),
            embeddings,
            e,
        )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("extras", [False, True])
def test_many_classes_come_in_groups(distance, extras, monkeypatch):
    monkeypatch.setattr("ess.kernels.tiles.TILE", 256)
    embeddings, labels, e = problem(1100, 7, size=(2, 9, 13))
    for y, c in enumerate((900, 400, 1099)):  # near classes outside the first group
        embeddings[0, :, y, 0] = e[c] + 1e-4
        labels[0, y, 0] = c - 1
    g = torch.Generator().manual_seed(1)
    keywords = {}
    if extras:
        keywords = {"bias": torch.randn(1100, generator=g), "class_mask": torch.rand(2, 1100, generator=g) < 0.5}
    found = []
    for once in (1 << 16, 500):
        monkeypatch.setattr("ess.kernels.exact_cpu._ONCE", once)
        leaves = [x.clone().requires_grad_() for x in (embeddings, e)]
        if extras:
            keywords["bias"] = keywords["bias"].detach().clone().requires_grad_()
            leaves.append(keywords["bias"])
        loss = exact_cross_entropy(leaves[0], labels, leaves[1], distance=distance, **keywords)
        loss.backward()
        found.append((loss.detach(), *(leaf.grad for leaf in leaves)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
    if not extras:
        monkeypatch.setattr("ess.kernels.exact_cpu._ONCE", 500)
        assert_matches(
            lambda a, b: exact_cross_entropy(a, labels, b, distance=distance),
            lambda a, b: definition(a, labels, b, 20.0, distance).mean(),
            embeddings,
            e,
        )


def test_no_group_of_classes_is_only_padding():
    """A group of padding would be as near as the origin, and 74,401 x 44 once had one."""
    classes, labels = 6 * F.normalize(torch.randn(74_401, 44), dim=1), torch.zeros(1, 1, 2, dtype=torch.int64)
    loss = exact_cross_entropy(torch.zeros(1, 44, 1, 2), labels, classes)
    assert loss.item() == pytest.approx(math.log(74_401), rel=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("classes", "dim", "k"), [(2, 2, 1), (3, 64, 7), (150, 6, 6), (2000, 12, 7)])
def test_knn_is_the_definition(classes, dim, k, distance):
    embeddings, labels, e = problem(classes, dim)
    for search in ("faiss", "torch"):
        assert_matches(
            lambda o, e, s=search: knn_cross_entropy(o, labels, e, k=k, distance=distance, search=s),
            lambda o, e: definition(o, labels, e, 20.0, distance, nearest_others(k)).mean(),
            embeddings,
            e,
        )


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
@pytest.mark.parametrize("near", [0.1, 1e-2, 1e-4])
def test_confident_pixels_keep_their_precision(loss, near):
    _, labels, e = problem(200, 12, ignored=0)
    noise = torch.randn(2, 5, 3, 12, generator=torch.Generator().manual_seed(1))
    embeddings = F.normalize(e[labels.long()] + near * noise, dim=3).permute(0, 3, 1, 2)
    pick = nearest_others(7) if loss is knn_cross_entropy else None
    assert_matches(
        lambda o, e: loss(o, labels, e),
        lambda o, e: definition(o, labels, e, 20.0, "euclidean", pick).mean(),
        embeddings,
        e,
    )


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("negatives", ["nearest", "published"])
def test_some_pixels_search_at_a_time(stride, negatives, monkeypatch):
    embeddings, labels, e = problem(40, 5, size=(2, 9, 13))
    settings = {"query_stride": stride, "negatives": negatives, "reduction": "none"}
    whole = knn_cross_entropy(embeddings, labels, e, **settings)
    monkeypatch.setattr("ess.losses.cross_entropy._QUERIES", 17)
    assert torch.equal(knn_cross_entropy(embeddings, labels, e, **settings), whole)


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_scale_with_what_follows(loss, reduction):
    embeddings, labels, e = problem(40, 5)
    found = []
    for factor in (1, 3):
        leaves = [x.clone().requires_grad_() for x in (embeddings, e)]
        (factor * loss(leaves[0], labels, leaves[1], reduction=reduction).sum()).backward()
        found.append([leaf.grad for leaf in leaves])
    for once, thrice in zip(*found, strict=True):
        torch.testing.assert_close(3 * once, thrice, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
def test_an_embedding_that_is_not_finite_shows_in_the_loss(loss, bad, distance):
    embeddings, labels, e = problem(40, 5, ignored=0)
    embeddings[1, 3, 2, 1] = bad
    losses = loss(embeddings, labels, e, distance=distance, reduction="none")
    assert not losses[1, 2, 1].isfinite() and losses.isfinite().sum() == losses.numel() - 1


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_class_that_is_not_a_number_shows_in_the_exact_loss(distance):
    embeddings, labels, e = problem(40, 5, ignored=0)
    e[7, 2] = math.nan
    assert exact_cross_entropy(embeddings, labels, e, distance=distance, reduction="none").isnan().all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_is_knn_with_all_others(distance, dtype):
    embeddings, labels, e = problem(40, 5, dtype=dtype)
    exact = exact_cross_entropy(embeddings, labels, e, distance=distance, reduction="none")
    for k in (39, 100):
        for negatives in ("nearest", "random"):
            knn = knn_cross_entropy(embeddings, labels, e, k=k, distance=distance, negatives=negatives, reduction="none")
            torch.testing.assert_close(knn, exact)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("negatives", ["nearest", "published", None])
def test_gradcheck(distance, negatives):
    embeddings, labels, e = problem(6, 3, (1, 3, 2), dtype=torch.float64)

    def loss(o, e):
        if negatives is None:
            return exact_cross_entropy(o, labels, e, temperature=3.0, distance=distance, reduction="none")
        return knn_cross_entropy(o, labels, e, k=2, temperature=3.0, distance=distance, negatives=negatives, reduction="none")

    assert torch.autograd.gradcheck(loss, (embeddings.requires_grad_(), e.requires_grad_()))


def test_many_chunks_are_one(monkeypatch):
    embeddings, labels, e = problem(30, 12)
    results = []
    for elements in (1 << 22, 60):
        monkeypatch.setattr("ess.losses.cross_entropy._ELEMENTS", elements)
        for loss in (partial(exact_cross_entropy, backend="torch"), knn_cross_entropy):
            o, c = embeddings.clone().requires_grad_(), e.clone().requires_grad_()
            value = loss(o, labels, c)
            value.backward()
            results.append((value.detach(), o.grad, c.grad))
    torch.testing.assert_close(results[:2], results[2:])


@pytest.mark.parametrize("negatives", ["exact", "nearest", "random", "published"])
def test_nothing_counted_is_zero(negatives):
    embeddings, labels, e = problem()
    embeddings.requires_grad_()
    e.requires_grad_()
    for reduction in ("mean", "sum", "none"):
        labels.fill_(-1)
        options = {} if negatives == "exact" else {"negatives": negatives}
        loss = exact_cross_entropy if negatives == "exact" else knn_cross_entropy
        value = loss(embeddings, labels, e, reduction=reduction, **options)
        assert value.shape == (labels.shape if reduction == "none" else ())
        for grad in torch.autograd.grad(value.sum(), (embeddings, e)):
            assert value.count_nonzero() == 0
            assert grad.count_nonzero() == 0 and grad.isfinite().all()


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
def test_reductions_and_ignored_pixels(loss):
    embeddings, labels, e = problem()
    each = loss(embeddings, labels, e, reduction="none")
    counted = labels != -1
    assert 0 < counted.sum() < labels.numel()
    assert each.shape == labels.shape and each[~counted].count_nonzero() == 0 and (each[counted] > 0).all()
    torch.testing.assert_close(loss(embeddings, labels, e, reduction="sum"), each.sum())
    torch.testing.assert_close(loss(embeddings, labels, e), each[counted].mean())
    other = labels.where(counted, 255).to(torch.uint8)
    torch.testing.assert_close(loss(embeddings, other, e, ignore_index=255), each[counted].mean())


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_distance_zero_gives_no_gradient(loss, distance):
    e = torch.eye(4)
    embeddings = e[2].view(1, 4, 1, 1).clone().requires_grad_()
    value = loss(embeddings, torch.tensor([[[2]]]), e, temperature=1.0, distance=distance)
    other = 2.0 if distance == "squared" else math.sqrt(2)
    assert value.item() == pytest.approx(math.log(1 + 3 * math.exp(-other)), rel=1e-6)
    (grad,) = torch.autograd.grad(value, embeddings)
    share = math.exp(-other) / (1 + 3 * math.exp(-other))  # each other class pushes along (o - e) / ||o - e||, or 2 (o - e)
    slope = share * (2.0 if distance == "squared" else 1 / math.sqrt(2))
    torch.testing.assert_close(grad.flatten(), torch.tensor([slope, slope, -3 * slope, slope]))


def test_duplicate_classes():
    e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    embeddings = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    label = torch.tensor([[[1]]])
    expected = math.log(2 + math.exp(-20 * math.sqrt(2)))
    for search in ("faiss", "torch"):
        value = knn_cross_entropy(embeddings, label, e, k=2, search=search)
        assert value.item() == pytest.approx(expected)
        assert torch.autograd.grad(value, embeddings)[0].isfinite().all()
    assert exact_cross_entropy(embeddings, label, e).item() == pytest.approx(expected)
    assert knn_cross_entropy(embeddings, label, e, k=1, search="torch").item() == pytest.approx(math.log(2))


def test_published_collision_by_hand():
    """One pixel at 0 and classes at 0.1, 0.2, 0.3, 0.4 on a line: the two nearest are 0 and 1."""
    e = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    pixel = torch.zeros(1, 1, 1, 1)
    for target, negatives in ((0, (0, 1)), (1, (0, 0)), (2, (0, 1)), (3, (0, 1))):
        z = {c: math.exp(-20 * d) for c, d in enumerate((0.1, 0.2, 0.3, 0.4))}
        expected = -math.log(z[target] / (z[target] + sum(z[c] for c in negatives)))
        for search in ("faiss", "torch"):
            label = torch.tensor([[[target]]])
            got = knn_cross_entropy(pixel, label, e, k=2, negatives="published", search=search)
            assert got.item() == pytest.approx(expected, rel=1e-5), target


def test_nearest_always_has_k_negatives_by_hand():
    e = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    for target, negatives in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1)), (3, (0, 1))):
        z = [math.exp(-20 * d) for d in (0.1, 0.2, 0.3, 0.4)]
        expected = -math.log(z[target] / (z[target] + sum(z[c] for c in negatives)))
        got = knn_cross_entropy(torch.zeros(1, 1, 1, 1), torch.tensor([[[target]]]), e, k=2)
        assert got.item() == pytest.approx(expected, rel=1e-5), target


def test_random_negatives_are_distinct_others_and_even():
    from ess.losses.cross_entropy import _random_others

    targets = torch.randint(6, (20000, 1), generator=torch.Generator().manual_seed(0))
    drawn = _random_others(targets, 6, 3, torch.Generator().manual_seed(1))
    assert drawn.shape == (20000, 3) and not (drawn == targets).any()
    assert (drawn.sort(dim=1).values.diff(dim=1) > 0).all()
    sets = torch.bincount(((1 << drawn).sum(1))[targets[:, 0] == 2], minlength=64)
    assert sets.count_nonzero() == 10  # all sets of 3 of the 5 others
    assert sets[sets > 0].min() > 0.8 * sets[sets > 0].float().mean()


def test_random_negatives_follow_the_generator():
    args = problem(100)
    draws = [knn_cross_entropy(*args, negatives="random", generator=torch.Generator().manual_seed(s)).item() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
def test_layouts_and_types_of_input(loss):
    embeddings, labels, e = problem()
    expected = loss(embeddings, labels, e)
    strided = torch.empty(2, 12, 3, 5).transpose(2, 3).copy_(embeddings)
    torch.testing.assert_close(loss(strided, labels, e), expected)
    torch.testing.assert_close(loss(embeddings.to(memory_format=torch.channels_last), labels, e), expected)
    torch.testing.assert_close(loss(embeddings, labels.long(), e.T.contiguous().T), expected)
    torch.testing.assert_close(loss(embeddings.double(), labels, e.double()).float(), expected)
    half = embeddings.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, labels, e)
    torch.testing.assert_close(value, loss(half.detach().float(), labels, e))
    assert torch.autograd.grad(value, half)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["fused", "torch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighted", [False, True])
def test_half_precision_counts_any_number_of_pixels(dtype, backend, weighted):
    """float16 ends at 65,504, and bfloat16 rounds 65,791 to 65,536."""
    embeddings, labels, e = problem(5, 3, (1, 257, 256), 0.0)
    labels[0, 0, 0] = -1
    halves, found = [embeddings.to(dtype), e.to(dtype)], []
    for cast in (torch.Tensor.clone, torch.Tensor.float):
        o, classes = (cast(x).requires_grad_() for x in halves)
        extra = {"class_weight": cast(torch.ones(5, dtype=dtype))} if weighted else {}
        value = exact_cross_entropy(o, labels, classes, backend=backend, **extra)
        value.backward()
        found.append((value.detach(), o.grad.float(), classes.grad.float()))
    for mine, theirs, bound in zip(*found, (1e-5, 1e-2, 1e-2), strict=True):
        assert theirs.norm() > 0 and (mine - theirs).norm() <= bound * theirs.norm()


@pytest.mark.parametrize("loss", [exact_cross_entropy, knn_cross_entropy])
def test_refusals(loss):
    embeddings, labels, e = problem(30)
    for wrong in (30, -2, 255):
        bad = labels.clone()
        bad[0, 0, 0] = wrong
        with pytest.raises(ValueError, match=rf"labels hold {wrong}: expected 0\.\.29, or -1 where ignored"):
            loss(embeddings, bad, e)
    with pytest.raises(ValueError, match="do not fit"):
        loss(embeddings, labels[:1], e)
    with pytest.raises(ValueError, match="integer"):
        loss(embeddings, labels.float(), e)
    with pytest.raises(ValueError, match="12 channels"):
        loss(embeddings, labels, e[:, :5])
    with pytest.raises(ValueError, match="at least 2 classes"):
        loss(embeddings, labels.clamp(max=0), e[:1])
    with pytest.raises(ValueError, match="distance is 'manhattan'"):
        loss(embeddings, labels, e, distance="manhattan")
    with pytest.raises(ValueError, match="reduction is 'max'"):
        loss(embeddings, labels, e, reduction="max")


def test_knn_refusals():
    args = problem()
    with pytest.raises(ValueError, match="negatives is 'hard'"):
        knn_cross_entropy(*args, negatives="hard")
    with pytest.raises(ValueError, match="k is 0"):
        knn_cross_entropy(*args, k=0)


def test_margin_penalty_is_the_definition():
    e = F.normalize(torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=1).requires_grad_()
    gaps = [min((e[c] - e[j]).norm() for j in range(20) if j != c) for c in range(20)]
    expected = sum((0.2 - g).clamp_min(0) for g in gaps) / 20
    assert 0 < expected.item() < 0.2
    got = margin_penalty(e)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, e)[0] for loss in (got, expected)))
    assert torch.autograd.gradcheck(margin_penalty, e)


def in_one_piece(e, margin=0.2):
    """The penalty, computed from all C x C distances at once."""
    with torch.no_grad():
        distances = torch.cdist(e, e, compute_mode="donot_use_mm_for_euclid_dist")
        closest = distances.fill_diagonal_(torch.inf).argmin(dim=1)
    return F.relu(margin - torch.linalg.vector_norm(e - F.embedding(closest, e), dim=1)).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 7 * 50, 10**6])
def test_margin_penalty_in_parts_is_that_in_one_piece(dtype, at_once, monkeypatch):
    monkeypatch.setattr("ess.losses.cross_entropy._DISTANCES", at_once)
    e = F.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=dtype), dim=1)
    e[17], e[40] = e[3], e[3]  # ties go to the lower class
    e.requires_grad_()
    got, expected = margin_penalty(e, margin=0.4), in_one_piece(e, margin=0.4)
    assert got.item() == expected.item() > 0.05
    assert torch.equal(*(torch.autograd.grad(loss, e)[0] for loss in (got, expected)))


def test_margin_penalty_compiles():
    e = F.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    compiled = torch.compile(margin_penalty, backend="eager", fullgraph=True)
    assert compiled(e).item() == margin_penalty(e).item()


def test_margin_penalty_is_zero_for_classes_far_apart():
    assert margin_penalty(10 * torch.eye(4)).item() == 0


def test_margin_penalty_of_duplicates_is_finite():
    e = torch.ones(3, 4, requires_grad=True)
    loss = margin_penalty(e, margin=0.5)
    assert loss.item() == 0.5
    assert torch.autograd.grad(loss, e)[0].count_nonzero() == 0


def test_dense_cross_entropy():
    labels = torch.randint(-1, 9, (2, 5, 3), generator=torch.Generator().manual_seed(0))
    logits = torch.randn(2, 9, 5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    for reduction in ("mean", "sum", "none"):
        expected = F.cross_entropy(logits, labels, ignore_index=-1, reduction=reduction)
        torch.testing.assert_close(dense_cross_entropy(logits, labels.short(), reduction=reduction), expected)
    nothing = dense_cross_entropy(logits, torch.full_like(labels, -1))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, logits)[0].count_nonzero() == 0
    with pytest.raises(ValueError, match="labels hold 9"):
        dense_cross_entropy(logits, torch.full_like(labels, 9))
