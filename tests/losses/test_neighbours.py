"""The implementations of the search against each other and against sorting all distances."""

import os

import pytest
import torch
import torch.nn.functional as F

from ess.kernels.distances import DISTANCES
from ess.kernels.gpu import probe
from ess.losses.neighbours import BACKENDS, fault_of, nearest

HERE = [backend for backend in BACKENDS if backend != "triton"]  # "triton" is tested in test_triton.py
EXACT = [backend for backend in HERE if backend != "clustered"]


def points(queries=500, classes=300, dim=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (F.normalize(torch.randn(n, dim, generator=g), dim=1) for n in (queries, classes))


def scored(queries, classes, distance, bias=0.0):
    """All distances minus the bias, in float64."""
    q, c = queries.double(), classes.double()
    if distance == "cosine":
        return 0 - q @ c.T - bias
    differences = q[:, None] - c
    return (differences.square().sum(dim=2) if distance == "squared" else differences.norm(dim=2)) - bias


def by_sorting(queries, classes, k, distance, bias=0.0):
    return scored(queries, classes, distance, bias).sort(dim=1, stable=True).indices[:, :k]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(
    ("classes", "dim", "k"), [(2, 2, 1), (2, 2, 2), (37, 3, 5), (513, 5, 9), (1284, 12, 1), (1284, 12, 8), (300, 64, 300)]
)
def test_backends_agree_with_sorting(classes, dim, k, distance):
    queries, e = points(211, classes, dim)
    e = 2 * e if distance == "cosine" else e
    expected = by_sorting(queries, e, k, distance)
    for backend in EXACT:
        ids = nearest(queries, e, k, distance=distance, backend=backend)
        assert ids.dtype == torch.int64 and ids.shape == (211, k)
        assert (ids == expected).float().mean() > 0.999, backend  # float32 may swap classes at nearly equal distances
        taken = torch.gather(torch.cdist(queries, e), 1, ids)
        torch.testing.assert_close(taken, torch.gather(torch.cdist(queries, e), 1, expected), atol=1e-3, rtol=0)


def test_lengths_count_for_cosine_and_for_euclidean():
    queries = torch.tensor([[1.0, 0.0]])
    classes = torch.tensor([[1.0, 0.0], [9.0, 9.0]])
    for backend in HERE:
        assert nearest(queries, classes, 1, backend=backend).item() == 0
        assert nearest(queries, classes, 1, distance="cosine", backend=backend).item() == 1


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_lower_id_is_taken_among_equals(backend, k, distance):
    queries, e = points(50, 8, 4)
    e = torch.cat([e, e, e])
    ids = nearest(queries, e, k, distance=distance, backend=backend)
    assert (ids == by_sorting(queries, e, k, distance)).all()
    orthogonal = torch.cat([-torch.eye(4)[1:], torch.eye(4)[1:]])  # inner products of 0 and -0
    assert nearest(torch.eye(4)[:1], orthogonal, k, distance=distance, backend=backend).tolist() == [[*range(k)]]


BIASED = ["torch", "numba", "auto"]


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("classes", "dim", "k"), [(2, 2, 1), (37, 3, 5), (1284, 12, 1), (1700, 30, 8), (300, 64, 300)])
def test_a_bias_is_subtracted_from_the_distances(classes, dim, k, distance):
    queries, e = points(211, classes, dim)
    e = 2 * e if distance == "cosine" else e
    bias = torch.randn(classes, generator=torch.Generator().manual_seed(1)) / 4
    expected, scores = by_sorting(queries, e, k, distance, bias), scored(queries, e, distance, bias)
    for backend in BIASED:
        if k > 64 and backend == "numba":
            continue
        ids = nearest(queries, e, k, distance=distance, bias=bias, backend=backend)
        assert ids.dtype == torch.int64 and (ids == expected).float().mean() > 0.998, backend
        torch.testing.assert_close(scores.gather(1, ids), scores.gather(1, expected), atol=1e-5, rtol=0)
        assert (ids != nearest(queries, e, k, distance=distance)).any()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BIASED)
def test_the_lower_id_is_taken_among_equals_with_a_bias_too(backend, distance):
    g = torch.Generator().manual_seed(0)
    queries, signs = torch.zeros(20, 4), torch.randint(0, 2, (9, 4), generator=g) * 2.0 - 1
    bias = torch.randint(0, 3, (9,), generator=g) / 4.0  # all distances are 2 or 4, so ties are exact
    e, bias = torch.cat([signs, -signs, signs]), torch.cat([bias, bias, bias])
    for k in (1, 4, 27):
        ids = nearest(queries, e, k, distance=distance, bias=bias, backend=backend)
        assert (ids == by_sorting(queries, e, k, distance, bias)).all()
    even = torch.full((len(e),), 0.25)
    assert nearest(queries, e, 5, distance=distance, bias=even, backend=backend).tolist() == [[*range(5)]] * 20


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_bias_of_zero_ranks_as_none_and_a_constant_changes_nothing(backend):
    queries, e = points()
    for distance in DISTANCES:
        plain = nearest(queries, e, 4, distance=distance, backend=backend)
        for constant in (0.0, 0.5):
            bias = torch.full((len(e),), constant, dtype=torch.float64, requires_grad=True)
            assert (nearest(queries, e, 4, distance=distance, bias=bias, backend=backend) == plain).float().mean() > 0.998


def test_refused_biases():
    queries, e = points()
    for backend in ("faiss", "clustered"):
        with pytest.raises(ValueError, match=f"{backend}', which cannot search with a bias; choose auto, numba, triton or"):
            nearest(queries, e, 1, bias=torch.zeros(300), backend=backend)
    with pytest.raises(ValueError, match=r"bias has the shape \(1, 300\): expected \(300,\), a number for each class"):
        nearest(queries, e, 1, bias=torch.zeros(1, 300))


def test_chunks(monkeypatch):
    queries, e = points()
    bias = torch.linspace(-1, 1, len(e))
    whole, biased = nearest(queries, e, 5, backend="torch"), nearest(queries, e, 5, bias=bias, backend="torch")
    monkeypatch.setattr("ess.losses.neighbours._PAIRS", 1000)
    assert (nearest(queries, e, 5, backend="torch") == whole).all()
    assert (nearest(queries, e, 5, bias=bias, backend="torch") == biased).all()


@pytest.mark.parametrize("backend", HERE)
def test_what_may_come_in(backend):
    queries, e = points()
    expected = nearest(queries, e, 3, backend=backend)
    assert (nearest(queries.double().requires_grad_(), e.T.contiguous().T, 3, backend=backend) == expected).all()
    assert nearest(queries[:0], e, 3, backend=backend).shape == (0, 3)
    queries[7] = torch.nan
    ids = nearest(queries, e, 3, backend=backend)
    assert ((ids >= 0) & (ids < len(e))).all()
    assert (ids[8:] == expected[8:]).all()


def test_refusals():
    queries, e = points()
    with pytest.raises(ValueError, match=r"k is 301: expected 1\.\.300"):
        nearest(queries, e, 301)
    with pytest.raises(ValueError, match=r"expected \(P, D\) and \(C, D\)"):
        nearest(queries, e[:, :3], 1)
    with pytest.raises(ValueError, match="distance is 'l1'"):
        nearest(queries, e, 1, distance="l1")
    with pytest.raises(ValueError, match="backend is 'annoy'"):
        nearest(queries, e, 1, backend="annoy")


@pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="the interpreter searches on the CPU")
def test_triton_needs_a_gpu():
    with pytest.raises(ValueError, match="backend is 'triton', which searches on a GPU, but the device is cpu"):
        nearest(*points(), 1, backend="triton")


def test_triton_finds_as_many_classes_as_a_block_of_its_kernel_keeps(monkeypatch):
    monkeypatch.setattr(probe, "works", lambda device: True)
    gpu = torch.device("cuda")
    assert (fault_of("triton", 65, gpu), fault_of("auto", 1000, gpu), fault_of("torch", 1000, gpu)) == ("", "", "")
    assert fault_of("triton", 66, gpu) == "'triton', which finds at most 65 classes, 64 negatives and the target, not 66"


@pytest.mark.parametrize("distance", DISTANCES)
def test_clusters_find_most(distance):
    queries, e = points(2000, 3000)
    found, all_near = (nearest(queries, e, 5, distance=distance, backend=backend) for backend in ("clustered", "torch"))
    recall = (found[:, :, None] == all_near[:, None]).any(dim=2).float().mean().item()
    assert 0.8 < recall < 1  # at 1 it would not approximate, and be slow
    distances = torch.cdist(queries, e).gather(1, found)
    assert (distances.diff(dim=1) >= -1e-5).all()
    assert (nearest(queries, e, 5, distance=distance, backend="clustered") == found).all()


def test_clusters_that_hold_too_few_are_made_up_for():
    queries, e = points(50, 400)
    found = nearest(queries, e, 300, backend="clustered")
    assert (found == nearest(queries, e, 300, backend="faiss")).all(dim=1).any()
    assert all(len(set(row)) == 300 and min(row) >= 0 for row in found.tolist())


def test_threads_share_the_queries():
    queries, e = points(3001, 700)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        many = nearest(queries, e, 4, backend="numba")
        torch.set_num_threads(1)
        assert (nearest(queries, e, 4, backend="numba") == many).all()
    finally:
        torch.set_num_threads(before)
    assert (many == nearest(queries, e, 4, backend="torch")).all(dim=1).float().mean() > 0.999


def test_infinite_distances_are_ordered_too():
    queries, e = torch.full((3, 2), 1e30), torch.tensor([[-1e30, 0.0], [1e30, 1e30], [-1e30, 1.0], [0.0, -1e30]])
    assert nearest(queries, e, 4, backend="numba").tolist() == [[1, 0, 2, 3]] * 3
