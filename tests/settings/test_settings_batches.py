"""The effect of the settings on batches: which images, their size, scale, mirroring and colours."""

import numpy as np
import pytest
import torch
from effects import CPU, Steps, changes, trained
from runs import config, same, weights

from cocolvis.errors import DamagedImage
from cocolvis.storage.samples import Sample
from ess.data.loader import TrainingImages, training_batches
from ess.data.transforms import Crop


def raw_batches(dataset, steps=4, **settings) -> list:
    """The batches of some steps before they are rendered, each with its own copy of the pixels."""
    chosen = config(**{"crop": 32} | settings)
    made = training_batches(dataset.split("train"), chosen, steps)
    return [each._replace(pixels=each.pixels.clone()) for each in made]


def crops(dataset, **settings) -> list[Crop]:
    return [crop for each in raw_batches(dataset, **settings) for crop in each.crops]


@changes("batch_size", "crop")
@pytest.mark.parametrize(("batch_size", "crop"), [(3, 48), (5, 32)])
def test_a_step_has_batch_size_crops_of_the_given_side(dataset, tmp_path, monkeypatch, batch_size, crop):
    steps = Steps(monkeypatch)
    trained(dataset, tmp_path / "run", batch_size=batch_size, crop=crop)
    for step in steps:
        images, labels, ids, _ = step.batch
        assert images.shape == (batch_size, 3, crop, crop) and labels.shape == (batch_size, crop, crop)
        assert len({*ids.tolist()}) == batch_size


@changes("scale_min", "scale_max")
@pytest.mark.parametrize(("least", "most"), [(0.5, 2.0), (0.5, 0.7), (1.7, 2.0), (3.0, 3.0)])
def test_pictures_are_scaled_by_factors_in_the_given_range(dataset, least, most):
    found = [
        (into.stop - into.start) / (of.stop - of.start)
        for crop in crops(dataset, steps=20, scale_min=least, scale_max=most)
        for into, of in ((crop.target_rows, crop.rows), (crop.target_columns, crop.columns))
    ]
    rounding = 0.1 * most
    assert least - rounding < min(found) < least + rounding + (most - least) / 5
    assert most - rounding - (most - least) / 5 < max(found) < most + rounding


@changes("flip")
def test_mirrored_crops_are_the_plain_crops_from_right_to_left(dataset):
    plain, mirrored = ([raw.render(32, CPU) for raw in raw_batches(dataset, flip=flip)] for flip in (0.0, 1.0))
    for one, other in zip(plain, mirrored, strict=True):
        assert torch.equal(one.images.flip(3), other.images) and torch.equal(one.labels.flip(2), other.labels)
        assert not torch.equal(one.images, other.images)
    share = np.mean([crop.mirrored for crop in crops(dataset, steps=60, flip=0.25)])
    assert share == pytest.approx(0.25, abs=0.1)


def factors(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float, float] | None:
    """The brightness, contrast and saturation that turn ``before`` into ``after``, (N,) uint8; None of too few colours.

    Colours come out as b * c * (s * x + (1 - s) * luma(x)) + b * (1 - c) * grey, where grey is the picture's mean luma.
    """
    x, y = (pixels.view(-1, 3).numpy().astype(float) for pixels in (before, after))
    luma = x @ [0.299, 0.587, 0.114]
    columns = np.stack([x, luma[:, None] + 0 * x, 1 + 0 * x], axis=2)
    inside = (y > 0) & (y < 255)
    solved, _, _, values = np.linalg.lstsq(columns[inside], y[inside], rcond=None)
    if len(values) < 3 or values[-1] < 25:
        return None
    assert np.abs(columns[inside] @ solved - y[inside]).max() < 1  # the error of rounding
    own, grey, shift = solved
    brightness = own + grey + shift / luma.mean()
    return brightness, (own + grey) / brightness, own / (own + grey)


@changes("color_jitter")
@pytest.mark.parametrize("strength", [0.2, 0.5])
def test_colours_change_by_factors_in_the_given_range_and_labels_do_not(dataset, strength):
    whole = {"crop": 64, "scale_min": 1.0, "scale_max": 1.0}  # whole pictures, which contrast is about
    plain, coloured = (raw_batches(dataset, steps=20, color_jitter=jitter, **whole) for jitter in (0.0, strength))
    found = []
    for one, other in zip(plain, coloured, strict=True):
        assert one.crops == other.crops and np.array_equal(one.ids, other.ids)
        assert np.array_equal(one.labels, other.labels) and np.array_equal(one.lengths, other.lengths)
        ends = [*np.cumsum([3 * crop.area for crop in one.crops])[:-1]]
        found += [factors(*pair) for pair in zip(one.pixels.tensor_split(ends), other.pixels.tensor_split(ends), strict=True)]
    found = np.array([each for each in found if each])
    assert len(found) > 20
    for factor in found.T:
        assert 1 - strength - 0.02 < factor.min() < 1 - 0.8 * strength
        assert 1 + 0.8 * strength < factor.max() < 1 + strength + 0.02


@changes("seed")
def test_the_seed_decides_weights_order_augmentation_and_dropout(dataset, tmp_path, monkeypatch):
    steps = Steps(monkeypatch)
    begun = [weights(trained(dataset, tmp_path / str(n), seed=seed).folder, 4) for n, seed in enumerate((7, 7, 8))]
    assert same(begun[0], begun[1])
    assert not torch.equal(begun[0]["class_embeddings"], begun[2]["class_embeddings"])
    first, again, other = (steps[begin : begin + 4] for begin in (0, 4, 8))
    for one, same_one in zip(first, again, strict=True):
        assert torch.equal(one.batch.images, same_one.batch.images) and one.random == same_one.random
    order, other_order = (torch.cat([step.batch.ids for step in each]).tolist() for each in (first, other))
    assert order != other_order and not {step.random for step in first} & {step.random for step in other}
    drawn = [TrainingImages(dataset.split("train"), config(seed=seed)).__getitems__([(0, 0)]).crops for seed in (7, 7, 8)]
    assert drawn[0] == drawn[1] != drawn[2]


@changes("skip_damaged")
def test_damaged_images_end_a_training_or_are_replaced(dataset, tmp_path, monkeypatch):
    bad = {name: int(dataset.split(name).image_ids()[6]) for name in ("train", "val")}
    settings = {"steps": 10, "eval_every": 10}  # an epoch
    steps, original = Steps(monkeypatch), Sample.image
    run = trained(dataset, tmp_path / "sound", **settings)
    assert run.listed()[-1].scores["images"] == 10

    def image(sample):
        if sample.image_id in bad.values():
            raise DamagedImage(sample.fault_line("the picture is torn"))
        return original(sample)

    monkeypatch.setattr(Sample, "image", image)
    run = trained(dataset, tmp_path / "around", skip_damaged=True, **settings)
    sound, around = (torch.cat([step.batch.ids for step in each]) for each in (steps[:10], steps[10:]))
    assert ((sound != around) == (sound == bad["train"])).all() and (sound == bad["train"]).sum() == 1
    scores = run.listed()[-1].scores
    assert (scores["images"], scores["skipped"]) == (9, 1)
    for name in ("train", "val"):  # the part that reads the image first
        with pytest.raises(DamagedImage, match=f"image {bad[name]} .*the picture is torn"):
            trained(dataset, tmp_path / name, **settings)
        bad.pop(name)
