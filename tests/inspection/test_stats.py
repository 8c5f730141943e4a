"""Statistics compared with a naive count; no mask is decoded, and 100,000 images in 200 shards take seconds."""

import csv
import json
from itertools import combinations

import h5py
import numpy as np
import pytest
from instances import counted, totals, without_instances
from trees import box

from cocolvis.errors import DataError
from cocolvis.figures.long_tail import draw
from cocolvis.inspection.companions import describe_class
from cocolvis.inspection.stats import read_counts, statistics, summarise, write_classes
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


def test_counts_equal_those_of_the_masks(sample):
    data = Dataset.open(sample.data)
    for name, found in statistics(data)["splits"].items():
        masks = [data.split(name).mask(row) for row in range(len(data.split(name)))]
        instances = totals(counted(data, sample.lvis, name))
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
                "instances": instances[c],
                "images": int(images[c]),
                "image_share": images[c] / len(masks),
                "pixels": int(pixels[c]),
                "pixel_share": pixels[c] / pixels[1:].sum(),
            }
            for c in sorted(present, key=lambda c: (-images[c], -pixels[c], c))
        ]
        assert found["classes"] == expected and len(expected) > 10
        assert (found["images"], found["classes_present"]) == (len(masks), len(present))
        assert (found["pixels"], found["labelled"]) == (pixels.sum(), pixels[1:].sum())
        assert found["image_quantiles"]["0.5"] == np.median(images[present])
        assert found["pixel_quantiles"]["1.0"] == pixels[1:].max()
        assert found["image_quantiles_all"]["0.9"] == np.quantile(images[1:], 0.9) != found["image_quantiles"]["0.9"]
        assert found["pixel_quantiles_all"]["0.9"] == np.quantile(pixels[1:], 0.9)
        held = [len(set(np.unique(mask)) - {0}) for mask in masks]
        assert found["classes_an_image_histogram"] == [held.count(k) for k in range(max(held) + 1)]
        assert [row["class"] for row in found["absent"]] == [c for c in range(1, 1285) if c not in present]
        assert found["classes_an_image"]["0.0"] == min(len(set(np.unique(mask)) - {0}) for mask in masks)
        rare = [c.id for c in coco_lvis() if c.group == "rare"]
        assert found["groups"]["rare"] == {
            "classes": 337,
            "classes_present": int((images[rare] > 0).sum()),
            "images": int(images[rare].sum()),
            "pixels": int(pixels[rare].sum()),
            "instances": sum(instances[c] for c in rare),
        }
        assert found["instances"] == instances.total() == sum(third["instances"] for third in found["thirds"].values()) > 20
        json.dumps(found)


def gini(values):
    """Half the mean absolute difference of all pairs, relative to the mean."""
    return sum(abs(a - b) for a, b in combinations(values, 2)) / len(values) ** 2 / (sum(values) / len(values))


def test_the_measures_of_imbalance_equal_their_definitions(sample):
    for split in statistics(Dataset.open(sample.data))["splits"].values():
        for what in ("images", "pixels"):
            values = [row[what] for row in split["classes"]]
            assert split["gini"][what] == pytest.approx(gini(values + [0] * len(split["absent"])))
            assert split["imbalance"][what] == max(values) / min(values) > 1
        thirds = np.array_split([row["pixels"] for row in split["classes"]], 3)
        assert [third["pixels"] for third in split["thirds"].values()] == [sum(third) for third in thirds]
        assert list(split["thirds"]) == ["head", "middle", "tail"]
        assert sum(third["classes"] for third in split["thirds"].values()) == split["classes_present"]


def test_ties_go_to_the_class_with_more_pixels_and_classes_unknown_to_train_are_named(tree):
    for image_id, split, folder in ((1, "train", "train2017"), (2, "val", "val2017")):
        tree.image(image_id, split, folder)
    tree.thing(1, 5, box(0, 0, 1, 1))
    tree.thing(1, 9, box(0, 2, 4, 4))
    tree.thing(1, 1200, box(4, 2, 4, 4))
    tree.thing(1, 3, box(1, 0, 2, 1))
    tree.thing(2, 9, box(0, 0, 1, 1), "val")
    tree.thing(2, 1203, box(0, 2, 4, 4), "val")
    found = statistics(tree.build())["splits"]
    assert [row["class"] for row in found["train"]["classes"]] == [9, 1200, 3, 5]  # all in one image: 16, 16, 2 and 1 pixels
    assert found["train"]["not_in_train"] is None
    assert [row["class"] for row in found["val"]["not_in_train"]] == [1203]
    assert found["train"]["gini"]["images"] == pytest.approx(1 - 4 / 1284)


def test_companions_equal_a_naive_count(sample):
    data = Dataset.open(sample.data)
    counts = read_counts(data)
    chosen = [row["class"] for row in summarise(data.vocabulary, counts)["splits"]["train"]["classes"]]
    instances = {name: totals(counted(data, sample.lvis, name)) for name in data.splits}
    for c in (chosen[0], chosen[-1]):
        described = describe_class(data.vocabulary, counts, c)
        assert (described["class"], described["name"]) == (c, coco_lvis().name(c))
        for name, found in described["splits"].items():
            masks = [data.split(name).mask(row) for row in range(len(data.split(name)))]
            sets = [set(np.unique(mask).tolist()) - {0} for mask in masks]
            mine = [row for row, held in enumerate(sets) if c in held]
            areas = [int((masks[row] == c).sum()) for row in mine]
            assert (found["images"], found["pixels"], found["instances"]) == (len(mine), sum(areas), instances[name][c])
            if mine:
                assert found["pixel_quantiles"]["0.75"] == np.quantile(areas, 0.75)
                assert found["area_quantiles"]["0.5"] == pytest.approx(np.median([(masks[row] == c).mean() for row in mine]))
            expected = {}
            for other in set().union(*(sets[row] for row in mine)) - {c} if mine else ():
                common = sum(other in sets[row] for row in mine)
                of_other = sum(other in held for held in sets) / len(sets)
                expected[other] = common, common / len(mine), common / len(sets) / (len(mine) / len(sets) * of_other)
            rows = {row["class"]: (row["images"], row["share"], row["lift"]) for row in found["companions"]}
            assert rows.keys() == expected.keys() and all(rows[k] == pytest.approx(expected[k]) for k in rows)
            ranks = [(-row["images"], -row["lift"], row["class"]) for row in found["companions"]]
            assert ranks == sorted(ranks)


def test_the_csv_has_every_class_of_every_split(sample, tmp_path):
    data = Dataset.open(sample.data)
    found = statistics(data)
    write_classes(tmp_path / "a.csv", found, data.vocabulary)
    rows = list(csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8")))
    for name, split in found["splits"].items():
        here = [row for row in rows if row["split"] == name]
        assert sorted(int(row["class"]) for row in here) == list(range(1, 1285))
        pixels = {row["class"]: row["pixels"] for row in split["classes"]}
        assert all(int(row["pixels"]) == pixels.get(int(row["class"]), 0) for row in here)
        assert [int(row["class"]) for row in here[: len(pixels)]] == list(pixels)
        instances = {row["class"]: row["instances"] for row in split["classes"]}
        assert all(int(row["instances"]) == instances.get(int(row["class"]), 0) for row in here)
        assert all(row["kind"] == coco_lvis()[int(row["class"])].kind for row in here)


def test_instances_that_are_not_recorded_are_null(sample, tmp_path):
    with without_instances():
        data = sample.rebuild(tmp_path / "data")
    found = statistics(data)
    for split in found["splits"].values():
        rows = [split, *split["groups"].values(), *split["thirds"].values(), *split["classes"]]
        assert {row["instances"] for row in rows} == {None}
    write_classes(tmp_path / "a.csv", found, data.vocabulary)
    assert {row["instances"] for row in csv.DictReader((tmp_path / "a.csv").open(encoding="utf-8"))} == {""}
    assert describe_class(data.vocabulary, read_counts(data), 1)["splits"]["val"]["instances"] is None


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
        ones = np.ones(counts.sum(), np.uint32)
        columns = {"class": ones.astype(np.uint16), "pixels": ones, "instances": ones}
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
    assert all(row["instances"] == row["images"] for row in found["classes"])
    counts = read_counts(data)
    common = describe_class(data.vocabulary, counts, 7)["splits"]["train"]["companions"]
    shows = set(counts["train"].rows[counts["train"].classes == 7].tolist())
    entries = zip(counts["train"].rows.tolist(), counts["train"].classes.tolist(), strict=True)
    expected = np.bincount([c for row, c in entries if row in shows], minlength=1285)
    assert all(row["images"] == expected[row["class"]] for row in common) and len(common) > 1000


def test_zeros_of_a_damaged_shard_are_survived(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data", splits=("train",))
    with h5py.File(data.shard_paths("train")[0], "r+") as file:
        file["present/pixels"][...] = 0
    stats = statistics(Dataset.open(tmp_path / "data"))
    assert '"pixels": 0' in json.dumps(stats, allow_nan=False)
    assert len(draw(stats, ("images", "pixels")).axes) == 3


def test_images_without_any_class_count(tree):
    for image_id in (1, 2, 3):
        tree.image(image_id)
    tree.thing(2, 5, box(0, 0, 8, 4))
    found = statistics(tree.build())["splits"]["train"]
    assert (found["classes_an_image"]["0.5"], found["classes_an_image"]["1.0"]) == (0, 1)
    assert (found["images"], found["pixels"], found["labelled"]) == (3, 192, 32)


def test_an_empty_split(tree):
    found = statistics(tree.build())["splits"]["train"]
    assert found["classes"] == [] and found["image_quantiles"] == {} and len(found["absent"]) == 1284
    assert found["gini"] == found["imbalance"] == {"images": None, "pixels": None}
    json.dumps(found)
