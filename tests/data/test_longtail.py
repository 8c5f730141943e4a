"""Training on a long tail of classes, compared with the formulas of LVIS and of logit adjustment on a built data set."""

import math

import numpy as np
import pytest
import torch

from cocolvis.errors import DataError
from cocolvis.vocabulary import ClassInfo, Vocabulary, coco_lvis
from ess.config import Config
from ess.data.loader import StepBatches, epoch_length, pixel_of_a_rare_class, to_labels, training_batches
from ess.data.longtail import (
    Frequencies,
    Tail,
    class_bias,
    class_weight,
    fully_annotated_classes,
    rarity,
    repeat_factors,
    tail_of,
)
from ess.data.transforms import random_crop, render_labels


@pytest.fixture(scope="module")
def split(dataset):
    return dataset.split("train")


@pytest.fixture(scope="module")
def frequencies(split):
    return Frequencies.of(split, 1284)


def test_frequencies_equal_those_of_the_masks(split, frequencies):
    pixels, images = np.zeros(1284, int), np.zeros(1284, int)
    for index in range(len(split)):
        labels = to_labels(split.mask(index))
        found = np.bincount(labels[labels >= 0], minlength=1284)
        pixels += found
        images += found > 0
    assert (frequencies.pixels == pixels).all() and (frequencies.images == images).all() and frequencies.size == len(split)


@pytest.mark.parametrize("threshold", [0.001, 0.2, 1.0])
def test_repeat_factors_are_the_formula(split, frequencies, threshold):
    found = repeat_factors(frequencies, threshold)
    for index in range(len(split)):
        present = set(np.unique(to_labels(split.mask(index)))) - {-1}
        shares = [frequencies.images[label] / len(split) for label in present]
        assert found[index] == pytest.approx(max([1.0, *(math.sqrt(threshold / share) for share in shares)]))


def test_images_repeat_as_often_as_they_should_and_epochs_are_equally_long():
    repeats = np.array([1, 1, 2.5, 1, 3.25, 1.1])
    length = epoch_length(6, repeats)
    assert length == 10
    seen = np.zeros(6)
    sampler = StepBatches(6, 5, 2 * 400, seed=3, repeats=repeats)
    batches = [[index for index, _ in batch] for batch in sampler]
    for epoch in range(400):
        counts = np.bincount(batches[2 * epoch] + batches[2 * epoch + 1], minlength=6)
        assert counts.sum() == length and (counts >= 1).all() and (np.abs(counts - repeats) < 1.2).all()
        seen += counts
    assert np.allclose(seen / 400, repeats * 10 / repeats.sum(), atol=0.08)
    draws = [draw for batch in sampler for _, draw in batch]
    assert len(set(draws)) == len(draws)  # a repeated image is augmented again
    resumed = [*StepBatches(6, 5, 800, seed=3, start=501, repeats=repeats)]
    assert resumed == [*sampler][501:]


def test_repeats_of_one_are_a_permutation():
    (batch,) = StepBatches(7, 7, 1, seed=0, repeats=np.ones(7))
    assert sorted(index for index, _ in batch) == [*range(7)]


def test_bias_is_tau_log_prior(frequencies):
    pixels = frequencies.pixels + 1
    expected = [1.5 * math.log(count / pixels.sum()) for count in pixels]
    torch.testing.assert_close(class_bias(frequencies, 1.5), torch.tensor(expected))


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_weights_are_the_power_and_one_on_average(frequencies, power):
    weights, pixels = class_weight(frequencies, power).double(), torch.from_numpy(frequencies.pixels).double()
    assert (weights * pixels).sum() / pixels.sum() == pytest.approx(1, rel=1e-5)
    present = pixels > 0
    ratio = weights[present] * pixels[present] ** power
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=0)
    assert (weights[~present] == 0).all()


def test_the_settings_choose_what_is_computed(split):
    vocabulary = coco_lvis()
    assert tail_of(split, vocabulary, Config()) == Tail()
    tail = tail_of(split, vocabulary, Config(repeat_threshold=0.1))
    assert tail.bias is None and tail.weight is None and len(tail.repeats) == len(split)
    tail = tail_of(split, vocabulary, Config(loss="exact", logit_adjustment=1.0, class_weight_power=0.5))
    assert tail.repeats is None and tail.bias.shape == tail.weight.shape == (1284,)
    for name, value in (("logit_adjustment", 1.0), ("class_weight_power", 0.5), ("federated", True)):
        with pytest.raises(DataError, match=f"{name} is for the loss over all classes, but loss is 'knn'; choose --loss exact"):
            tail_of(split, vocabulary, Config(loss="knn", **{name: value}))


def test_crops_hold_a_class_of_the_image_rare_ones_first(split, frequencies):
    """A crop is placed around a class with probability proportional to 1 / images with it, and around a pixel of it."""
    rare, rng = rarity(frequencies), np.random.default_rng(0)
    assert (rare == 1 / np.maximum(frequencies.images, 1)).all()
    mask = split.mask(0)
    drawn = [int(mask[pixel_of_a_rare_class(mask, rare, rng)]) - 1 for _ in range(4000)]
    present = np.setdiff1d(to_labels(mask), -1)
    expected = np.array([1 / frequencies.images[label] for label in present])
    shares = np.array([(np.array(drawn) == label).mean() for label in present])
    assert len(present) > 3 and np.abs(shares - expected / expected.sum()).max() < 0.03
    assert pixel_of_a_rare_class(np.zeros((4, 4), np.uint16), rare, rng) is None


@pytest.mark.parametrize(("size", "scale"), [((40, 64), (1.0, 2.0)), ((10, 12), (1.0, 2.0)), ((64, 40), (0.5, 1.0))])
def test_a_crop_holds_the_pixel_that_it_is_placed_around(size, scale):
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(300):
        y, x = (int(rng.integers(side)) for side in size)
        mask = np.zeros(size, np.uint16)
        mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 7  # three pixels wide: half the scale still hits one
        found = random_crop(size, rng, size=16, scale=scale, flip=0.5, around=(y, x))
        crop = render_labels(torch.from_numpy(to_labels(mask[found.rows, found.columns])), found, 16).numpy() + 1
        assert (crop == 7).any() and mask[found.rows, found.columns][y - found.rows.start, x - found.columns.start] == 7
        starts.add(tuple(np.argwhere(crop == 7)[0]))
    assert len(starts) > 50


def test_the_federated_mask_is_what_annotators_looked_for(dataset):
    """A class is in the softmax if it is stuff alone, annotated in the image, or verified absent."""
    config = Config(loss="exact", federated=True, crop=32, batch_size=4, workers=0, epochs=1)
    split, vocabulary = dataset.split("train"), dataset.vocabulary
    rows = {image_id: row for row, image_id in enumerate(split.image_ids().tolist())}
    left_out = 0
    for batch in training_batches(split, config, 4, 0, tail_of(split, vocabulary, config)):
        assert batch.classes.shape == (4, 1284) and batch.classes.dtype == bool
        for image_id, classes in zip(batch.ids.tolist(), batch.classes, strict=True):
            sample = split[rows[image_id]]
            known = set(sample.neg.tolist()) | set(np.unique(sample.mask).tolist())
            expected = [c.id in known or c.kind == "stuff" for c in vocabulary]
            assert classes.tolist() == expected
            left_out += len(expected) - sum(expected)
    assert left_out > 1000


@pytest.mark.parametrize("setting", [{"logit_adjustment": 1.0}, {"class_weight_power": 0.5}, {"federated": True}])
def test_auto_offers_what_exact_does_where_it_is_exact(dataset, monkeypatch, setting):
    split, vocabulary = dataset.split("train"), dataset.vocabulary
    found, expected = (tail_of(split, vocabulary, Config(loss=loss, **setting)) for loss in ("auto", "exact"))
    for a, b in zip(found, expected, strict=True):
        assert (a is None and b is None) or (a == b).all()
    assert sum(part is not None for part in found) == 1
    monkeypatch.setattr("ess.losses.cross_entropy.EXACT_UP_TO", 1283)
    with pytest.raises(DataError, match="loss is 'auto', which is 'knn' for 1284 classes; choose --loss exact"):
        tail_of(split, vocabulary, Config(loss="auto", **setting))
    with pytest.raises(DataError, match="but loss is 'knn'; choose --loss exact"):
        tail_of(split, vocabulary, Config(loss="knn", **setting))


def test_the_federated_mask_is_refused_where_everything_was_annotated():
    classes = [ClassInfo(1, "road", "stuff", "stuff", None, {}), ClassInfo(2, "car", "thing", "frequent", None, {})]
    with pytest.raises(DataError, match="annotated in full: leave out --federated"):
        fully_annotated_classes(Vocabulary(classes))
