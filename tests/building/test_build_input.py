"""Builds of input as it occurs in practice: broken records, odd pictures, missing files, records with few keys."""

import os
import shutil
from collections import Counter

import cv2
import numpy as np
import pytest
from PIL import Image
from trees import box, faults, five_images
from victims import contents, kept

from cocolvis.building import executors
from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.vocabulary import coco_lvis


def test_bad_records_are_listed_and_do_no_other_harm(tree):
    before = five_images(tree).build()
    clean = {i: before.find(i).mask for i in range(1, 6)}
    tree.image(6)
    tree.picture(6).unlink()
    tree.image(7)
    tree.picture(7).write_bytes(b"\xff\xd8 no picture")
    tree.image(8)
    cv2.imwrite(str(tree.picture(8)), np.zeros((8, 9, 3), np.uint8))
    odd = tree.thing(1, 5, [[1, 2, 3]])
    strange = tree.thing(2, 2000, box(0, 0, 8, 8))
    nowhere = tree.stuff(99, 92, box(0, 0, 8, 8))
    broken = tree.stuff(3, 95, {"size": [8, 8], "counts": "zzz"})
    data = tree.build()
    assert Counter(faults(data)) == Counter(
        [
            *(("no stuff", "stuff", i, None) for i in (6, 7, 8)),
            ("missing image", "image", 6, None),
            ("unreadable image", "image", 7, None),
            ("wrong image size", "image", 8, None),
            ("malformed annotation", "lvis", 1, odd),
            ("unknown category", "lvis", 2, strange),
            ("unlisted image", "stuff", 99, nowhere),
            ("malformed annotation", "stuff", 3, broken),
        ]
    )
    assert data.index["report"]["counts"]["no stuff"] == 3
    assert data.split("train").image_ids().tolist() == [1, 2, 3, 4, 5]
    assert all(np.array_equal(data.find(i).mask, clean[i]) for i in clean)
    reasons = [fault["reason"] for fault in data.index["report"]["faults"]]
    assert "train2017/000000000008.jpg: is 8 x 9, the annotations say 8 x 8" in reasons
    assert "2000 is not among lvis's 1..1203" in reasons


def test_a_nan_literal_costs_only_its_record(tree):
    five_images(tree)
    clean = tree.build("clean")
    bad = tree.thing(1, 7, [[0, 0, float("nan"), 0, 8, 8]])
    data = tree.build()
    assert "NaN" in tree.path("lvis_v1_train").read_text()
    assert faults(data) == [("malformed annotation", "lvis", 1, bad)]
    for image_id in range(1, 6):
        assert np.array_equal(data.find(image_id).mask, clean.find(image_id).mask)


def test_strict_refuses_the_first_fault(tree):
    five_images(tree).build(strict=True)
    bad = tree.thing(4, 5, [[1, 2, 3]])
    with pytest.raises(DataError, match=f"--strict: 1 fault, the first: malformed annotation: image 4, annotation {bad}: "):
        tree.build(strict=True)
    tree.image(6)
    with pytest.raises(DataError, match="no stuff: image 6: has no stuff annotation"):
        tree.build(strict=True)


def test_strict_refuses_the_faults_of_shards_that_an_earlier_build_finished(tree):
    five_images(tree).write()
    out, aside = tree.root / "data", tree.root / "aside.jpg"
    tree.picture(2).rename(aside)

    def resumed(strict=True):
        return build(tree.sources(), out, CocoLvisOptions(), strict=strict, mode=Mode.RESUME)

    refused = pytest.raises(DataError, match="--strict: 1 fault, the first: missing image: image 2: ")
    for _ in range(2):
        with refused:
            resumed()
    assert not (out / "dataset.json").exists()
    aside.rename(tree.picture(2))
    assert resumed()["splits"]["train"]["images"] == 5
    shutil.rmtree(out)
    tree.picture(2).rename(aside)
    resumed(strict=False)
    with pytest.raises(DataError, match=r"a finished data set with 1 fault, the first: missing image: image 2: .*--overwrite"):
        resumed()
    aside.rename(tree.picture(2))
    shutil.rmtree(out)
    tree.thing(4, 5, [[1, 2, 3]])
    tree.write()
    for _ in range(2):
        with pytest.raises(DataError, match="--strict: 1 fault, the first: malformed annotation: image 4"):
            resumed()


def test_an_empty_split_is_valid(tree):
    data = tree.build()
    assert data.splits == {"train": 0, "val": 0}
    assert [len(part) for part in data.split("val").present()] == [0, 0, 0]
    assert data.split("train").sizes().shape == (0, 2)


def test_grayscale_cmyk_and_rotated_pictures_are_three_channels_as_stored(tree):
    ramp = np.linspace(0, 255, 48, dtype=np.uint8).reshape(6, 8)
    for image_id in (1, 2, 3):
        tree.image(image_id, size=(6, 8))
    Image.fromarray(ramp).save(tree.picture(1), quality=95)
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tree.picture(2), quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    colours = np.stack([ramp, ramp[::-1], ramp[:, ::-1]], 2)
    Image.fromarray(colours).save(tree.picture(3), quality=100, subsampling=0, exif=exif)
    data = tree.build()
    assert data.splits["train"] == 3
    gray, cmyk, rotated = (data.find(i).image() for i in (1, 2, 3))
    assert gray.shape == cmyk.shape == rotated.shape == (6, 8, 3)
    assert np.abs(gray.astype(int) - ramp[..., None]).max() < 12
    assert np.abs(rotated.astype(int) - colours).max() < 12
    assert (cmyk[..., 0] > 200).all() and (cmyk[..., 1:] < 60).all()


def test_pictures_are_embedded_unchanged_or_left_where_they_are(tree):
    original = five_images(tree).picture(1).read_bytes()
    assert tree.build(images="embed").find(1).content == original
    by_path = tree.build(images="path")
    assert by_path.find(1).content == original
    assert by_path.index["options"]["image_root"] == str(tree.coco.resolve())
    tree.picture(1).unlink()
    with pytest.raises(DataError, match="pass the folder of the images with --image-root"):
        by_path.find(1)
    assert by_path.split("train").mask(0).any()
    none = tree.build(images="none")
    assert len(none.split("train")) == 5
    with pytest.raises(DataError, match="no picture is stored"):
        none.find(1).image()


def test_file_names_are_used_if_there_is_no_url(tree):
    five_images(tree)
    tree.image(9, "val", "train2017")
    tree.stuff(9, 94, box(0, 0, 8, 8), "train2017")
    expected = {i: tree.build("urls").find(i).mask for i in (1, 5, 9)}
    for content in tree.json.values():
        for image in content["images"]:
            image["file_name"] = image.pop("coco_url").split("/")[-1]
    data = tree.build()
    assert [data.find(i).path for i in (1, 9)] == ["train2017/000000000001.jpg", "train2017/000000000009.jpg"]
    assert all(np.array_equal(data.find(i).mask, expected[i]) for i in expected)
    for image in tree.json["lvis_v1_train"]["images"][:2]:
        del image["file_name"]
    short = tree.build(limit=2)
    assert short.split("train").image_ids().tolist() == [3, 4]
    assert faults(short)[:2] == [("malformed image", "lvis", 1, None), ("malformed image", "lvis", 2, None)]


def test_other_category_lists_and_missing_files_are_errors_before_any_work(tree, tmp_path):
    five_images(tree)
    tree.json["stuff_train2017"]["categories"] = [{"id": i, "name": n} for i, n in coco_lvis().categories("stuff").items()]
    tree.build()
    next(c for c in tree.json["stuff_train2017"]["categories"] if c["id"] == 95)["name"] = "bridge!"
    with pytest.raises(DataError, match=r"stuff_train2017\.json: category 95 is 'bridge!', the vocabulary has 'bridge'"):
        tree.build("other")
    tree.path("stuff_train2017").unlink()
    with pytest.raises(DataError, match=r"no stuff annotations of train2017: looked for .*; check --coco"):
        build(tree.sources(), tmp_path / "other", CocoLvisOptions())
    tree.path("lvis_v1_train").unlink()
    with pytest.raises(DataError, match=r"no LVIS annotations of split train: looked for .*; check --lvis or --split"):
        build(tree.sources(), tmp_path / "other", CocoLvisOptions())
    assert not (tmp_path / "other").exists()


def test_negative_categories_become_classes(tree):
    tree.image(1)
    tree.json["lvis_v1_train"]["images"][0] |= {"neg_category_ids": [9, 4, 4, 5000], "not_exhaustive_category_ids": [7]}
    found = tree.build().find(1)
    assert (found.neg.tolist(), found.not_exhaustive.tolist()) == ([4, 9], [7])


@pytest.fixture
def exchanged(tree):
    """The stuff annotations of five images: their path, their content, and another one of equal length."""
    path = five_images(tree).write().path("stuff_train2017")
    os.utime(path, (1, 1))
    before = path.read_text()
    return path, before, before.replace('"category_id": 9', '"category_id": 1')


def in_shards_of_two(tree, out="data", **how):
    return build(tree.sources(), tree.root / out, CocoLvisOptions(shard_size=2), **how)


CHANGED = r"stuff_train2017\.json: was changed after the build .*; restore the file and continue with --resume, or build again"


def test_annotations_that_are_overwritten_during_a_build_end_it_before_a_shard_has_them(tree, exchanged):
    path, before, after = exchanged
    with pytest.raises(DataError, match=CHANGED):
        in_shards_of_two(tree, progress=lambda done, total: done == 3 and path.write_text(after))
    assert list(kept(tree.root / "data")) == ["train-00000"] and not (tree.root / "data/dataset.json").exists()
    with pytest.raises(DataError, match="begun with other inputs"):
        in_shards_of_two(tree, mode=Mode.RESUME)
    path.write_text(before)
    in_shards_of_two(tree, mode=Mode.RESUME)
    in_shards_of_two(tree, "whole")
    assert contents(tree.root / "data") == contents(tree.root / "whole")


def test_an_error_that_overwritten_annotations_cause_names_them(tree, exchanged, monkeypatch):
    def fail(*_):
        exchanged[0].write_text(exchanged[2])
        raise ValueError("not JSON")

    monkeypatch.setattr(executors, "run_here", fail)
    with pytest.raises(DataError, match=CHANGED):
        in_shards_of_two(tree)


def test_annotations_that_are_replaced_by_another_file_or_removed_disturb_no_build(tree, exchanged):
    path, _, after = exchanged
    in_shards_of_two(tree, "whole")

    def replaced(done, total):
        if done == 3:
            path.with_suffix(".new").write_text(after)
            path.with_suffix(".new").rename(path)

    in_shards_of_two(tree, progress=lambda done, total: done == 3 and tree.path("lvis_v1_train").unlink(missing_ok=True))
    assert contents(tree.root / "data") == contents(tree.root / "whole")
    tree.write()
    in_shards_of_two(tree, progress=replaced, mode=Mode.OVERWRITE)
    assert path.read_text() == after and contents(tree.root / "data") == contents(tree.root / "whole")
