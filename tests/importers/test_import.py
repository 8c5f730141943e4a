"""Imports of whole trees: every mask, path and picture; faults of single images; interruptions; training on the result."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from import_trees import TREES, ade20k, cityscapes, cocostuff10k, folder, folder_of_export, make_picture, voc, write_labels
from PIL import Image
from victims import contents, until

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.importers.ade20k import find as find_ade20k
from cocolvis.importers.labelled import LabelOptions, LabelPlan
from cocolvis.inspection.verify import verify
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader
from ess.config import Config
from ess.evaluation.evaluate import evaluate
from ess.inference.predictor import Predictor
from ess.training.loop import train


def run(*arguments, code=0):
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def imported(made, out, *more):
    run(*made.arguments(out, "--workers", 1, *more))
    return Dataset.open(out)


def check(made, data, images=None):
    """Check that the data set has exactly the images of the tree, in the same order, with the same masks and paths."""
    for split, expected in (images or made.images).items():
        own = data.split(split)
        assert own.image_ids().tolist() == list(expected)
        for row, (path, mask) in enumerate(expected.values()):
            sample = own[row]
            assert sample.path == path and sample.mask.dtype == np.uint16
            assert np.array_equal(sample.mask, mask), path
            assert sample.image().shape == (*mask.shape, 3)
            assert not sample.neg.size and not sample.not_exhaustive.size


def faults(data):
    return {(fault["kind"], fault["image_id"]) for fault in data.index["report"]["faults"]}


@pytest.mark.parametrize("make", TREES)
def test_every_mask_and_picture_of_a_tree(make, tmp_path):
    made = make(tmp_path)
    data = imported(made, tmp_path / "data")
    check(made, data)
    assert len(data.vocabulary) == made.classes and data.index["report"]["faults"] == []
    assert data.splits == {split: len(own) for split, own in made.images.items()}
    assert data.vocabulary.groups == () and not data.is_coco_lvis
    assert all(data.find(image_id).content == picture.read_bytes() for image_id, picture in made.pictures.items())


@pytest.mark.parametrize(
    "make", [folder, *(pytest.param(m, marks=pytest.mark.long) for m in (ade20k, cityscapes, voc, cocostuff10k))]
)
def test_a_network_learns_and_is_scored_on_an_import(make, tmp_path):
    data = imported(make(tmp_path), tmp_path / "data")
    settings = {"encoder": "resnet18", "weights": "none", "crop": 48, "batch_size": 2, "workers": 0, "steps": 2}
    train(data, tmp_path / "run", Config(**settings, epochs=None))
    scores = evaluate(Predictor.from_run(tmp_path / "run"), data)
    assert 0 <= scores["miou"] <= 1 and scores["groups"] == {} and scores["images"] == 2


def test_the_commands_that_look_at_a_data_set(tmp_path):
    made = voc(tmp_path)
    out, other = tmp_path / "data", tmp_path / "other"
    said = run(*made.arguments(out, "--workers", 1))
    assert "21 classes; dataset voc, images embed" in said.stdout
    assert "train_aug.txt is not used; --augmented takes it" in said.stderr
    assert json.loads(run("info", out, "--json").stdout)["options"]["dataset"] == "voc"
    table = run("stats", out, "--plot", tmp_path / "plot.png").stdout
    assert "background" in table and "group" not in table and Image.open(tmp_path / "plot.png").size[0] > 500
    assert json.loads(run("stats", out, "--json").stdout)["splits"]["train"]["groups"] == {}
    assert "all as recorded" in run("verify", out).stdout
    refused = run("verify", out, "--oracle", "--coco", tmp_path, "--lvis", tmp_path, code=1).stderr.splitlines()[-1]
    assert refused.startswith("Error: ") and "does not have the vocabulary of COCO+LVIS" in refused
    refused = run("why", out, 2007000032, 0, 0, "--coco", tmp_path, "--lvis", tmp_path, code=1).stderr
    assert "does not have the vocabulary of COCO+LVIS" in refused
    run("show", out, 2007000032, "--out", tmp_path / "pictures")
    assert Image.open(tmp_path / "pictures" / "002007000032.png").size[0] > 480
    run("export", out, "--out", tmp_path / "masks")
    assert np.array_equal(np.array(Image.open(tmp_path / "masks/train/002007000032.png")), made.images["train"][2007000032][1])
    labels = np.array(Image.open(made.labels[2007000032]))
    labels[0, :2] = 255, 20
    write_labels(made.labels[2007000032], labels, palette=True)
    imported(made, other)
    found = json.loads(run("diff", out, other, "--json").stdout)
    assert found["pixels"]["differing"] == int((Dataset.open(out).find(2007000032).mask[0, :2] != [0, 21]).sum())


def test_an_export_is_a_folder_that_can_be_imported_again(tmp_path):
    data = imported(voc(tmp_path), tmp_path / "data")
    run("export", tmp_path / "data", "--out", tmp_path / "again" / "masks")
    for split in data.splits:
        for row in range(data.splits[split]):
            sample = data.split(split)[row]
            picture = tmp_path / "again" / "images" / split / f"{sample.image_id:012d}.jpg"
            picture.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(sample.content)
    (tmp_path / "again" / "classes.json").write_text(json.dumps([{"name": c.name, "kind": c.kind} for c in data.vocabulary]))
    run("import", "folder", tmp_path / "again", "--out", tmp_path / "second", "--workers", 1)
    again = Dataset.open(tmp_path / "second")
    assert [(c.name, c.kind) for c in again.vocabulary] == [(c.name, c.kind) for c in data.vocabulary]
    for split in data.splits:
        masks = {data.split(split)[row].image_id: data.split(split).mask(row) for row in range(data.splits[split])}
        for row, image_id in enumerate(sorted(masks)):
            assert np.array_equal(again.split(split).mask(row), masks[image_id])


def spoil(made):
    """Damage each image of a split of 9 in another way; image id -> kind of fault, None for one that is left whole."""
    ids = list(made.images["train"])
    truncated = made.labels[ids[0]].read_bytes()
    made.labels[ids[0]].write_bytes(truncated[:-10])
    made.labels[ids[1]].unlink()
    made.pictures[ids[2]].unlink()
    make_picture(made.pictures[ids[3]], (7, 9), 0)
    made.pictures[ids[4]].write_bytes(made.pictures[ids[4]].read_bytes()[:-50])
    Image.new("RGB", made.images["train"][ids[5]][1].shape[::-1], (1, 1, 0)).save(made.labels[ids[5]], format="PNG")
    made.labels[ids[6]].write_bytes(b"")
    wrong = made.images["train"][ids[7]][1].copy()
    wrong[3, 4:7] = 151, 200, 200
    write_labels(made.labels[ids[7]], wrong.astype("u1"))
    made.images["train"][ids[7]][1][3, 4:7] = 0
    kinds = ["unreadable mask", "missing mask", "missing image", "wrong image size", "unreadable image"]
    return dict(zip(ids, [*kinds, "unreadable mask", "unreadable mask", "unknown label", None], strict=True))


def nine_images(tmp_path):
    """ADE20K with 9 images in the split train, 2 in val."""
    made = ade20k(tmp_path)
    masks = list(made.images["train"].values())
    made.images["train"] = {}
    for number in range(1, 10):
        name, mask = f"ADE_train_{number:08d}", masks[number % 3][1]
        picture = make_picture(made.src / f"images/training/{name}.jpg", mask.shape, number)
        file = write_labels(made.src / f"annotations/training/{name}.png", mask.astype("u1"))
        made.expect("train", number, picture, file, mask.copy())
    made.images["val"] = {number + 6: entry for number, entry in made.images["val"].items()}
    return made


def test_a_faulty_image_does_no_other_harm(tmp_path):
    made = nine_images(tmp_path)
    kinds = spoil(made)
    data = imported(made, tmp_path / "data")
    assert faults(data) == {(kind, image_id) for image_id, kind in kinds.items() if kind}
    kept = {i: entry for i, entry in made.images["train"].items() if kinds[i] in (None, "unknown label")}
    check(made, data, {"train": kept, "val": made.images["val"]})
    reasons = {fault["image_id"]: fault["reason"] for fault in data.index["report"]["faults"]}
    assert reasons[2] == "annotations/training/ADE_train_00000002.png: does not exist"
    assert reasons[4].startswith("images/training/ADE_train_00000004.jpg: is 7 x 9, its mask is ")
    assert "the PNG is in 1 colour; expected one channel of label numbers" in reasons[6]
    assert reasons[8].endswith("3 pixels have labels that no class has: 151, 200")
    assert verify(data) == []
    reason = run(*made.arguments(tmp_path / "strict", "--strict", "--workers", 1), code=1).stderr.splitlines()[-1]
    assert reason.startswith("Error: --strict: 8 faults, the first: unreadable mask: image 1: annotations/training/")


def test_masks_of_a_wrong_size_are_named_and_can_be_repaired(tmp_path):
    made = folder_of_export(tmp_path)
    right = {path: path.read_bytes() for path in made.labels.values()}
    for number, path in made.labels.items():
        write_labels(path, np.ones((5, 4 + number), "u1"))
    refused = run(*made.arguments(tmp_path / "data"), code=1).stderr.splitlines()[-1]
    assert "split train keeps none of its 3 images: image 1: images/train/1.jpg: is " in refused
    for path, content in right.items():
        path.write_bytes(content)
    check(made, imported(made, tmp_path / "data", "--resume"))


def test_what_an_import_prints_can_be_copied_and_parsed(tmp_path):
    made = folder_of_export(tmp_path)
    out = tmp_path / "my data"
    for number in (1, 2):
        printed = json.loads(run(*made.arguments(out, "--shard", f"{number}/2", "--json")).stdout)
        assert printed == {"part": number, "parts": 2, "out": str(out)}
    assert f"with `cocolvis join '{out}'`" in run(*made.arguments(out, "--shard", "1/2")).stdout
    run("join", out)
    assert json.loads(run(*made.arguments(out, "--shard", "1/2", "--json")).stdout)["splits"]["train"]["images"] == 3
    assert f"`cocolvis show '{out}' IMAGE_ID`" in run(*made.arguments(out, "--overwrite")).stdout
    assert "--scheduler is empty" in run(*made.arguments(tmp_path / "x", "--scheduler", ""), code=2).stderr


def test_strange_names_are_reported(tmp_path):
    made = folder_of_export(tmp_path)
    for name in (b"\xff.jpg", b"a\nb.jpg"):
        with open(os.fsencode(made.src / "images/train") + b"/" + name, "wb") as file:
            file.write(b"picture")
    make_picture(made.src / "images/train/1.png", (9, 9), 0)
    data = imported(made, tmp_path / "data")
    check(made, data)
    assert sorted(kind for kind, _ in faults(data)) == ["duplicate image", "malformed image"]
    assert data.index["report"]["counts"] == {"duplicate image": 1, "malformed image": 2}


def test_lists_with_faults(tmp_path):
    made = voc(tmp_path)
    names = made.src / "VOC2012/ImageSets/Segmentation/train.txt"
    names.write_text(names.read_text() + "\n2007_000032\n../../etc/passwd\n2007_000032x\n2012_999999\n")
    data = imported(made, tmp_path / "data")
    check(made, data)
    assert data.index["report"]["counts"] == {"duplicate image": 1, "malformed image": 2, "missing mask": 1}
    reasons = [fault["reason"] for fault in data.index["report"]["faults"] if fault["kind"] == "malformed image"]
    assert all(reason.endswith(": expected a name such as 2007_000032") for reason in reasons)


@pytest.mark.parametrize("make", [voc, cocostuff10k])
def test_an_image_in_two_lists_stays_in_both_and_is_reported(make, tmp_path):
    made = make(tmp_path)
    first = next(path for path in made.src.rglob("*.txt") if path.stem == "train")
    other = next(path for path in made.src.rglob("*.txt") if path.stem == ("val" if make is voc else "test"))
    other.write_text(first.read_text().splitlines()[0] + "\n" + other.read_text())
    data = imported(made, tmp_path / "data")
    (fault,) = data.index["report"]["faults"]
    twice = next(iter(made.images["train"]))
    assert (fault["kind"], fault["image_id"]) == ("image in two splits", twice) and "is in split train too" in fault["reason"]
    assert twice in data.split("train").image_ids() and twice in data.split("val").image_ids()


@pytest.mark.parametrize("make", TREES)
def test_ids_and_order_do_not_depend_on_what_is_chosen(make, tmp_path):
    made = make(tmp_path)
    data = imported(made, tmp_path / "val", "--split", "val", "--limit", 1)
    first = dict(list(made.images["val"].items())[:1])
    assert list(data.splits) == ["val"]
    check(made, data, {"val": first})


def test_pictures_that_stay_where_they_are(tmp_path):
    made = cocostuff10k(tmp_path)
    data = imported(made, tmp_path / "data", "--images", "path", "--shard-size", 2)
    check(made, data)
    assert [entry["images"] for entry in data.index["shards"]] == [2, 1, 2]
    assert data.image_root == made.src.resolve()
    assert not any(ShardReader(path).sample(0).content for split in data.splits for path in data.shard_paths(split))


def test_large_pictures_make_small_shards(tmp_path, monkeypatch):
    made = nine_images(tmp_path)
    monkeypatch.setattr("cocolvis.importers.labelled._SHARD_BYTES", 4 * made.pictures[1].stat().st_size)
    data = imported(made, tmp_path / "data")
    sizes = [entry["images"] for entry in data.index["shards"]]
    assert 2 <= sizes[0] <= 5 and sum(sizes) == 11
    check(made, data)


def test_any_number_of_workers_and_parts_make_the_same(tmp_path):
    made = nine_images(tmp_path)
    whole = imported(made, tmp_path / "one", "--shard-size", 2)
    run(*made.arguments(tmp_path / "two", "--workers", 2, "--shard-size", 2))
    for part in (2, 1):
        run(*made.arguments(tmp_path / "parts", "--workers", 1, "--shard-size", 2, "--shard", f"{part}/2"))
    run("join", tmp_path / "parts")
    again = run(*made.arguments(tmp_path / "parts", "--workers", 1, "--shard-size", 2, "--shard", "1/2")).stdout
    assert again == f"the data set in {tmp_path / 'parts'} is already complete; there is nothing left to build or to join\n"
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "parts")
    assert imported(made, tmp_path / "other", "--shard-size", 5).index["digest"] == whole.index["digest"]


def test_a_split_without_any_class_is_reported(tmp_path):
    made = folder_of_export(tmp_path)
    told = "no pixel of split {} has a class, so nothing can be learned from it; check the labels in its masks"
    for number in (4, 5):
        write_labels(made.src / f"masks/val/{number}.png", np.zeros(made.images["val"][number][1].shape, np.uint8))
    stderr = run(*made.arguments(tmp_path / "data", "--workers", 1)).stderr
    assert told.format("val") in stderr and told.format("train") not in stderr


SLOWLY = """
import time
from cli.cocolvis import main
from cocolvis.building import executors
run_shard = executors.run_shard
executors.run_shard = lambda *task: (run_shard(*task), time.sleep(0.1))[0]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_import_is_resumed(number, tmp_path):
    made = nine_images(tmp_path)
    out, options = tmp_path / "data", ("--shard-size", 1, "--workers", 1)
    imported(made, tmp_path / "whole", "--shard-size", 1)
    command = [sys.executable, "-c", SLOWLY, *map(str, made.arguments(out, *options))]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    until(lambda: len(list((out / ".build").glob("*-*.json"))) >= 2 or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(60) == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[number]
    assert 2 <= len(list((out / ".build").glob("*-*.json"))) < 11
    resumed = run(*made.arguments(out, *options, "--resume"))
    assert "import: " in resumed.stderr and contents(out) == contents(tmp_path / "whole")


def test_two_imports_never_mix(tmp_path):
    made = nine_images(tmp_path)
    imported(made, tmp_path / "data")
    before = contents(tmp_path / "data")
    run(*made.arguments(tmp_path / "data", "--resume"))
    said = run(*made.arguments(tmp_path / "data"), code=1).stderr
    assert "already holds a data set; replace it with --overwrite" in said
    made.labels[3].write_bytes(made.labels[3].read_bytes() + b" ")
    said = run(*made.arguments(tmp_path / "data", "--resume"), code=1).stderr
    assert "is a finished data set of other inputs or options" in said and contents(tmp_path / "data") == before
    run(*made.arguments(tmp_path / "data", "--overwrite", "--workers", 1))
    assert contents(tmp_path / "data").keys() == before.keys() and contents(tmp_path / "data") != before


@pytest.mark.parametrize("make", TREES)
def test_another_folder_than_such_a_data_set_is_reported_in_one_line(make, tmp_path):
    made = make(tmp_path / "there")
    for src, reason in ((tmp_path / "absent", "is not a directory; expected "), (tmp_path, ": holds no ")):
        said = run("import", made.name, src, "--out", tmp_path / "data", code=1).stderr.splitlines()
        assert len(said) == 1 and said[-1].startswith(f"Error: {src}: ") and reason in said[-1]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("classes.txt", "sky\n\nhill\n", "class 2 has name ''"),
        ("classes.txt", "sky\nhill\nsky\n", "class names must be unique, but classes 1 and 3 are both 'sky'"),
        ("classes.txt", "", "lists 0 classes; expected 1 to 65535"),
        ("classes.txt", b"sky\r\nm\xe4hre\r\n", "classes.txt: line 2, byte 2: 0xe4 is not UTF-8; save it as UTF-8"),
        ("classes.csv", "label,kind\n1,thing\n", "expected a column 'name'"),
        ("classes.csv", "name,kind\nsky,air\n", "class 1 has name 'sky', kind 'air'"),
        (
            "classes.csv",
            "name\nsky\ncat, tame\nhill\n",
            "line 3 has more fields than the header, 1; put a name that contains ','",
        ),
        ("classes.json", '{"sky": 1}', "expected a list of names"),
        ("classes.json", '["sky", {"kind": "thing"}]', "expected a list of names"),
        ("classes.json", '["sky", {"name": 5}]', "class 2 has name 5"),
        ("classes.json", '["sky"', "is not JSON"),
        ("names.txt", "sky", "holds no list of classes; expected one of classes.txt, classes.csv, classes.json"),
    ],
)
def test_malformed_lists_of_classes(name, content, reason, tmp_path):
    made = folder_of_export(tmp_path)
    (made.src / "classes.csv").unlink()
    (made.src / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = run(*made.arguments(tmp_path / "data"), code=1).stderr.splitlines()[-1]
    assert said.startswith(f"Error: {made.src}") and reason in said


@pytest.mark.parametrize("separator", [";", "\t", "; ", ";  "])
def test_tables_of_classes_may_have_the_separators_of_spreadsheets(separator, tmp_path):
    made = folder_of_export(tmp_path)
    rows = ("Name ", "KIND"), ("sky", "stuff"), ("cat, tame", "thing"), ("hill", "")
    (made.src / "classes.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(separator.join, rows)).encode())
    data = imported(made, tmp_path / "data")
    check(made, data)
    assert [(c.name, c.kind) for c in data.vocabulary] == [("sky", "stuff"), ("cat, tame", "thing"), ("hill", "stuff")]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("classes.json", '[{"id": 1, "name": "sky"}, {"id": 3, "name": "a b"}, {"id": 2, "name": "c"}]', "'a b' 3"),
        ("classes.json", '[{"id": 1, "name": "sky"}, {"id": "x", "name": "a b"}, "c"]', None),
        ("classes.csv", "id,name\n1,sky\n3,a b\n2,c\n", "'a b' 3"),
        ("classes.csv", "id,label,name\n9,1,sky\n3,2,a b\n2,3,c\n", None),
    ],
)
def test_numbers_in_a_list_of_classes_that_are_not_its_labels_are_pointed_out(name, content, told, tmp_path):
    made = folder_of_export(tmp_path)
    (made.src / "classes.csv").unlink()
    (made.src / name).write_text(content)
    said = run(*made.arguments(tmp_path / "data")).stderr
    line = f"{name}: numbers {told}, which here has label 2, by its place in the list: if the masks hold 3 for it, import them"
    assert (f"{line} with --label 'a b=3', and others likewise" in said) == bool(told) and (": numbers " in said) == bool(told)
    chosen = ("--label", "a b=3", "--label", "c=2")
    assert not told or ": numbers " not in run(*made.arguments(tmp_path / "other", *chosen)).stderr


def test_a_split_without_images_is_reported(tmp_path):
    made = folder_of_export(tmp_path)
    for file in list(made.src.glob("*/val/*")):
        file.rename(file.with_suffix(".tiff"))
    said = run(*made.arguments(tmp_path / "data"), code=1).stderr.splitlines()[-1]
    assert said == (
        f"Error: {made.src}: split val has no picture with its mask: masks/val/4.png does not exist; there is 4.tiff,"
        " but masks must be PNGs"
    )
    assert imported(made, tmp_path / "data", "--split", "train").splits == {"train": 3}


def test_a_split_whose_file_names_are_all_unusable_says_so(tmp_path):
    made = folder_of_export(tmp_path)
    for file in list(made.src.glob("*/val/*")):
        file.rename(file.with_stem(f"a\n{file.stem}"))
    said = run(*made.arguments(tmp_path / "data"), code=1).stderr.splitlines()[-1]
    reason = r"images/val/a\n4.jpg': expected UTF-8 without control characters"
    assert said == f"Error: {made.src}: split val has no file with a usable name: '{reason}"


def test_what_the_augmented_list_needs(tmp_path):
    made = voc(tmp_path)
    assert "train_aug.txt is not used" not in run(*made.arguments(tmp_path / "val", "--split", "val")).stderr
    (made.src / "VOC2012/ImageSets/Segmentation/train_aug.txt").unlink()
    said = run(*made.arguments(tmp_path / "data", "--augmented"), code=1).stderr
    assert "holds no SegmentationClassAug/ with ImageSets/Segmentation/train_aug.txt or " in said
    check(made, imported(made, tmp_path / "data"))
    assert imported(made, tmp_path / "other", "--augmented", "--split", "val").splits == {"val": 2}


def test_an_ignored_label_cannot_be_that_of_a_class(tmp_path):
    made = folder_of_export(tmp_path)
    said = run(*made.arguments(tmp_path / "data", "--ignore", 3), code=1).stderr
    assert "label 3 is ignored and also that of a class: classes have 1..3" in said
    (made.src / "classes.txt").write_text("sky\n")
    assert "holds classes.txt and classes.csv; expected one" in run(*made.arguments(tmp_path / "data"), code=1).stderr


def test_an_index_that_calls_itself_imported_needs_no_options_of_a_build(tmp_path, sample):
    data = sample.rebuild(tmp_path / "data")
    index = json.loads((tmp_path / "data" / "dataset.json").read_text())
    index["options"] = {"dataset": "voc", "images": "embed", "limit": None}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(index))
    assert data.is_coco_lvis and not Dataset.open(tmp_path / "data").is_coco_lvis
    index["options"]["dataset"] = "../voc"
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="dataset"):
        Dataset.open(tmp_path / "data")


def test_the_estimate_of_the_disk_is_enough_and_not_far_too_much(tmp_path):
    made = nine_images(tmp_path)
    for images in ("embed", "path"):
        imported(made, tmp_path / images, "--images", images, "--shard-size", 3)
        plan = LabelPlan(find_ade20k(made.src, ("train", "val")), LabelOptions(dataset="ade20k", images=images, shard_size=3))
        taken = sum(entry["bytes"] for entry in Dataset.open(tmp_path / images).index["shards"])
        assert taken <= plan.bytes_needed(plan.shard_counts()) <= 2 * taken + 300_000
