"""The generated COCO + LVIS tree: its formats, its statistics, and that its pictures match its annotations."""

import contextlib
import io
from itertools import pairwise

import cv2
import numpy as np
import pytest
from lvis import LVIS
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from sample_trees import JSONS, SampleTree, contents, off_line

from cocolvis.disk.lock import LockLost
from cocolvis.errors import DataError
from cocolvis.sample import scenes, writer
from cocolvis.sample.writer import write_sample
from cocolvis.vocabulary import GROUPS, STUFF_OTHER, coco_lvis


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The default sample: 120 images, 120 classes."""
    root = tmp_path_factory.mktemp("sample") / "new" / "tree"
    steps = []
    write_sample(root, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(k, 120) for k in range(1, 121)]
    return SampleTree(root)


def test_same_arguments_same_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_sample(tmp_path / name, images=8, classes=40, size=48, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert not any(a[path] == c[path] for path in a.keys() & c.keys())


def test_public_readers(tree):
    with contextlib.redirect_stdout(io.StringIO()):
        for key, path in JSONS.items():
            if key.startswith("stuff"):
                coco = COCO(str(tree.root / path))
                assert all(coco.annToMask(a).sum() == a["area"] for a in coco.dataset["annotations"])
            else:
                lvis = LVIS(str(tree.root / path))
                assert all(lvis.ann_to_mask(a).sum() == a["area"] for a in lvis.dataset["annotations"])


def test_dialects(tree):
    for key, data in tree.json.items():
        source = "stuff" if key.startswith("stuff") else "lvis"
        coco_lvis().check_categories(source, {c["id"]: c["name"] for c in data["categories"]}, key)
        ids = [a["id"] for a in data["annotations"]]
        assert len(set(ids)) == len(ids)
        sizes = {i["id"]: (i["height"], i["width"]) for i in data["images"]}
        for a in data["annotations"]:
            height, width = sizes[a["image_id"]]
            x, y, w, h = a["bbox"]
            assert min(x, y) >= 0 < min(w, h) and x + w <= width and y + h <= height and a["area"] > 0
        wanted = {"image_id", "category_id", "segmentation", "area", "bbox", "id"} | (
            {"iscrowd"} if source == "stuff" else set()
        )
        assert {frozenset(a) for a in data["annotations"]} == {frozenset(wanted)}
        assert all(("file_name" in i) == (source == "stuff") for i in data["images"])
    assert {c["frequency"] for c in tree.json["lvis_val"]["categories"]} == set("rcf")
    polygons = [p for a in tree.json["lvis_train"]["annotations"] for p in a["segmentation"]]
    assert all(len(p) >= 6 and len(p) % 2 == 0 for p in polygons)
    assert len(polygons) > len(tree.json["lvis_train"]["annotations"])


def test_stuff_annotations(tree):
    for image in tree.images():
        annotations = tree.stuff[image["id"]]
        ids = [a["category_id"] for a in annotations]
        assert ids == sorted(set(ids))
        if ids:
            total = sum(coco_mask.decode(a["segmentation"]).astype(int) for a in annotations)
            assert (total == 1).all()
            things = np.any([where for _, where in tree.thing_masks(image)], axis=0) if tree.things[image["id"]] else False
            other = [coco_mask.decode(a["segmentation"]) for a in annotations if a["category_id"] == STUFF_OTHER]
            assert np.array_equal(sum(other), things) if other else not np.any(things)
            assert 2 <= len(set(ids) - {STUFF_OTHER}) <= 4


def test_splits_and_files(tree):
    train, val = ({i["id"] for i in tree.images(split)} for split in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (90, 30, 0)
    assert {i["coco_url"].split("/")[-2] for i in tree.images("train")} == {"train2017"}
    val_folders = [i["coco_url"].split("/")[-2] for i in tree.images("val")]
    assert val_folders.count("train2017") == 10 and val_folders.count("val2017") == 20
    assert sorted(tree.root.rglob("*.jpg")) == sorted(tree.path(i) for i in tree.images())
    sizes = set()
    for image in tree.images():
        pixels = cv2.imread(str(tree.path(image)), cv2.IMREAD_UNCHANGED)
        assert pixels.shape[:2] == (image["height"], image["width"])
        sizes |= set(pixels.shape[:2])
        folder = image["coco_url"].split("/")[-2]
        for a in tree.stuff[image["id"]]:
            assert a in tree.json[f"stuff_{folder}"]["annotations"]
    assert min(sizes) >= 72 and max(sizes) <= 120 and not any(s % 16 == 0 for s in sizes)


def test_federated_lists(tree):
    for image in tree.images():
        shown = {coco_lvis()[c].sources.get("lvis") for c in np.unique(tree.mask(image)).tolist() if c}
        things = {a["category_id"] for a in tree.things[image["id"]]}
        assert image["neg_category_ids"] and not shown & set(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= things


def test_oddities_of_the_real_sets(tree):
    listed = {i["id"] for folder in ("train2017", "val2017") for i in tree.json[f"stuff_{folder}"]["images"]}
    ids = {i["id"] for i in tree.images()}
    assert len(ids - listed) == 1 and listed < ids
    assert sum(not tree.stuff[i] for i in ids) == 4
    assert sum(not tree.things[i] for i in ids) == 1
    gray = [i for i in tree.images() if cv2.imread(str(tree.path(i)), cv2.IMREAD_UNCHANGED).ndim == 2]
    assert len(gray) == 1


def test_classes(tree):
    counts = {split: np.zeros(1285, int) for split in ("train", "val")}
    pixels = np.zeros(1285, int)
    for split in counts:
        for image in tree.images(split):
            found = np.bincount(tree.mask(image).ravel(), minlength=1285)
            counts[split] += found > 0
            pixels += found * (split == "val")
    used = np.flatnonzero(counts["train"][1:]) + 1
    assert len(used) == 120
    assert (counts["val"][1:] > 0).sum() >= 110
    assert pixels[1:].max() <= 0.2 * pixels[1:].sum()
    assert counts["train"][used].min() >= 2
    of_group = {g: [int(counts["train"][c]) for c in used if coco_lvis()[c].group == g] for g in GROUPS}
    assert min(map(len, of_group.values())) >= 15
    assert all(np.mean(of_group[a]) < np.mean(of_group[b]) for a, b in pairwise(("rare", "common", "frequent")))
    assert max(of_group["frequent"]) >= 4 * np.median(of_group["rare"])


def test_shared_classes_are_both_thing_and_stuff(tree):
    shared = [c for c in coco_lvis() if c.kind == "both"]
    things = {a["category_id"] for annotations in tree.things.values() for a in annotations}
    stuff = {a["category_id"] for annotations in tree.stuff.values() for a in annotations}
    assert len(shared) == 10
    assert {c.sources["lvis"] for c in shared} <= things and {c.sources["stuff"] for c in shared} <= stuff


def test_objects_overlap_and_the_first_is_on_top(tree):
    """Where two things overlap, the picture matches the colours of the first better than those of the second."""
    looks = scenes.looks_of(writer._used_classes(120), 96)
    right = wrong = 0
    for image in tree.images():
        picture = cv2.imread(str(tree.path(image)))[..., ::-1].astype(float)
        masks = tree.thing_masks(image)
        for k, (front, mask) in enumerate(masks):
            free = mask & ~np.any([m for _, m in masks[:k]], axis=0) if k else mask
            for behind, other in masks[k + 1 :]:
                if (overlap := picture[free & other]).shape[0] >= 30:
                    better = off_line(overlap, looks[front]) < off_line(overlap, looks[behind])
                    right, wrong = right + better, wrong + (not better)
    assert right >= 100 and wrong <= 0.02 * right


def test_pictures_show_what_the_masks_say(tree):
    """Of all 120 looks, the one that matches the pixels of a region best is nearly always that of its class."""
    looks = scenes.looks_of(writer._used_classes(120), 96)
    right = total = 0
    for image in tree.images()[::9]:
        picture = cv2.imread(str(tree.path(image)))[..., ::-1].astype(float)
        if np.ptp(picture, axis=2).max() > 0:
            mask = tree.mask(image)
            for c in np.unique(mask[mask > 0]).tolist():
                region = picture[mask == c]
                if len(region) >= 60:
                    fits = {k: off_line(region[:: len(region) // 15], look) for k, look in looks.items()}
                    right, total = right + (min(fits, key=fits.get) == c), total + 1
    assert total > 80 and right >= 0.9 * total


@pytest.mark.parametrize("count", [20, 120, 1284])
def test_used_classes(count):
    used = writer._used_classes(count)
    assert len({c.id for c in used}) == len(used) == count
    assert {c.group for c in used} == set(GROUPS)
    assert sum(c.kind == "both" for c in used) == 10
    looks = scenes.looks_of(used, 96).values()
    assert len({(*look.base.tolist(), *look.second.tolist()) for look in looks}) == count


def test_smallest_and_largest_arguments(tmp_path):
    write_sample(tmp_path / "small", images=8, classes=20, size=32)
    write_sample(tmp_path / "many", images=8, classes=1284, size=32)
    small = SampleTree(tmp_path / "small")
    assert len(small.images()) == 8 and all(small.mask(i).any() for i in small.images())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": 7}, "images is 7"),
        ({"classes": 19}, "classes is 19, expected 20..1284"),
        ({"classes": 1285}, "classes is 1285"),
        ({"size": 31}, "size is 31"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range(tmp_path, arguments, words):
    with pytest.raises(DataError, match=words) as caught:
        write_sample(tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not an empty folder"):
        write_sample(tmp_path)
    with pytest.raises(DataError, match="not an empty folder"):
        write_sample(tmp_path / "mine.txt")
    with pytest.raises(DataError, match="cannot be written: Not a directory"):
        write_sample(tmp_path / "mine.txt" / "below")
    assert contents(tmp_path) == {"mine.txt": b"kept"}


def test_nothing_is_left_of_an_interrupted_run(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / name, images=8, size=32, progress=stop)
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]
    (tmp_path / "empty" / ".cocolvis-sample-0" / "coco").mkdir(parents=True)  # a killed process has left it
    write_sample(tmp_path / "empty", images=8, size=32)
    assert sorted(p.name for p in (tmp_path / "empty").iterdir()) == ["coco", "lvis"]


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    def again(done, total):
        with pytest.raises(DataError, match=r"a sample \(process .*\) is running there"):
            write_sample(tmp_path / "both", images=8, size=32, seed=1)

    write_sample(tmp_path / "alone", images=8, size=32)
    write_sample(tmp_path / "both", images=8, size=32, progress=again)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_a_run_that_has_lost_the_folder_leaves_it_to_its_successor(tmp_path):
    def take_over(done, total):
        for lock in tmp_path.glob(".build-*.lock"):
            lock.unlink()

    with pytest.raises(LockLost, match="another process took it over"):
        write_sample(tmp_path, images=8, size=32, progress=take_over)
    assert not list(tmp_path.iterdir())
