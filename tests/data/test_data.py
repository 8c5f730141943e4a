"""Training batches: complete, reproducible, and independent of the number of loader processes."""

import pickle

import numpy as np
import pytest
import torch

from cocolvis.errors import DataError
from cocolvis.storage.dataset import Dataset, Split
from cocolvis.storage.open_shards import OPEN_SHARDS
from cocolvis.vocabulary import Vocabulary
from ess.config import Config
from ess.data.batches import AHEAD
from ess.data.loader import StepBatches, TrainingImages, to_class_ids, to_labels, training_batches, training_split


def config(**settings):
    return Config(**{"batch_size": 4, "crop": 48, "workers": 0, "seed": 5} | settings)


def batches(dataset, steps=3, start=0, **settings):
    chosen = config(**settings)
    return rendered(training_batches(training_split(dataset, chosen), chosen, steps, start))


def rendered(raw_batches, size=48):
    return [raw.render(size, torch.device("cpu")) for raw in raw_batches]


def test_labels_and_class_ids_are_inverse():
    mask = np.array([[0, 1, 1284]], np.uint16)
    assert to_labels(mask).tolist() == [[-1, 0, 1283]]
    assert to_labels(mask).dtype == np.int16
    assert np.array_equal(to_class_ids(to_labels(mask)), mask)


def test_an_epoch_sees_every_image_once_and_drops_the_rest():
    order = list(StepBatches(images=11, batch_size=3, steps=6, seed=0))
    first, second = ([index for batch in part for index, _ in batch] for part in (order[:3], order[3:]))
    assert len(set(first)) == len(first) == 9
    assert len(set(second)) == 9
    assert first != second
    draws = [draw for batch in order for _, draw in batch]
    assert draws == list(range(18))


def test_a_later_start_continues_the_same_sequence():
    whole = list(StepBatches(11, 3, 8, seed=4))
    assert list(StepBatches(11, 3, 8, seed=4, start=5)) == whole[5:]
    assert list(StepBatches(11, 3, 8, seed=5)) != whole


def test_processes_together_see_the_batches_of_one(dataset):
    chosen = config(batch_size=6)
    split = training_split(dataset, chosen)
    whole, *parts = (rendered(training_batches(split, chosen, 2, share=share)) for share in ((0, 1), (0, 3), (1, 3), (2, 3)))
    for step, batch in enumerate(whole):
        for place in range(3):
            assert torch.equal(torch.cat([part[step][place] for part in parts]), batch[place])
        assert all(torch.equal(p.images, part[step].images) for p, part in zip(batch.parts(3), parts, strict=True))


def test_batches_have_the_promised_form(dataset):
    images, labels, ids, classes = batches(dataset, steps=1)[0]
    assert classes is None
    assert (images.shape, images.dtype) == ((4, 3, 48, 48), torch.uint8)
    assert (labels.shape, labels.dtype) == ((4, 48, 48), torch.int16)
    assert labels.min() >= -1 and labels.max() < len(dataset.vocabulary)
    assert set(ids.tolist()) <= set(dataset.split("train").image_ids().tolist())


def test_pixels_outside_a_picture_are_ignored(dataset):
    chosen = config(scale_min=0.4, scale_max=0.4)
    for raw in training_batches(training_split(dataset, chosen), chosen, 2):
        for crop, labels in zip(raw.crops, raw.render(48, torch.device("cpu")).labels, strict=True):
            outside = torch.ones(48, 48, dtype=torch.bool)
            outside[crop.target_rows, crop.target_columns] = False
            assert outside.any()
            assert (labels.flip(1) if crop.mirrored else labels)[outside].eq(-1).all()


def test_memory_is_handed_over_once(dataset):
    images = TrainingImages(training_split(dataset, config()), config())
    raw = [images.__getitems__([(0, 0), (1, 1)]) for _ in range(AHEAD + 5)]
    assert [batch.pixels is None for batch in raw] == [False] * (AHEAD + 2) + [True] * 3


def test_a_resumed_loader_repeats_the_same_augmentations(dataset):
    whole = batches(dataset, steps=4)
    rest = batches(dataset, steps=4, start=2)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[2:], rest, strict=True))


def test_what_a_process_holds_does_not_grow_with_the_data_set(dataset, monkeypatch):
    monkeypatch.setattr("cocolvis.storage.open_shards.most_open", lambda: 1)
    split = dataset.split("train")
    assert len(dataset.shard_paths("train")) > 1
    fresh = len(pickle.dumps(TrainingImages(split, config())))
    for index in range(len(split)):
        split[index]
        assert len(OPEN_SHARDS) == 1
    assert len(pickle.dumps(TrainingImages(split, config()))) == fresh < 3000


def test_labels_of_more_classes_than_an_int16_holds():
    mask = np.array([[0, 1, 2**15, 2**15 + 1, 2**16 - 1]], np.uint16)
    assert to_labels(mask).dtype == np.int32 and to_labels(mask).tolist() == [[-1, 0, 2**15 - 1, 2**15, 2**16 - 2]]
    assert to_labels(mask[:, :3]).dtype == np.int16 and to_labels(mask[:, :3]).tolist() == [[-1, 0, 2**15 - 1]]
    assert np.array_equal(to_class_ids(to_labels(mask)), mask) and to_labels(mask[:, :0]).shape == (1, 0)


def test_data_without_anything_to_learn_is_refused(dataset, monkeypatch):
    single = Dataset(dataset.folder, dataset.index)
    single.vocabulary = Vocabulary([dataset.vocabulary[1]])
    with pytest.raises(DataError, match="has 1 class, and every pixel would be of it; training needs 2 or more"):
        training_split(single, config())
    monkeypatch.setattr(Split, "present", lambda split: 3 * (np.zeros(0, np.int64),))
    with pytest.raises(DataError, match="no pixel of split train has a class"):
        training_split(dataset, config())


def test_a_batch_larger_than_the_split_is_refused(dataset):
    count = dataset.splits["train"]
    with pytest.raises(DataError, match=f"has {count} images, but a batch has 5000; choose --batch-size {count} or less"):
        training_split(dataset, config(batch_size=5000))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line_from_any_process(dataset, monkeypatch, workers):
    def broken(content, expected):
        raise ValueError("the picture cannot be decoded")

    monkeypatch.setattr("cocolvis.pictures.encoded.decode_rgb", broken)
    with pytest.raises(DataError, match=r"\.h5: image \d+ \(\w+2017/\d+\.jpg\): the picture cannot be decoded; [^\n]*$"):
        batches(dataset, workers=workers, start_method="fork" if workers else None)


def die(*arguments, **settings):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_loader_process_names_what_to_change(dataset, monkeypatch):
    monkeypatch.setattr("ess.data.loader.random_crop", die)
    with pytest.raises(DataError, match=r"a loader process died .* try --workers 0 or a smaller --batch-size or --crop"):
        batches(dataset, workers=1, start_method="fork")
