"""The Triton kernels of the exact loss and of the search against definitions in float64 and against sorting."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from triton_cases import DEVICE, INTERPRETED, error, interpreted, kernel, long, multiply_bfloat16, problem

from ess.kernels.distances import COSINE, DISTANCES, EUCLIDEAN, SQUARED

if INTERPRETED or DEVICE == "cuda":
    from ess.kernels.gpu import exact, search

BOUNDS = (1e-5, 2**-11, 2**-11, 2**-11)
"""The relative errors allowed for the losses and all gradients, whose weights are rounded to float16."""

FILES = [Path(__file__), Path(__file__).with_name("test_triton_candidates.py")]


@pytest.mark.skipif(INTERPRETED or DEVICE == "cuda", reason="the kernels run in this process")
@pytest.mark.parametrize("which", ["not long", pytest.param("long", marks=pytest.mark.long)])
def test_the_results_of_all_kernels_in_the_interpreter(which):
    quiet = ("-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning")
    assert "passed" in interpreted("-m", "pytest", *quiet, "-m", which, *FILES)


@pytest.mark.long
@pytest.mark.skipif(INTERPRETED, reason="starts an interpreter of its own")
def test_the_benchmark_runs_in_the_interpreter():
    checks = json.loads(interpreted("benchmarks/gpu.py", "check", "--interpret", "--json"))["checks"]
    assert len(checks) == 2 * (2 * 3 * 3 + 1) and all(check["error"] <= check["bound"] for check in checks)
    tables = json.loads(interpreted("benchmarks/gpu.py", "measure", "--interpret", "--json"))["tables"]
    losses = tables["7 classes, float32"]
    assert losses["published"]["times_as_fast_as_published"] == 1
    expected = {"exact, Triton", "exact, cosine, Triton", "k-NN, Triton", "exact, torch", "dense", "dense at points"}
    assert expected <= losses.keys() and not [name for name, row in losses.items() if "failed" in row]
    assert tables["7 classes, search"]


@pytest.mark.skipif(INTERPRETED, reason="starts a process of its own")
def test_the_benchmark_refuses_to_check_types_without_bounds():
    words = [sys.executable, "benchmarks/gpu.py", "check", "--dtype", "float16"]
    refused = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "'float16' is not one of 'float32', 'bfloat16'" in refused.stderr


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small tiles, and products of bfloat16, which the interpreter stores as bits and cannot multiply."""
    if not INTERPRETED:
        return
    multiply_bfloat16(monkeypatch)
    monkeypatch.setattr(exact, "_tiles", lambda channels: exact.Tiles(exact.Tile(32, 32, 4, 1), exact.Tile(16, 32, 4, 1)))
    monkeypatch.setattr(search, "_blocks", lambda k, channels: (16, 32))


def extras(classes, size, names=("weights", "bias", "mask"), seed=1):
    """Weights of both signs, a bias, and a mask that keeps some classes of each image; ones or None if not in ``names``."""
    g = torch.Generator().manual_seed(seed)
    weights, bias, mask = (torch.rand(n, generator=g) for n in ((2, size), (classes,), (2, classes)))
    mask = mask < 0.6
    mask[:, :2] = True
    return (
        weights - 0.3 if "weights" in names else torch.ones(2, size),
        3 * bias if "bias" in names else None,
        mask if "mask" in names else None,
    )


def definition(o, labels, weights, e, bias, mask, temperature, distance):
    """The loss of each pixel, and the gradients of the weighted sum by o, e and bias, from all logits in float64."""
    o, e, bias = (None if x is None else x.detach().double().requires_grad_() for x in (o, e, bias))
    pixels = o.transpose(1, 2)
    if distance == COSINE:
        z = temperature * pixels @ e.T
    else:
        squares = (pixels[:, :, None] - e).square().sum(3)
        zero = squares == 0
        z = -temperature * (squares if distance == SQUARED else squares.masked_fill(zero, 1).sqrt().masked_fill(zero, 0))
    z = z if bias is None else z + bias
    counted = labels != -1
    own = torch.where(counted, labels, 0)[..., None]
    others = z.scatter(2, own, -torch.inf)
    others = others if mask is None else others.masked_fill(~mask[:, None], -torch.inf)
    losses = -F.logsigmoid(z.gather(2, own).squeeze(2) - others.logsumexp(2)) * counted
    leaves = [x for x in (o, e, bias) if x is not None]
    return losses.detach(), *torch.autograd.grad((losses * weights).sum(), leaves)


def run(o, labels, weights, e, bias, mask, temperature, distance, gradients=True, ignore_index=-1):
    tensors = (None if x is None else x.to(DEVICE) for x in (o, labels, weights, e, bias, mask))
    found = exact.exact(*tensors, ignore_index=ignore_index, temperature=temperature, distance=distance, gradients=gradients)
    return [x.cpu() for x in found if x is not None]


def assert_matches(arguments, bounds=BOUNDS, temperature=10.0, distance=EUCLIDEAN):
    found, truth = (f(*arguments, temperature, distance) for f in (run, definition))
    assert len(found) == len(truth)
    for mine, theirs, bound in zip(found, truth, bounds, strict=False):
        assert mine.shape == theirs.shape and error(mine, theirs) <= bound
    return found


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
@pytest.mark.parametrize("names", [long(()), long(("bias",)), ("weights", "bias", "mask")])
@pytest.mark.parametrize(("classes", "dim", "size"), [(2, 2, 9), (75, 5, 45), (70, 16, 20), long(33, 32, 33)])
def test_exact_is_the_definition(classes, dim, size, names, distance):
    o, labels, e = problem(classes, dim, size)
    weights, bias, mask = extras(classes, size, names)
    assert_matches((o, labels, weights, e, bias, mask), distance=distance)


@kernel
@pytest.mark.parametrize("distance", [EUCLIDEAN, long(SQUARED)])
@pytest.mark.parametrize("near", [long(0.1), long(1e-2), 1e-4, 0.0])
def test_confident_pixels_keep_their_precision(near, distance):
    o, labels, e = problem(75, 12, 40, near)
    assert_matches((o, labels, torch.ones(2, 40), e, None, None), temperature=20.0, distance=distance)


@kernel
@pytest.mark.parametrize("near", [long(0.1), long(1e-2), 1e-4, 0.0])
def test_pixels_near_other_classes_keep_their_precision(near):
    o, labels, e = problem(75, 12, 40, near)
    assert_matches((o, torch.where(labels < 0, labels, (labels + 1) % 75), torch.ones(2, 40), e, None, None))


@kernel
@pytest.mark.parametrize("target", [0, 31, 32, *map(long, (63, 64, 127, 128)), 139])
def test_images_of_one_class_at_the_edge_of_a_tile(target):
    o, labels, e = problem(140, 5, 20)
    assert_matches((o, labels.clamp_max(0) + target * (labels >= 0), torch.ones(2, 20), e, None, None))


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
def test_duplicate_classes(distance):
    o, labels, e = problem(20, 4, 40, 0.0)
    e = torch.cat([e, e])
    assert_matches((o, labels, *extras(40, 40)[:1], e, None, None), distance=distance)


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
def test_nothing_counted_is_zero(distance):
    o, labels, e = problem(40, 5, 40)
    for found in run(o, labels.fill_(-1), *extras(40, 40)[:1], e, *extras(40, 40)[1:], 20.0, distance):
        assert found.isfinite().all() and not found.any()


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
def test_ignored_pixels_may_hold_anything(distance):
    o, labels, e = problem(40, 5, 40)
    e[30:] *= 1e-6  # near 0, which ignored pixels count as
    ignored = (labels == -1)[:, None].expand_as(o)
    arguments = (labels, *extras(40, 40)[:1], e, *extras(40, 40)[1:], 20.0, distance)
    for mine, theirs in zip(run(o.masked_fill(ignored, torch.nan), *arguments), run(o, *arguments), strict=True):
        torch.testing.assert_close(mine, theirs)


@kernel
def test_any_strides_and_labels():
    o, labels, e = problem(40, 5, 40)
    weights, bias, mask = extras(40, 40)
    expected = run(o, labels, weights, e, bias, mask, 20.0, EUCLIDEAN)
    channels_last = o.transpose(1, 2).contiguous().transpose(1, 2)
    sliced = torch.stack([o, -o], dim=3).flatten(2)[..., ::2]
    for strided in (channels_last, sliced, o.flip(0).contiguous().flip(0)):
        found = run(strided, labels.t().contiguous().t(), weights, e.T.contiguous().T, bias, mask.T.contiguous().T, 20.0, 0)
        torch.testing.assert_close(found, expected)
    bytes_ = torch.where(labels < 0, 255, labels).byte()
    torch.testing.assert_close(run(o, bytes_, weights, e, bias, mask, 20.0, 0, ignore_index=255), expected)
    ones = run(o, labels, torch.ones(()).expand(2, 40), e, None, None, 20.0, EUCLIDEAN)
    torch.testing.assert_close(ones, run(o, labels.short(), torch.ones(2, 40), e, None, None, 20.0, EUCLIDEAN))


@kernel
@pytest.mark.parametrize(("dtype", "step"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize(("dim", "distance"), [(12, EUCLIDEAN), long(12, SQUARED), (12, COSINE), long(32, EUCLIDEAN)])
def test_half_precision_costs_the_gradients_one_rounding(dim, distance, dtype, step):
    o, labels, e = problem(75, dim, 40)
    o, e = o.to(dtype), e.to(dtype)
    o[0, :, :20] = e[labels[0, :20].clamp_min(0)].T + 0.1 * o[0, :, :20]
    weights = extras(75, 40)[0] / 2**20  # as for a mean over many pixels
    found = assert_matches((o, labels, weights, e, None, None), (1e-5, 2 * step, 2 * step), distance=distance)
    assert [x.dtype for x in found[1:]] == [torch.float32 if dtype == torch.float16 else dtype, torch.float32]


@kernel
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_two_types_the_wider_one_counts(dtype):
    o, labels, e = problem(75, 12, 40)
    assert_matches((o.to(dtype), labels, torch.ones(2, 40), e, None, None), (1e-5, 2**-7, 2**-11))
    assert_matches((o, labels, torch.ones(2, 40), e.to(dtype), None, None))


@kernel
def test_losses_near_zero_keep_their_digits():
    e = torch.eye(3)
    for length, temperature in ((3, 10.0), (1, 0.5), (1, 1e-3)):
        o = (e[0] * length).view(1, 3, 1)
        losses, *_ = run(o, torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), e, None, None, temperature, COSINE)
        expected = torch.tensor(2 * torch.tensor(-length * temperature).double().exp().item()).log1p()
        assert losses.item() == pytest.approx(expected.item(), rel=1e-5)


@kernel
@pytest.mark.parametrize(("distance", "temperature"), [(EUCLIDEAN, 10.0), (SQUARED, 0.5), (COSINE, 0.5)])
def test_long_embeddings_do_not_overflow(distance, temperature):
    o, labels, e = problem(40, 5, 40)
    assert_matches((30 * o, labels, torch.ones(2, 40), 30 * e, None, None), temperature=temperature, distance=distance)


@kernel
@pytest.mark.parametrize("distance", [EUCLIDEAN, long(SQUARED)])
@pytest.mark.parametrize(("pixels", "classes"), [(1e-6, 1.0), (1.0, 1e-6), (1e-4, 1e-4), (0.0, 1.0)])
def test_embeddings_of_very_different_lengths(pixels, classes, distance):
    o, labels, e = problem(75, 12, 40)
    o, e = o * pixels ** torch.linspace(0, 1, 40), e * classes ** torch.linspace(0, 1, 75)[:, None]
    assert_matches((o, labels, torch.ones(2, 40), e, None, None), distance=distance)


@kernel
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
def test_short_embeddings_with_a_bias(distance):
    o, labels, e = problem(40, 5, 40)
    length = 1e-12
    t = {EUCLIDEAN: 1, SQUARED: 2, COSINE: 2}[distance]
    weights, bias, mask = extras(40, 40)
    assert_matches((length * o, labels, weights, length * e, bias, mask), temperature=10.0 / length**t, distance=distance)


@kernel
@pytest.mark.parametrize("length", [1e14, 1e17, 1e20, float("inf"), float("nan")])
def test_embeddings_beyond_all_limits_end(length):
    o, labels, e = problem(40, 5, 40)
    given = (length * o, labels, torch.ones(2, 40), length * e, None, None)
    if length == 1e14:
        assert_matches(given, temperature=20.0 / length)
        return
    losses, _, classes = run(*given, 20.0, EUCLIDEAN)  # at 1e17, taking a pair out of its tile must not leave it near
    assert length == 1e17 or (losses[labels >= 0].isnan().all() and classes.isnan().all())


@kernel
def test_a_target_alone_costs_nothing():
    o, labels, e = problem(40, 5, 40)
    losses, *gradients = run(o, labels, torch.ones(2, 40), e, None, torch.zeros(2, 40, dtype=torch.bool), 20.0, EUCLIDEAN)
    assert not losses.any() and not any(gradient.any() for gradient in gradients)


@kernel
@pytest.mark.long
def test_parts_add_up(monkeypatch):
    o, labels, e = problem(40, 5, 100)
    weights, bias, mask = extras(40, 100)
    found = []
    for programs, workspace in ((2048, 64 << 20), (5, 64 << 20), (2048, 0)):
        monkeypatch.setattr(exact, "_PROGRAMS", programs)
        monkeypatch.setattr(exact, "_WORKSPACE", workspace)
        found.append(run(o, labels, weights, e, bias, mask, 20.0, EUCLIDEAN))
    for parts in found[1:]:
        torch.testing.assert_close(found[0], parts, rtol=1e-4, atol=1e-5)


@kernel
def test_images_of_one_pixel():
    o, labels, e = problem(9, 3, 15)
    weights = extras(9, 15)[0]
    expected = run(o, labels, weights, e, None, None, 20.0, EUCLIDEAN)
    alone = (o.transpose(1, 2).reshape(30, 3, 1), labels.view(30, 1), weights.view(30, 1))
    losses, moves, classes = run(*alone, e, None, None, 20.0, EUCLIDEAN)
    torch.testing.assert_close(losses.view(2, 15), expected[0])
    torch.testing.assert_close(moves.view(2, 15, 3).transpose(1, 2), expected[1])
    torch.testing.assert_close(classes, expected[2], rtol=1e-4, atol=1e-5)


@kernel
def test_the_value_alone_is_the_same():
    o, labels, e = problem(40, 5, 40)
    arguments = (o, labels, *extras(40, 40)[:1], e, *extras(40, 40)[1:], 20.0, EUCLIDEAN)
    (alone,) = run(*arguments, gradients=False)
    assert torch.equal(alone, run(*arguments)[0])


def scored(queries, classes, products, bias=0.0, roots=False):
    q, c = queries.double(), classes.double()
    scores = 0 - q @ c.T if products else (q[:, None] - c).square().sum(2)
    return (scores.sqrt() if roots else scores) - bias


def by_sorting(*problem):
    return scored(*problem).sort(dim=1, stable=True).indices


def nearest_ids(queries, classes, k, products, bias=None, roots=False):
    how = {"products": products, "bias": None if bias is None else bias.to(DEVICE), "roots": roots}
    found = search.search(queries.to(DEVICE), classes.to(DEVICE), k, **how).cpu()
    assert found.dtype == torch.int64 and found.shape == (len(queries), k)
    return found


@kernel
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize(
    ("classes", "dim", "k"),
    [
        *[(2, 2, 1), (2, 2, 2), (37, 3, 5), (100, 12, 1), (150, 12, 8)],
        *[long(33, 1, 33), long(70, 64, 65)],
    ],
)
def test_search_agrees_with_sorting(classes, dim, k, products):
    g = torch.Generator().manual_seed(0)
    queries, e = torch.randn(40, dim, generator=g), torch.randn(classes, dim, generator=g)
    expected = by_sorting(queries, e, products)[:, :k]
    found = nearest_ids(queries, e, k, products)
    score = (-queries.double() @ e.double().T) if products else (queries[:, None].double() - e).norm(dim=2)
    apart = (score.gather(1, found) - score.gather(1, expected)).abs()
    assert (apart <= 1e-5).all() and (found == expected).float().mean() > 0.99
    assert (found.sort(dim=1).values.diff(dim=1) > 0).all()


@kernel
@pytest.mark.parametrize("products", [False, True])
def test_search_agrees_with_faiss(products):
    faiss = pytest.importorskip("faiss")
    g = torch.Generator().manual_seed(0)
    queries, e = torch.randn(40, 6, generator=g), torch.randn(80, 6, generator=g)
    index = (faiss.IndexFlatIP if products else faiss.IndexFlatL2)(6)
    index.add(e.numpy())
    assert (nearest_ids(queries, e, 5, products) == torch.from_numpy(index.search(queries.numpy(), 5)[1])).all()


@kernel
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("k", [1, long(3), 8, long(40)])
def test_search_takes_the_lower_id_among_equals(k, products):
    g = torch.Generator().manual_seed(0)
    queries, e = (torch.randint(-1, 2, (n, 3), generator=g).float() for n in (40, 80))  # small integers: many exact ties
    assert (nearest_ids(queries, e, k, products) == by_sorting(queries, e, products)[:, :k]).all()
    zeros = torch.cat([-torch.eye(41)[1:], torch.eye(41)[1:]])  # inner products of 0 and -0
    assert nearest_ids(torch.eye(41)[:1], zeros, k, True).tolist() == [[*range(k)]]


@kernel
@pytest.mark.parametrize(("products", "roots"), [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize(("classes", "dim", "k"), [(2, 2, 1), (100, 12, 1), (37, 3, 5)])
def test_search_with_a_bias_agrees_with_sorting(classes, dim, k, products, roots):
    g = torch.Generator().manual_seed(0)
    queries, e, bias = (torch.randn(*n, generator=g) for n in ((40, dim), (classes, dim), (classes,)))
    expected, scores = by_sorting(queries, e, products, bias, roots)[:, :k], scored(queries, e, products, bias, roots)
    found = nearest_ids(queries, e, k, products, bias, roots)
    torch.testing.assert_close(scores.gather(1, found), scores.gather(1, expected), atol=1e-5, rtol=0)
    assert (found == expected).float().mean() > 0.99 and (found != nearest_ids(queries, e, k, products)).any()


@kernel
@pytest.mark.parametrize("roots", [False, True])
def test_search_with_a_bias_takes_the_lower_id_among_equals(roots):
    g = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (60, 4), generator=g) * 2.0 - 1  # at the distance 2 from 0
    bias = torch.randint(0, 5, (60,), generator=g) / 2.0
    assert (
        nearest_ids(torch.zeros(20, 4), signs, 8, False, bias, roots)
        == by_sorting(torch.zeros(20, 4), signs, False, bias, roots)[:, :8]
    ).all()
    even = torch.full((60,), 4.0 if not roots else 2.0)  # all scores are 0
    assert nearest_ids(torch.zeros(20, 4), signs, 3, False, even, roots).tolist() == [[0, 1, 2]] * 20


@kernel
@pytest.mark.parametrize(("far", "count", "k", "right"), [long(1, 800, 1, 0.999), (100, 40, 1, 0.5), (100, 40, 5, 0.5)])
def test_search_tells_classes_apart_whose_products_are_equal(far, count, k, right):
    g = torch.Generator().manual_seed(0)
    queries, e = (far + torch.randn(n, 3, generator=g) / 100 for n in (count, 80))
    expected = by_sorting(queries, e, False)[:, :k]
    assert (nearest_ids(queries, e, k, False) == expected).all()
    products = (e.square().sum(1) - 2 * queries @ e.T).topk(k, largest=False).indices
    assert (products == expected).float().mean() < right  # by products alone, even in float32, others are nearest


@kernel
def test_search_at_the_edges():
    e = torch.tensor([[-1e30, 0.0], [1e30, 1e30], [-1e30, 1.0], [0.0, -1e30]])
    assert nearest_ids(torch.full((3, 2), 1e30), e, 4, False).tolist() == [[1, 0, 2, 3]] * 3
    g = torch.Generator().manual_seed(0)
    queries, e = torch.randn(20, 3, generator=g), torch.randn(40, 3, generator=g)
    expected = nearest_ids(queries, e, 4, False)
    assert torch.equal(nearest_ids(queries.T.contiguous().T, e.T.contiguous().T, 4, False), expected)
    queries[7] = torch.nan
    found = nearest_ids(queries, e, 4, False)
    assert ((found >= 0) & (found < 40)).all() and torch.equal(found[8:], expected[8:])
