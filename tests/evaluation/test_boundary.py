"""Accuracy near boundaries, compared with a loop over all pairs of pixels."""

import itertools

import numpy as np
import pytest

from ess.evaluation.boundary import boundary_counts, near_boundary


def naive(labels, distance):
    """Whether another label than the pixel's own is within ``distance`` rows and columns, pixel by pixel."""
    near = np.zeros(labels.shape, bool)
    pixels = [*itertools.product(*map(range, labels.shape))]
    for (y, x), (v, u) in itertools.product(pixels, pixels):
        known = labels[y, x] != -1 != labels[v, u]
        near[y, x] |= known and labels[y, x] != labels[v, u] and max(abs(y - v), abs(x - u)) <= distance
    return near


def scene(seed, height=17, width=14, kinds=(-1, 0, 5, 1283)):
    """Blocks of a few labels, so that some pixels are far from all others."""
    blocks = np.random.default_rng(seed).choice(kinds, (height // 8 + 1, width // 7 + 1))
    return np.kron(blocks, np.ones((8, 7), int))[:height, :width].astype(np.int16)


@pytest.mark.parametrize("distance", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_what_a_loop_finds(seed, distance):
    labels = scene(seed)
    near = near_boundary(labels, distance)
    np.testing.assert_array_equal(near, naive(labels, distance))
    assert near.any() and (~near & (labels >= 0)).any()


def test_neighbouring_ids_differ_far_above_the_integers_of_half_precision():
    labels = np.full((9, 30), 65_534, np.int32)
    labels[:, 15:] = 65_533
    assert near_boundary(labels).sum(axis=1).tolist() == [6] * 9


def test_corners_count_and_edges_and_ignored_pixels_do_not():
    labels = np.zeros((9, 9), np.int16)
    assert not near_boundary(labels).any()
    labels[4:, :] = -1
    assert not near_boundary(labels).any()
    labels[0, 0] = 1
    assert near_boundary(labels)[:4, :4].all() and near_boundary(labels).sum() == 16


def test_the_counts_divide_the_labelled_pixels():
    labels = scene(1)
    prediction = np.where(np.random.default_rng(0).random(labels.shape) < 0.6, labels, 3)
    near, labelled = naive(labels, 3), labels != -1
    (n, right_n), (e, right_e) = boundary_counts(labels, prediction).tolist()
    assert (n, e) == (near.sum(), (labelled & ~near).sum())
    assert right_n == (near & (prediction == labels)).sum() and right_n + right_e == (labelled & (prediction == labels)).sum()
    assert 0 < right_n < n and 0 < right_e < e


def test_refusals():
    with pytest.raises(ValueError, match="differ in shape"):
        boundary_counts(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="distance is 0: expected 1 or more"):
        near_boundary(np.zeros((2, 3), int), 0)
    with pytest.raises(ValueError, match=r"labels are \(0, 3\)"):
        near_boundary(np.zeros((0, 3), int))
