"""Statistics compared with a naive count; no mask is decoded, and 100,000 images in 200 shards take seconds."""

import json

import cv2
import h5py
import numpy as np
import pytest
from trees import box

from cocolvis.errors import DataError
from cocolvis.inspection.stats import plot, statistics
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def test_counts_equal_those_of_the_masks(sample):
    data = Dataset.open(sample.data)
    for name, found in statistics(data)["splits"].items():
        masks = [data.split(name).mask(row) for row in range(len(data.split(name)))]
        images, pixels = np.zeros(1285, int), np.zeros(1285, int)
        for mask in masks:
            images[np.unique(mask)] += 1
            pixels += np.bincount(mask.ravel(), minlength=1285)
        present = [c for c in range(1, 1285) if images[c]]
        expected = [
            {
                "class": c,
                "name": coco_lvis().name(c),
                "group": coco_lvis()[c].group,
                "images": int(images[c]),
                "pixels": int(pixels[c]),
            }
            for c in sorted(present, key=lambda c: (-images[c], c))
        ]
        assert found["classes"] == expected and len(expected) > 10
        assert (found["images"], found["classes_present"]) == (len(masks), len(present))
        assert (found["pixels"], found["labelled"]) == (pixels.sum(), pixels[1:].sum())
        assert found["image_quantiles"]["0.5"] == np.median(images[present])
        assert found["pixel_quantiles"]["1.0"] == pixels[1:].max()
        assert found["classes_an_image"]["0.0"] == min(len(set(np.unique(mask)) - {0}) for mask in masks)
        rare = [c.id for c in coco_lvis() if c.group == "rare"]
        assert found["groups"]["rare"] == {
            "classes": 337,
            "classes_present": int((images[rare] > 0).sum()),
            "images": int(images[rare].sum()),
            "pixels": int(pixels[rare].sum()),
        }
        json.dumps(found)


def test_no_mask_is_decoded(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data")
    before = statistics(data)
    for name in data.splits:
        for path in data.shard_paths(name):
            with h5py.File(path, "r+") as file:
                file["mask/class"][...] = 7
                file["mask/length"][...] = 0
    data = Dataset.open(tmp_path / "data")
    assert statistics(data) == before
    with pytest.raises(DataError, match="runs cover 0 pixels"):
        data.split("val").mask(0)


SHARDS, IMAGES_A_SHARD = 200, 500


def many_images(data):
    """Give a data set 200 shards of 500 images each, with classes of their own but without masks; (data set, classes, pixels).

    The last two are what the shards say, one after another.
    """
    rng, first = np.random.default_rng(0), data.shard_paths("train")[0]
    counts = rng.integers(0, 25, IMAGES_A_SHARD)
    classes = rng.integers(1, 1285, (SHARDS, counts.sum()), np.uint16)
    pixels = rng.integers(1, 10**5, classes.shape, np.uint32)
    _hold(first, counts)
    template, entry = first.read_bytes(), data.index["shards"][0]
    data.index["shards"] = []
    for shard in range(SHARDS):
        name = f"shards/train-{shard:05d}.h5"
        (data.folder / name).write_bytes(template)
        with h5py.File(data.folder / name, "r+") as file:
            file["id"][...] = np.arange(IMAGES_A_SHARD) + shard * IMAGES_A_SHARD
            file["present/class"][...], file["present/pixels"][...] = classes[shard], pixels[shard]
        data.index["shards"].append(entry | {"file": name, "images": IMAGES_A_SHARD})
    return Dataset(data.folder, data.index), classes, pixels


def _hold(path, counts):
    """Make a shard hold one image without mask for each of the (n,) counts, with that many classes, to be filled in later."""
    with h5py.File(path, "r+") as file:
        columns = {"class": np.ones(counts.sum(), np.uint16), "pixels": np.ones(counts.sum(), np.uint32)}
        images = len(counts)
        for name, values in (
            ("id", np.arange(images)),
            ("size", np.full((images, 2), 500, np.uint32)),
            ("digest", np.zeros((images, 32), np.uint8)),
        ):
            del file[name]
            file[name] = values
        for group in ("path", "image", "mask", "neg", "not_exhaustive", "present"):
            here = columns if group == "present" else {name: file[group][name][:0] for name in file[group] if name != "offsets"}
            sizes = counts if group == "present" else np.zeros(images, int)
            del file[group]
            file.create_group(group)["offsets"] = np.cumsum([0, *sizes], dtype=np.uint64)
            for name, values in here.items():
                file[group][name] = values


def test_100_000_images_in_200_shards(sample, tmp_path):
    data, classes, pixels = many_images(sample.rebuild(tmp_path / "data", splits=("train",)))
    assert len(data.shard_paths("train")) == 200
    found = statistics(data)["splits"]["train"]
    assert (found["images"], found["classes_present"]) == (100_000, 1284)
    images = np.bincount(classes.ravel())
    areas = np.bincount(classes.ravel(), weights=pixels.ravel())
    assert [row["images"] for row in found["classes"]] == sorted(images[1:], reverse=True)
    assert all((images[row["class"]], areas[row["class"]]) == (row["images"], row["pixels"]) for row in found["classes"])
    assert found["labelled"] == pixels.sum(dtype=np.int64) and found["pixels"] == 100_000 * 500 * 500


def test_images_without_any_class_count(tree):
    for image_id in (1, 2, 3):
        tree.image(image_id)
    tree.thing(2, 5, box(0, 0, 8, 4))
    found = statistics(tree.build())["splits"]["train"]
    assert (found["classes_an_image"]["0.5"], found["classes_an_image"]["1.0"]) == (0, 1)
    assert (found["images"], found["pixels"], found["labelled"]) == (3, 192, 32)


def test_an_empty_split(tree, tmp_path):
    found = statistics(tree.build())
    assert found["splits"]["train"]["classes"] == [] and found["splits"]["train"]["image_quantiles"] == {}
    plot(found, tmp_path / "empty.png")
    assert cv2.imread(str(tmp_path / "empty.png")) is not None


def test_the_plot_is_a_picture_with_every_group_in_its_colour(sample, tmp_path):
    plot(statistics(Dataset.open(sample.data)), tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))[..., ::-1].reshape(-1, 3)
    for colour in ((0x1F, 0x6F, 0x8B), (0xE0, 0xA0, 0x30), (0xB5, 0x39, 0x4F), (0x7A, 0x8F, 0x5A)):
        assert (picture == colour).all(axis=1).sum() > 3000  # the key alone has 1,000 or so
    for path, message in ((tmp_path / "plot.png" / "a.png", "cannot be written"), (tmp_path / "a.xyz", "the plot .*xyz")):
        with pytest.raises(DataError, match=message):
            plot(statistics(Dataset.open(sample.data)), path)
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
