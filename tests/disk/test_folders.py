"""Users' folders: links, loops, system files, similar names, numbers as names, and single splits."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from import_trees import ade20k, cityscapes, cocostuff10k, folder_of_export, make_picture, voc, write_labels

from cli.cocolvis import main
from cocolvis.disk.folders import Similar, passed_over, walk
from cocolvis.errors import DataError
from cocolvis.importers import ade20k as ade20k_layout
from cocolvis.importers import cityscapes as cityscapes_layout
from cocolvis.importers import cocostuff10k as cocostuff10k_layout
from cocolvis.importers import folder as folder_layout
from cocolvis.importers import voc as voc_layout
from cocolvis.storage.dataset import Dataset
from ess.inference.examples import pair
from ess.inference.inputs import find_inputs

SPLITS = ("train", "val")

SYSTEM_FILES = [
    "@eaDir/{name}/SYNOPHOTO_THUMB_M{suffix}",
    *("#recycle/{file}", "$RECYCLE.BIN/S-1/{file}", ".Trash-1000/files/{file}", "lost+found/{file}", "__MACOSX/{file}"),
    *("._{file}", ".ipynb_checkpoints/{name}-checkpoint{suffix}", ".DS_Store", "Thumbs.db", "desktop.ini"),
    *("System Volume Information/{file}", "@Recycle/{file}"),
]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def custom(root: Path, names: dict[str, list[str]]) -> Path:
    """A custom data set with these pictures in its splits, and a mask for each."""
    for split, files in names.items():
        for file in files:
            make_picture(root / "images" / split / file, (8, 9), 0)
            write_labels(root / "masks" / split / Path(file).with_suffix(".png"), np.ones((8, 9), np.uint8))
    (root / "classes.txt").write_text("sky\nhill\n")
    return root


def paths(tree, split="train"):
    return [image.path.removeprefix(f"images/{split}/") for image in tree.images[split]]


def find(src, splits=SPLITS):
    return folder_layout.find(src, splits)


# --- walking ---------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_each_folder_is_read_once(tmp_path):
    root, store = tmp_path / "root", tmp_path / "store"
    touch(root, "a.jpg", "real/b.jpg", "real/deep/c.jpg")
    touch(store, "d.jpg", "below/e.jpg")
    for link, target in (("again", "real"), ("city", "../store"), ("town", "../store/below"), ("down/up", "../..")):
        (root / link).parent.mkdir(exist_ok=True)
        (root / link).symlink_to(target)
    (store / "back").symlink_to(root)
    found = walk(root)
    assert found.files == ["a.jpg", "city/below/e.jpg", "city/d.jpg", "real/b.jpg", "real/deep/c.jpg"]
    assert len(found.notes) == 1 and found.notes[0].startswith(f"{root}/again: leads to {root}/real, which is read under that")
    assert found.notes[0].endswith("(and 3 more like it)")


def test_any_number_of_link_loops_terminates(tmp_path):
    for a in range(12):
        touch(tmp_path / f"{a}", "x.jpg")
        for b in range(12):
            (tmp_path / f"{a}" / f"to{b}").symlink_to(f"../{b}")
    (tmp_path / "self").symlink_to("self")
    assert walk(tmp_path).files == [*sorted(f"{a}/x.jpg" for a in range(12)), "self"]
    assert len(find_inputs([str(tmp_path)])) == len(find_inputs([str(tmp_path / "**" / "*.jpg")])) == 12


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
    touch(tmp_path / "src", "train/a.jpg", "val/b.jpg")
    (tmp_path / "src/train/up").symlink_to("..")
    (tmp_path / "entry").symlink_to("src/train")
    for way in ("src/train", "entry"):
        found = walk(tmp_path / way)
        assert found.files == ["a.jpg"]
        assert found.notes == [f"{tmp_path}/{way}/up: leads back to {tmp_path}/src and is not followed"]


def test_a_link_to_a_folder_above_may_itself_be_walked(tmp_path):
    touch(tmp_path, "a.jpg", "b/c.jpg")
    (tmp_path / "b/all").symlink_to("..")
    assert walk(tmp_path / "b/all").files == walk(tmp_path).files == ["a.jpg", "b/c.jpg"]


def test_dangling_links_are_reported(tmp_path):
    touch(tmp_path, "a.jpg", "there/b.jpg")
    (tmp_path / "b.jpg").symlink_to("/gone/b.jpg")
    (tmp_path / "city").write_text("../" + tmp_path.name + "/there")
    (tmp_path / "notes").write_text("there is nothing of the kind")
    found = walk(tmp_path)
    assert [note.removeprefix(f"{tmp_path}/") for note in found.notes] == [
        "b.jpg: is a link to /gone/b.jpg, which cannot be read (and 1 more like it)"
    ]
    (tmp_path / "b.jpg").unlink()
    (note,) = walk(tmp_path).notes
    assert "/city: is a text file that names the folder ../" in note and "it is not followed" in note


def test_system_files_are_skipped(tmp_path):
    src = custom(tmp_path / "src", {"train": ["a.jpg"], "val": ["b.jpg"]})
    for folder, name, suffix in (("images", "a", ".jpg"), ("masks", "a", ".png")):
        for pattern in SYSTEM_FILES:
            touch(src / folder / "train", pattern.format(name=name, suffix=suffix, file=name + suffix))
    tree = find(src)
    assert paths(tree) == ["a.jpg"] and tree.findings.faults == [] and tree.findings.notes == []
    for argument in (src / "images", src / "images" / "**" / "*.jpg", src / "*" / "*" / "*.jpg"):
        assert sorted(one.path.name for one in find_inputs([str(argument)])) == ["a.jpg", "b.jpg"]
    thumbnails = src / "images/train/@eaDir"
    assert [one.path.name for one in find_inputs([str(thumbnails)])] == ["SYNOPHOTO_THUMB_M.jpg"]  # named by the user
    assert not passed_over("photos") and passed_over("@EADIR")


def test_an_error_of_the_system_while_walking(tmp_path, monkeypatch, caplog):
    touch(tmp_path, "a.jpg", "closed/b.jpg")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="closed: cannot be read: Permission denied"):
        walk(tmp_path)
    assert [one.path.name for one in find_inputs([str(tmp_path)])] == ["a.jpg"]
    assert f"{tmp_path}/closed: cannot be read: Permission denied" in caplog.text


# --- importing -------------------------------------------------------------------------------------------------------------


def test_an_import_follows_links_and_its_ids_are_the_numbers_of_its_names(tmp_path):
    src = custom(tmp_path / "src", {"train": ["000000000285.jpg", "139.png"], "val": ["724.jpg"]})
    for kind in ("images", "masks"):
        store = tmp_path / "store" / kind
        shutil.copytree(src / kind / "val", store)
        next(store.iterdir()).rename(store / f"0004{'.jpg' if kind == 'images' else '.png'}")
        (src / kind / "train" / "city").symlink_to(store)
        (src / kind / "train" / "loop").symlink_to("..")
    result = CliRunner().invoke(main, ["import", "folder", str(src), "--out", str(tmp_path / "data"), "--workers", "1"])
    assert result.exit_code == 0, result.output
    said = [line for line in result.stderr.splitlines() if "leads back" in line]
    assert said == [f"{src}/{k}/train/loop: leads back to {src}/{k} and is not followed" for k in ("images", "masks")]
    data = Dataset.open(tmp_path / "data")
    assert {data.find(i).path for i in (285, 139, 4, 724)} == {
        f"images/{name}" for name in ("train/000000000285.jpg", "train/139.png", "train/city/0004.jpg", "val/724.jpg")
    }
    assert data.splits == {"train": 3, "val": 1}


@pytest.mark.parametrize(
    ("train", "val", "ids", "note"),
    [
        (["9.jpg", "10.jpg"], ["008.png"], [10, 9, 8], None),
        (["x/5.jpg", "y/6.jpg"], ["7.jpg"], [5, 6, 7], None),
        (["a.jpg", "b.jpg"], ["c.jpg"], [1, 2, 3], None),
        (
            ["5.jpg", "cat.jpg"],
            ["7.jpg"],
            [1, 2, 3],
            "the name of images/train/cat.jpg is not a number below 4611686018427387904",
        ),
        (["5.jpg", "6.jpg"], ["05.jpg"], [1, 2, 3], "images/train/5.jpg and images/val/05.jpg have the same number"),
        (["5.jpg", f"{2**62}.jpg"], ["7.jpg"], [2, 1, 3], f"the name of images/train/{2**62}.jpg is not a number below"),
        (["frame_5.jpg", "²3.jpg"], ["c.jpg"], [1, 2, 3], None),
    ],
)
def test_names_are_ids_if_all_are_distinct_numbers(train, val, ids, note, tmp_path):
    src = custom(tmp_path, {"train": train, "val": val})
    tree = find(src)
    assert sorted(image.image_id for split in SPLITS for image in tree.images[split]) == sorted(ids)
    told = [line for line in tree.findings.notes if "counted" in line]
    assert told == [] if note is None else told[0].startswith(f"the images are counted from 1: {note}")
    alone = find(src, ("val",)).images["val"]
    assert alone == tree.images["val"]


def test_names_match_in_any_unicode_normal_form(tmp_path):
    src = custom(tmp_path, {"train": ["é.jpg"], "val": ["a.jpg"]})
    mask = src / "masks/train/é.png"
    decomposed = unicodedata.normalize("NFD", "é")
    mask.rename(mask.with_name(f"{decomposed}.png"))
    tree = find(src)
    (image,) = tree.images["train"]
    assert image.path == "images/train/é.jpg" and image.labels_path == f"masks/train/{decomposed}.png"
    shutil.copy(src / image.path, src / f"images/train/{decomposed}.jpg")
    tree = find(src)
    assert len(tree.images["train"]) == 1 and [fault.kind for fault in tree.findings.faults] == ["duplicate image"]


@pytest.mark.parametrize(
    ("there", "near"),
    [
        ("masks/train/a_mask.png", "a_mask.png"),
        ("masks/train/a-seg.PNG", "a-seg.PNG"),
        ("masks/train/mask_a.png", "mask_a.png"),
        ("masks/train/a.png.png", "a.png.png"),
        ("masks/train/A.png", "A.png"),
        ("masks/train/a.tif", "a.tif, but masks must be PNGs"),
        ("masks/train/a.bmp", "a.bmp, but masks must be PNGs"),
        ("masks/train/a.json", "a.json"),
        ("masks/train/b_mask.png", None),
    ],
)
def test_a_mask_with_a_similar_name_is_suggested(there, near, tmp_path):
    src = custom(tmp_path / "src", {"train": ["a.jpg", "fine.jpg"], "val": ["b.jpg"]})
    (src / "masks/train/a.png").rename(src / there)
    image = next(image for image in find(src).images["train"] if image.path == "images/train/a.jpg")
    assert image.missing == "does not exist" + (f"; there is {near}" if near else "")


def test_similar_names_are_reported_and_without_any_match_the_import_is_refused(tmp_path):
    src = custom(tmp_path / "src", {"train": ["a.jpg", "b.jpg", "c.jpg", "fine.jpg"], "val": ["d.jpg"]})
    (src / "masks/train/a.png").rename(src / "masks/train/a_labels.png")
    (src / "images/train/b.jpg").rename(src / "images/train/b.tiff")
    (src / "images/train/c.jpg").rename(src / "images/train/c.bmp")
    (src / "masks/train/c.png").rename(src / "masks/train/c.gif")
    arguments = ["import", "folder", str(src), "--out", str(tmp_path / "data"), "--workers", "1"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    reasons = {fault["reason"] for fault in Dataset.open(tmp_path / "data").index["report"]["faults"]}
    assert reasons == {
        "masks/train/a.png: does not exist; there is a_labels.png",
        "images/train/a_labels.jpg: does not exist; there is a.jpg",
        "images/train/b.jpg: does not exist; there is b.tiff",
        "masks/train/c.png: does not exist; there is c.gif, but masks must be PNGs",
    }
    (src / "masks/val/d.png").rename(src / "masks/val/d_mask.png")
    result = CliRunner().invoke(main, [*arguments, "--overwrite"])
    told = "split val has no picture with its mask: masks/val/d.png does not exist; there is d_mask.png"
    assert result.exit_code == 1 and result.stderr.splitlines() == [f"Error: {src}: {told}"]


def test_a_file_with_its_own_partner_is_not_suggested(tmp_path):
    src = custom(tmp_path, {"train": ["a.jpg", "a_2.jpg"], "val": ["b.jpg"]})
    (src / "masks/train/a.png").unlink()
    assert find(src).images["train"][0].missing == "does not exist"


@pytest.mark.parametrize(
    ("make", "layout", "files"),
    [
        (ade20k, ade20k_layout, "images/training/*.jpg"),
        (cityscapes, cityscapes_layout, "leftImg8bit/train/*/*.png"),
        (voc, voc_layout, "VOC2012/JPEGImages/*.jpg"),
        (cocostuff10k, cocostuff10k_layout, "images/*.jpg"),
    ],
)
def test_pictures_may_have_any_suffix_of_their_format(make, layout, files, tmp_path):
    made = make(tmp_path)
    endings = [".JPG", ".jpeg", ".PNG"]
    for number, file in enumerate(sorted(made.src.glob(files))):
        file.rename(file.with_suffix(endings[number % 3]))
    tree = layout.find(made.src, ("train",))
    assert tree.images["train"] and all((tree.root / image.path).exists() for image in tree.images["train"])
    assert {image.image_id for image in tree.images["train"]} == made.images["train"].keys()


@pytest.mark.parametrize(
    ("make", "layout", "train", "val"),
    [
        (ade20k, ade20k_layout, "*/training", "*/validation"),
        (cityscapes, cityscapes_layout, "*/train", "*/val"),
        (voc, voc_layout, "VOC2012/ImageSets/*/train*.txt", "VOC2012/ImageSets/*/*val.txt"),
        (cocostuff10k, cocostuff10k_layout, "imageLists/train.txt", "imageLists/test.txt"),
        (folder_of_export, folder_layout, "*/train", "*/val"),
    ],
)
@pytest.mark.parametrize("split", SPLITS)
def test_one_split_needs_nothing_of_the_other(split, make, layout, train, val, tmp_path):
    made = make(tmp_path)
    for unneeded in list(made.src.glob(val if split == "train" else train)):
        shutil.rmtree(unneeded) if unneeded.is_dir() else unneeded.unlink()
    tree = layout.find(made.src, (split,))
    assert len(tree.images[split]) == len(made.images[split]) and tree.findings.faults == []
    with pytest.raises(DataError, match=r"holds no .*--split builds one split alone"):
        layout.find(made.src, SPLITS)


def test_faults_in_the_other_split_do_no_harm(tmp_path):
    src = custom(tmp_path, {"train": ["a.jpg"], "val": ["b.jpg", "b.png"]})
    (src / "images/val/loop").symlink_to("..")
    tree = find(src, ("train",))
    assert tree.findings.faults == [] and tree.findings.notes == []
    assert len(find(src, ("val",)).findings.faults) == 1


@pytest.mark.parametrize("split", SPLITS)
def test_a_build_of_one_split_needs_only_what_its_images_name(split, tree):
    for image_id, own in ((1, "train"), (2, "val")):
        tree.image(image_id, own, f"{own}2017")
        tree.thing(image_id, 3, [[0, 0, 4, 0, 4, 4]], own)
    tree.write()
    other = {"train": "val", "val": "train"}[split]
    shutil.rmtree(tree.coco / f"{other}2017")
    for name in (f"stuff_{other}2017", f"lvis_v1_{other}"):
        tree.path(name).unlink()
    tree.write = lambda: tree
    assert tree.build(splits=(split,)).splits == {split: 1}


@pytest.mark.parametrize(
    ("make", "layout", "names", "told"),
    [
        (voc, voc_layout, "VOC2012/ImageSets/Segmentation/val.txt", "images of PASCAL VOC have names such as 2007_000032"),
        (cocostuff10k, cocostuff10k_layout, "imageLists/test.txt", "images of COCO-Stuff 10k have names such as COCO_"),
    ],
)
def test_lists_with_foreign_names_are_refused_and_import_folder_is_suggested(make, layout, names, told, tmp_path):
    made = make(tmp_path)
    (made.src / names).write_text("frame 000001\nframe 000002\n")
    with pytest.raises(DataError) as error:
        layout.find(made.src, SPLITS)
    assert str(error.value).startswith(f"{made.src / names}: lists 'frame 000001'; {told}")
    assert "`cocolvis import folder`: images/{train,val}, masks/{train,val}" in str(error.value)
    (made.src / names).write_text("\n")
    with pytest.raises(DataError, match="lists no images"):
        layout.find(made.src, SPLITS)


def test_a_list_may_contain_windows_paths(tmp_path):
    made = voc(tmp_path)
    (made.src / "VOC2012/ImageSets/Segmentation/val.txt").write_text(
        "JPEGImages\\2007_000033.jpg SegmentationClass\\2007_000033.png\n"
    )
    assert [image.image_id for image in voc_layout.find(made.src, ("val",)).images["val"]] == [2007000033]


# --- predicting ------------------------------------------------------------------------------------------------------------


def test_predict_follows_linked_folders(tmp_path, caplog):
    touch(tmp_path / "in", "here.jpg")
    touch(tmp_path / "store", "q1.jpg", "deep/q2.PNG")
    (tmp_path / "in/city").symlink_to("../store")
    (tmp_path / "store/loop").symlink_to("../in")
    (tmp_path / "in/copy.jpg").symlink_to("here.jpg")
    for argument in (tmp_path / "in", tmp_path / "in" / "**" / "*"):
        names = [str(one.name) for one in find_inputs([str(argument)])]
        assert sorted(names) == ["city/deep/q2", "city/q1", "copy"]
    assert f"{tmp_path}/in/city/loop: leads to {tmp_path}/in, which is read under that name only" in caplog.text


def test_globs_across_any_number_of_folders(tmp_path):
    touch(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/d.png", "z/y/e.jpg")

    def named(pattern):
        return [one.path.relative_to(tmp_path).as_posix() for one in find_inputs([str(tmp_path / pattern)])]

    assert named("**/*.jpg") == ["a.jpg", "x/b.jpg", "x/y/c.jpg", "z/y/e.jpg"]
    assert named("x/**") == ["x/b.jpg", "x/y/c.jpg", "x/y/d.png"]
    assert named("**/y/*") == ["x/y/c.jpg", "x/y/d.png", "z/y/e.jpg"]
    assert named("?/**/[cd].*") == ["x/y/c.jpg", "x/y/d.png"]


def test_examples_whose_masks_have_similar_names(tmp_path):
    touch(tmp_path, "images/é.jpg", f"masks/{unicodedata.normalize('NFD', 'é')}.png", "images/cat.jpg")
    assert len(pair([str(tmp_path / "images")], [str(tmp_path / "masks")])) == 1
    touch(tmp_path, "masks/cat_mask.png")
    with pytest.raises(DataError, match=r"cat_mask\.png: no picture has the same stem; .*; there is cat\.jpg"):
        pair([str(tmp_path / "images")], [str(tmp_path / "masks")])


def test_similar_names():
    files = Similar(["m/frame_001_mask.png", "m/x.y.png", "m/Z.PNG", "other/frame_002.png"])
    assert files.find("m/frame_001") == "m/frame_001_mask.png"
    assert files.find("m/x.y_seg") == files.find("m/x") == "m/x.y.png"
    assert files.find("m/z") == "m/Z.PNG"
    assert files.find("m/frame_002") is None and files.find("m/001") is None
