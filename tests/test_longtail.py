"""What class frequencies make of training, against the formulas of LVIS and of logit adjustment, on a built data set."""

import math

import numpy as np
import pytest
import torch

from cocolvis.dataset import Dataset
from cocolvis.errors import DataError
from ess import train as training
from ess.config import Config
from ess.data import StepBatches, epoch_length, to_labels
from ess.longtail import Frequencies, Tail, class_bias, class_weight, repeat_factors, tail_of


@pytest.fixture(scope="module")
def split(sample_dataset):
    return Dataset.open(sample_dataset).split("train")


@pytest.fixture(scope="module")
def frequencies(split):
    return Frequencies.of(split, 1284)


def test_frequencies_are_those_of_the_masks(split, frequencies):
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


def test_repeats_come_as_often_as_they_should_and_epochs_are_equally_long():
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
    assert len(set(draws)) == len(draws)  # a repeated image is augmented anew
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


def test_the_exact_loss_takes_bias_and_weights(monkeypatch):
    seen = {}
    monkeypatch.setattr(training.losses, "exact_cross_entropy", lambda *inputs, **settings: seen.update(settings))

    class Model:
        def __call__(self, images):
            return images

        def classes(self):
            return torch.zeros(3, 2)

    tail = Tail(bias=torch.ones(3), weight=torch.zeros(3))
    training.loss_of(Model(), torch.zeros(1), torch.zeros(1), Config(loss="exact", margin=0), tail)
    assert seen["bias"] is tail.bias and seen["class_weight"] is tail.weight


def test_settings_choose_what_is_computed(split):
    device = torch.device("cpu")
    assert tail_of(split, 1284, Config(), device) == Tail()
    tail = tail_of(split, 1284, Config(repeat_threshold=0.1), device)
    assert tail.bias is None and tail.weight is None and len(tail.repeats) == len(split)
    tail = tail_of(split, 1284, Config(loss="exact", logit_adjustment=1.0, class_weight_power=0.5), device)
    assert tail.repeats is None and tail.bias.shape == tail.weight.shape == (1284,)
    with pytest.raises(DataError, match="are for the loss over all classes, but loss is 'knn'; choose --loss exact"):
        tail_of(split, 1284, Config(logit_adjustment=1.0), device)
