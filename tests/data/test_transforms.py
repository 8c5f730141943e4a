"""Augmentation: image and mask move together, as a plain resize, crop and flip would move them."""

import cv2
import numpy as np
import torch

from ess.data.transforms import color_jitter, normalize, random_crop, render_image, render_labels


def picture(height=40, width=56, classes=5):
    """An image of blocks whose red channel is 100 + 10 * class, and its mask of classes 1..5."""
    mask = np.kron(np.arange(4 * 4).reshape(4, 4) % classes + 1, np.ones((height // 4, width // 4))).astype(np.uint16)
    image = np.zeros((*mask.shape, 3), np.uint8)
    image[..., 0] = mask * 10 + 100
    return image, mask


class Fixed:
    """A stand-in for a random generator that returns a given factor, offsets and mirror draw."""

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


def crop(image, mask, factor=1.0, offsets=(0, 0), draw=0.9, size=24):
    rng = Fixed(factor, offsets, draw)
    return *rendered(image, mask, rng, size), rng


def rendered(image, mask, rng, size):
    """(size, size, 3) uint8 and (size, size) class ids, 0 = unlabelled."""
    found = random_crop(mask.shape, rng, size=size, scale=(0.5, 2.0), flip=0.5)
    pixels, labels = image[found.rows, found.columns], mask[found.rows, found.columns].astype(np.int16) - 1
    crop = render_image(torch.from_numpy(pixels), found, size)
    return crop.permute(1, 2, 0).numpy(), render_labels(torch.from_numpy(labels), found, size).numpy() + 1


def test_without_scaling_it_is_a_plain_crop():
    image, mask = picture()
    warped, truth, rng = crop(image, mask, offsets=(7, 5))
    assert np.array_equal(warped, image[5:29, 7:31])
    assert np.array_equal(truth, mask[5:29, 7:31])
    assert rng.bounds == [(0, 33), (0, 17)]


def test_mirroring_flips_both():
    image, mask = picture()
    warped, truth, _ = crop(image, mask, offsets=(7, 5), draw=0.1)
    assert np.array_equal(warped, image[5:29, 7:31][:, ::-1])
    assert np.array_equal(truth, mask[5:29, 7:31][:, ::-1])


def test_scaling_equals_a_resize():
    image, mask = picture()
    warped, truth, rng = crop(image, mask, factor=2.0, offsets=(11, 3))
    assert rng.bounds == [(0, 45), (0, 29)]
    resized = cv2.resize(image[3:15, 11:23], None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    assert np.abs(warped.astype(int) - resized).max() <= 1
    assert np.array_equal(truth, np.kron(mask, np.ones((2, 2)))[6:30, 22:46])


def test_a_shrunk_mask_has_the_pixel_under_each_centre():
    image, mask = picture()
    _, truth, _ = crop(image, mask, factor=0.75, offsets=(3, 2), size=24)
    centres = np.floor((np.arange(24) + 0.5) / 0.75).astype(int)
    assert np.array_equal(truth, mask[2 + centres[:, None], 3 + centres])


def test_a_small_picture_floats_in_the_window_and_the_rest_is_ignored():
    image, mask = picture()
    warped, truth, rng = crop(image, mask, offsets=(4, 20), size=64)
    assert rng.bounds == [(0, 9), (0, 25)]
    assert np.array_equal(truth[20:60, 4:60], mask)
    assert (truth == 0).sum() == 64 * 64 - mask.size
    assert warped[0, 0].tolist() == [124, 116, 104]


def test_the_mask_keeps_its_values_and_agrees_with_the_image():
    image, mask = picture()
    for seed in range(20):
        warped, truth = rendered(image, mask, np.random.default_rng(seed), 33)
        assert set(np.unique(truth)) <= set(range(6))
        inside = truth > 0
        agree = np.abs(warped[..., 0].astype(int) - (truth.astype(int) * 10 + 100)) <= 5
        assert agree[inside].mean() > 0.8


def test_normalize_has_imagenet_statistics():
    pixels = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    assert torch.allclose(normalize(pixels).flatten(), torch.tensor([-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]))
    assert normalize(pixels).dtype == torch.float32


class Factors:
    """A stand-in for a random generator that returns a given brightness, contrast and saturation."""

    def __init__(self, *factors):
        self.factors = np.array(factors)

    def uniform(self, low, high, count):
        self.bounds = (low, high)
        return self.factors


def test_jittered_colours_are_those_of_the_three_formulas():
    image = np.random.default_rng(0).integers(60, 160, (9, 7, 3), dtype=np.uint8)
    for brightness, contrast, saturation in [(1.2, 1, 1), (1, 0.6, 1), (1, 1, 1.3), (0.9, 1.1, 0.7)]:
        x = brightness * image.astype(float)
        x = contrast * x + (1 - contrast) * (x @ [0.299, 0.587, 0.114]).mean()
        x = saturation * x + (1 - saturation) * (x @ [0.299, 0.587, 0.114])[..., None]
        rng = Factors(brightness, contrast, saturation)
        assert np.abs(color_jitter(image, rng, 0.4) - x).max() < 1
        assert rng.bounds == (0.6, 1.4)
    assert np.array_equal(color_jitter(image, Factors(1, 1, 1), 0.0), image)
    assert color_jitter(image, np.random.default_rng(1), 3.0).dtype == np.uint8
