"""`cocolvis images` compared with the masks, and `cocolvis show` with valid and invalid ids."""

import json
import re

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from trees import box, five_images

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.inspection.listing import class_ids, images
from cocolvis.inspection.render import mask_alone
from cocolvis.masks.runlength import Runs
from cocolvis.storage import dataset as dataset_module
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import ClassInfo, Vocabulary, coco_lvis


def run(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def expected(data, classes, any_of):
    """(image id, split) of the images whose masks hold all, or any, of the classes."""
    found = []
    for name in data.splits:
        split = data.split(name)
        for row, image_id in enumerate(split.image_ids().tolist()):
            shown = [c in split.mask(row) for c in classes]
            if not classes or (any(shown) if any_of else all(shown)):
                found.append((image_id, name))
    return found


def test_listed_images_are_those_whose_masks_hold_the_classes(sample):
    data = Dataset.open(sample.data)
    counts = np.bincount(data.split("train").present()[1])
    first, second, third = np.argsort(-counts)[:3].tolist()
    for classes in ((), (first,), (first, second), (first, second, third), (1284, first)):
        for any_of in (False, True):
            found = [(i.image_id, i.split) for i in images(data, classes=classes, any_of=any_of)]
            assert found == expected(data, classes, any_of), classes
    assert 0 < len(list(images(data, classes=(first, second)))) < len(list(images(data, classes=(first, second), any_of=True)))


def test_no_mask_and_no_picture_is_read(sample, monkeypatch):
    data = Dataset.open(sample.data)
    monkeypatch.setattr(Runs, "mask", None)
    monkeypatch.setattr("cocolvis.storage.shard_reader.ShardReader.runs", None)
    monkeypatch.setattr("cocolvis.storage.shard_reader.ShardReader.sample", None)
    assert len(list(images(data, "val", [1]))) <= len(list(images(data, "val"))) == 10


def test_images_are_streamed_shard_by_shard(sample, monkeypatch):
    opened = []
    monkeypatch.setattr(dataset_module, "ShardReader", lambda *a, of=dataset_module.ShardReader: opened.append(a) or of(*a))
    listed = images(Dataset.open(sample.data))
    next(listed)
    assert len(opened) == 1


def test_the_command_lists_ids_splits_and_paths(sample):
    data = Dataset.open(sample.data)
    lines = [line.split("\t") for line in run("images", data.folder).stdout.splitlines()]
    assert [(int(i), split) for i, split, _ in lines] == expected(data, (), False)
    assert [path for *_, path in lines[:30]] == [data.split("train")[row].path for row in range(30)]
    assert len(run("images", data.folder, "--split", "val").stdout.splitlines()) == 10
    found = json.loads(run("images", data.folder, "--split", "val", "--json").stdout)["images"]
    assert found == [{"image": int(i), "split": split, "path": path} for i, split, path in lines[30:]]
    assert "has no split 'test'; it has train, val" in run("images", data.folder, "--split", "test", code=1).stderr
    name = coco_lvis().name(int(data.split("train").present()[1][0]))
    with_it = run("images", data.folder, "--class", name).stdout
    assert 0 < len(with_it.splitlines()) < 40
    assert run("images", data.folder, "--class", coco_lvis().id_of(name)).stdout == with_it
    assert len(run("images", data.folder, "--class", f"{name},9", "--any").stdout) >= len(with_it)
    assert len(run("images", data.folder, "--class", name, "--class", "9").stdout) <= len(with_it)


def test_classes_are_given_by_name_or_number(sample):
    vocabulary = coco_lvis()
    assert class_ids(vocabulary, ["cat, dog,7", "cat"]) == [vocabulary.id_of("cat"), vocabulary.id_of("dog"), 7]
    for text, said in {
        "caat": "no class is named 'caat'; did you mean cat",
        "cat,locker_x": "no class is named 'locker_x'; did you mean locker",
        "cupb": "cupboard",
        "1285": "ids are 1..1284",
        "0": "ids are 1..1284",
        "cat,": "no class is named ''",
        "9" * 5000: "no class is named '999",
        "²": "no class is named '²'",
    }.items():
        with pytest.raises(DataError, match=re.escape(said)):
            class_ids(vocabulary, [text])
    names = ["tree, bush", "2", "tree", "école"]
    own = Vocabulary(ClassInfo(i, name, "stuff", None, None, {}) for i, name in enumerate(names, 1))
    assert class_ids(own, ["tree, bush"]) == [1] and class_ids(own, ["2", "tree", "3"]) == [2, 3]
    assert class_ids(own, ["e\u0301cole"]) == [4]
    assert "did you mean cat" in run("images", sample.data, "--class", "caat", code=1).stderr


def shown(result):
    return [line.rsplit("/", 1)[1] for line in result.stdout.splitlines()]


def test_show_draws_valid_ids_once_and_reports_the_others(tree, tmp_path, monkeypatch):
    five_images(tree).build(shard_size=2)
    looked = []
    image_ids = dataset_module.Split.image_ids
    monkeypatch.setattr(dataset_module.Split, "image_ids", lambda split: looked.append(split.name) or image_ids(split))
    result = run("show", tree.root / "data", 3, 99, 1, 3, 98, 5, "--out", tmp_path / "out", code=1)
    assert shown(result) == ["000000000003.png", "000000000001.png", "000000000005.png"]
    lines = result.stderr.splitlines()
    assert len(lines) == 2 and "holds no image 99; `cocolvis images` lists" in lines[0] and "no image 98" in lines[1]
    assert looked == ["train", "val"] or looked == ["train"]
    assert run("show", tree.root / "data", 2, 2, "--out", tmp_path / "out").stdout.count("\n") == 1


def test_show_draws_only_masks_if_there_are_no_pictures(tree, tmp_path):
    tree.image(1)
    tree.thing(1, 5, box(0, 0, 4, 8))
    data = tree.build(images="none")
    result = run("show", data.folder, 1, "--out", tmp_path)
    picture = cv2.imread(str(tmp_path / "000000000001.png"))[..., ::-1]
    assert "was built with --images none, so only the masks are drawn" in result.stderr
    drawn = mask_alone(data.find(1).mask, data.vocabulary)
    assert np.array_equal(picture[: len(drawn), : drawn.shape[1]], drawn) and len(np.unique(drawn)) > 2
    again = run("show", data.folder, 1, "--out", tmp_path, "--image-root", tree.coco)
    assert again.stderr == "" and cv2.imread(str(tmp_path / "000000000001.png")).shape[1] > 3 * picture.shape[1]


def test_show_takes_the_folder_of_the_pictures(tree, tmp_path):
    five_images(tree)
    data = tree.build(images="path")
    tree.coco.rename(tree.root / "moved")
    result = run("show", data.folder, 1, 2, "--out", tmp_path, code=1)
    assert result.stdout == "" and result.stderr.count("--image-root") == 2
    assert len(shown(run("show", data.folder, 1, 2, "--out", tmp_path, "--image-root", tree.root / "moved"))) == 2
