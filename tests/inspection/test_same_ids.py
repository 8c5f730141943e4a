"""`cocolvis why` and `cocolvis show` where two splits have an image of the same id."""

import json

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from trees import box

from cli.cocolvis import main
from cocolvis.inspection.render import mask_alone

AIRPLANE, PERSON = 3, 793


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def data(tree):
    """Image 1 in both splits, with another thing in each, and image 2 only in train."""
    tree.image(1), tree.image(2)
    tree.image(1, "val", listed=False)
    tree.thing(1, AIRPLANE, box(0, 0, 8, 4))
    tree.thing(1, PERSON, box(0, 0, 8, 8), "val")
    return tree.build(images="none")


@pytest.mark.parametrize(
    ("options", "split", "category"), [((), "train", AIRPLANE), (("--split", "val"), "val", PERSON)], ids=["first", "val"]
)
def test_the_split_says_which_image_is_meant(tree, data, tmp_path, options, split, category):
    where = ("--coco", tree.coco, "--lvis", tree.lvis)
    found = json.loads(run("why", data.folder, 1, 2, 2, *where, *options, "--json").stdout)
    assert (found["split"], found["layers"][0]["category_id"], found["fault"]) == (split, category, None)
    run("show", data.folder, 1, 2, "--out", tmp_path / "out", *options)
    picture = cv2.imread(str(tmp_path / "out" / "000000000001.png"))[..., ::-1]
    drawn = mask_alone(data.split(split).mask(0), data.vocabulary)
    assert np.array_equal(picture[: len(drawn), : drawn.shape[1]], drawn)


def test_the_other_splits_need_not_be_readable(tree, data, tmp_path):
    data.shard_paths("train")[0].unlink()
    where = ("--coco", tree.coco, "--lvis", tree.lvis)
    assert "val image 1: " in run("why", data.folder, 1, 2, 2, *where, "--split", "val").stdout
    run("show", data.folder, 1, "--out", tmp_path / "out", "--split", "val")


def test_an_unknown_split_is_refused(tree, data, tmp_path):
    for command in (("why", data.folder, 1, 2, 2, "--coco", tree.coco, "--lvis", tree.lvis), ("show", data.folder, 1)):
        more = ("--out", tmp_path / "out") if command[0] == "show" else ()
        assert "has no split 'test'; it has train, val" in run(*command, *more, "--split", "test", code=1).stderr
