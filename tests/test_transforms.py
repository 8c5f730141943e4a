"""Augmentation: image and labels move together, as a plain resize, crop and flip would move them."""

import cv2
import numpy as np
import torch

from ess.transforms import normalize, random_crop


def picture(height=40, width=56, classes=5):
    """An image whose red channel is 10 times the label, in blocks."""
    labels = np.kron(np.arange(4 * 4).reshape(4, 4) % classes, np.ones((height // 4, width // 4))).astype(np.int16)
    image = np.zeros((*labels.shape, 3), np.uint8)
    image[..., 0] = labels * 10 + 100
    return image, labels


class Fixed:
    """Stands in for a generator: a given factor, offsets, and mirror draw."""

    def __init__(self, factor, offsets, draw):
        self.factor, self.offsets, self.draw = factor, list(offsets), draw
        self.bounds = []

    def uniform(self, low, high):
        return self.factor

    def integers(self, low, high):
        self.bounds.append((low, high))
        return self.offsets.pop(0)

    def random(self):
        return self.draw


def crop(image, labels, factor=1.0, offsets=(0, 0), draw=0.9, size=24):
    rng = Fixed(factor, offsets, draw)
    return *random_crop(image, labels, rng, crop=size, scale=(0.5, 2.0), flip=0.5), rng


def test_without_scaling_it_is_a_plain_crop():
    image, labels = picture()
    warped, truth, rng = crop(image, labels, offsets=(7, 5))
    assert np.array_equal(warped, image[5:29, 7:31])
    assert np.array_equal(truth, labels[5:29, 7:31])
    assert rng.bounds == [(0, 33), (0, 17)]


def test_mirroring_flips_both():
    image, labels = picture()
    warped, truth, _ = crop(image, labels, offsets=(7, 5), draw=0.1)
    assert np.array_equal(warped, image[5:29, 7:31][:, ::-1])
    assert np.array_equal(truth, labels[5:29, 7:31][:, ::-1])


def test_scaling_is_that_of_a_resize():
    image, labels = picture()
    warped, truth, _ = crop(image, labels, factor=2.0, offsets=(11, 3))
    resized = cv2.resize(image, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - resized[3:27, 11:35]).max() <= 1
    assert np.array_equal(truth, np.kron(labels, np.ones((2, 2)))[3:27, 11:35])


def test_a_small_picture_floats_in_the_window_and_the_rest_is_ignored():
    image, labels = picture()
    warped, truth, rng = crop(image, labels, offsets=(-4, -20), size=64)
    assert rng.bounds == [(-8, 1), (-24, 1)]
    assert np.array_equal(truth[20:60, 4:60], labels)
    assert (truth == -1).sum() == 64 * 64 - labels.size
    assert warped[0, 0].tolist() == [124, 116, 104]


def test_labels_stay_labels_and_agree_with_the_image():
    image, labels = picture()
    for seed in range(20):
        warped, truth = random_crop(image, labels, np.random.default_rng(seed), crop=33, scale=(0.5, 2.0), flip=0.5)
        assert set(np.unique(truth)) <= {-1, *range(5)}
        inside = truth >= 0
        agree = np.abs(warped[..., 0].astype(int) - (truth * 10 + 100)) <= 5
        assert agree[inside].mean() > 0.8


def test_normalize_has_imagenet_statistics():
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert torch.allclose(normalize(pixels).flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    assert normalize(pixels).dtype == torch.float32
