"""The metrics, compared with counting pixel by pixel in Python."""

import json
import math

import numpy as np
import pytest
import torch

from ess.evaluation.metrics import Confusion

KEYS = {"miou", "pixel_accuracy", "mean_accuracy", "fw_iou", "groups", "images"}


def naive(truths, predictions, classes, published=False):
    """IoU and accuracy of each class, pixel accuracy and frequency-weighted IoU, from lists of (truth, prediction)."""
    pixels = [(int(t), int(p)) for a, b in zip(truths, predictions, strict=True) for t, p in zip(a.flat, b.flat, strict=True)]
    pixels = [(t, p) for t, p in pixels if t != -1]
    iou, accuracy, weighted = {}, {}, 0.0
    for c in range(classes):
        true, both = sum(t == c for t, _ in pixels), sum(t == p == c for t, p in pixels)
        union = sum(c in pair for pair in pixels)
        if true or (published and union):
            iou[c] = both / union
        if true:
            accuracy[c] = both / true
            weighted += true / len(pixels) * both / union
    return iou, accuracy, sum(t == p for t, p in pixels) / len(pixels), weighted


def images(classes=9, count=3, seed=0):
    rng = np.random.default_rng(seed)
    truths = [rng.integers(-1, classes - 2, (6, 7)).astype(np.int16) for _ in range(count)]  # the last two are never true
    return truths, [np.where(rng.random((6, 7)) < 0.5, t, rng.integers(0, classes - 1, (6, 7))).clip(0) for t in truths]


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_summary_is_the_naive_count(published, as_tensor):
    truths, predictions = images()
    confusion = Confusion(9)
    for t, p in zip(truths, predictions, strict=True):
        confusion.update(*((torch.from_numpy(t), torch.from_numpy(p)) if as_tensor else (t, p)))
    groups = ["rare", "rare", "common", "common", "common", "stuff", "stuff", "rare", "frequent"]
    iou, accuracy, pixel_accuracy, weighted = naive(truths, predictions, 9, published)
    summary = confusion.summary(groups, published=published)
    assert set(summary) == KEYS
    assert summary["images"] == 3
    assert summary["miou"] == pytest.approx(np.mean(list(iou.values())))
    assert summary["mean_accuracy"] == pytest.approx(np.mean(list(accuracy.values())))
    assert summary["pixel_accuracy"] == pytest.approx(pixel_accuracy)
    assert summary["fw_iou"] == pytest.approx(weighted)
    assert list(summary["groups"]) == ["rare", "common", "frequent", "stuff"]
    for name, value in summary["groups"].items():
        members = [iou[c] for c in iou if groups[c] == name]
        assert value == (pytest.approx(np.mean(members)) if members else None)
    assert summary["groups"]["frequent"] is None
    each = confusion.iou(published)
    assert [c for c in range(9) if not math.isnan(each[c])] == sorted(iou)
    assert json.loads(json.dumps(summary)) == summary


def test_published_counts_what_was_only_predicted():
    confusion = Confusion(3)
    confusion.update(np.array([0, 0, 0, 0]), np.array([0, 0, 0, 2]))
    assert confusion.summary()["miou"] == 0.75
    assert confusion.summary(published=True)["miou"] == 0.375
    assert confusion.summary(published=True)["fw_iou"] == 0.75
    np.testing.assert_array_equal(confusion.iou(), [0.75, np.nan, np.nan])
    np.testing.assert_array_equal(confusion.iou(published=True), [0.75, np.nan, 0.0])


def test_parts_add_up():
    truths, predictions = images(count=4)
    whole, left, right = (Confusion(9, matrix=True) for _ in range(3))
    for i, pair in enumerate(zip(truths, predictions, strict=True)):
        whole.update(*pair)
        (left if i < 1 else right).update(*pair)
    left += right
    assert (left.matrix == whole.matrix).all() and left.matrix.dtype == torch.int64
    assert (left.pixels == whole.pixels).all() and left.pixels.dtype == torch.int64
    assert left.matrix.sum() == sum((t != -1).sum() for t in truths)
    assert left.images == 4
    with pytest.raises(ValueError, match="5 classes"):
        left += Confusion(5)
    with pytest.raises(ValueError, match="with a matrix to counts without one"):
        left += Confusion(9)


@pytest.mark.parametrize("published", [False, True])
def test_scores_are_those_of_the_matrix_to_the_last_bit(published):
    rng = np.random.default_rng(0)
    counted, plain = Confusion(300, matrix=True), Confusion(300)
    for _ in range(3):
        truth = rng.integers(-1, 280, 10**5).astype(np.int16)
        pair = truth, np.where(rng.random(10**5) < 0.7, truth, rng.integers(0, 290, 10**5)).clip(0)
        counted.update(*pair)
        plain.update(*pair)
    matrix = counted.matrix.numpy()
    assert plain.matrix is None and matrix.sum() == plain.pixels[0].sum() > 290_000
    by_matrix = Confusion(300)
    by_matrix.images, by_matrix.totals = 3, lambda: (matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal())
    groups = rng.choice(["rare", "common", "stuff"], 300).tolist()
    assert plain.summary(groups, published=published) == by_matrix.summary(groups, published=published)
    assert np.array_equal(plain.iou(published), by_matrix.iou(published), equal_nan=True)


def test_rows_are_truth():
    confusion = Confusion(3, matrix=True)
    confusion.update(torch.tensor([0, 0, 1, -1]), torch.tensor([2, 2, 0, 1]))
    assert confusion.matrix.tolist() == [[0, 0, 2], [1, 0, 0], [0, 0, 0]]


def test_nothing_to_average_is_none():
    confusion = Confusion(3)
    for images_seen in (0, 1):
        assert confusion.summary(["rare", "rare", "stuff"]) == {
            "miou": None,
            "pixel_accuracy": None,
            "mean_accuracy": None,
            "fw_iou": None,
            "groups": {"rare": None, "common": None, "frequent": None, "stuff": None},
            "images": images_seen,
        }
        confusion.update(np.full((2, 2), -1), np.zeros((2, 2), int))
    assert np.isnan(confusion.iou()).all()


def test_without_groups_there_are_no_scores_by_group():
    confusion = Confusion(3)
    confusion.update(np.array([0, 1, 2]), np.array([0, 1, 1]))
    assert confusion.summary([None] * 3)["groups"] == {}
    assert confusion.summary([None, "own", None])["groups"]["own"] == 0.5
    assert set(confusion.summary()["groups"]) == {"rare", "common", "frequent", "stuff"}


def test_small_and_unsigned_types_do_not_wrap():
    confusion = Confusion(1284, ignore_index=65535, matrix=True)
    confusion.update(np.array([1283, 65535], np.uint16), np.array([1283, 5], np.int16))
    assert confusion.matrix[1283, 1283] == 1 == confusion.matrix.sum()


def test_refusals():
    confusion = Confusion(3)
    with pytest.raises(ValueError, match=r"truth holds 3: expected 0\.\.2"):
        confusion.update(np.array([3]), np.array([0]))
    with pytest.raises(ValueError, match=r"prediction holds -1: expected 0\.\.2"):
        confusion.update(np.array([1]), np.array([-1]))
    with pytest.raises(ValueError, match="differ in shape"):
        confusion.update(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(ValueError, match="given for 2 classes: expected 3"):
        confusion.summary(["rare", "stuff"])
    assert confusion.pixels.sum() == 0 and confusion.images == 0
