"""The independent check: it agrees with every build and detects a single wrong pixel."""

import ast
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from disks import of_number, run
from trees import box

from cocolvis.disk import reading
from cocolvis.disk.archives import Place
from cocolvis.disk.files import sha256
from cocolvis.errors import DataError
from cocolvis.inspection import oracle
from cocolvis.storage.dataset import Dataset

OPTIONS = [{}, {"overlap": "small-on-top"}, {"compat": "essnet"}, {"limit": 9, "images": "none"}]


def names(options):
    return "-".join(map(str, options.values())) or "default"


@pytest.mark.parametrize("options", OPTIONS, ids=names)
def test_the_sample_agrees(sample, tmp_path, options):
    data = sample.rebuild(tmp_path / "data", shard_size=15, **options)
    calls = []
    result = oracle.check(data, sample.coco, sample.lvis, lambda *c: calls.append(c))
    assert result.faults() == [] and result.skipped == 0
    assert result.images == sum(data.splits.values()) > 15
    assert calls[-1] == (result.images, result.images)


@pytest.mark.parametrize("options", OPTIONS, ids=names)
def test_real_data_agrees(real, tmp_path, options):
    data = real.rebuild(tmp_path / "data", **({"limit": 25} | options if options else {}))
    result = oracle.check(data, real.coco, real.lvis)
    assert result.faults() == []
    assert result.images == (200 if not options else sum(data.splits.values()))


def test_the_options_make_a_difference(sample, tmp_path):
    """If they made none, agreement under each of them would prove nothing."""
    masks = []
    for number, options in enumerate(OPTIONS[:3]):
        split = sample.rebuild(tmp_path / str(number), **options).split("train")
        masks.append({i: split.mask(row) for row, i in enumerate(split.image_ids().tolist())})
    common = set.intersection(*map(set, masks))
    assert any(not np.array_equal(masks[0][i], masks[1][i]) for i in common)
    assert any(not np.array_equal(masks[0][i], masks[2][i]) for i in common)


def test_one_changed_pixel_is_found(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data")
    path = data.shard_paths("val")[0]
    with h5py.File(path, "r+") as file:
        lengths = file["mask/length"][()]
        image = int(np.searchsorted(file["mask/offsets"][()], 40, side="right")) - 1
        run = 40 if lengths[40] > 1 else 41
        lengths[run] -= 1
        lengths[run + 1] += 1
        file["mask/length"][...] = lengths
        image_id = int(file["id"][image])
    result = oracle.check(Dataset.open(tmp_path / "data"), sample.coco, sample.lvis)
    assert result.differing == [("val", image_id, 1)]
    assert result.faults() == [f"val: image {image_id} differs in 1 pixels"]


def test_one_changed_number_of_instances_is_found(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data")
    with h5py.File(data.shard_paths("val")[0], "r+") as file:
        file["present/instances"][40] += 1
        image_id = int(file["id"][np.searchsorted(file["present/offsets"][()], 40, side="right") - 1])
    result = oracle.check(Dataset.open(tmp_path / "data"), sample.coco, sample.lvis)
    assert (result.recounted, result.differing) == ([("val", image_id, 1)], [])
    assert result.faults() == [f"val: image {image_id} has other instances of 1 classes"]


def test_missing_repeated_and_foreign_images_are_found(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data")
    with h5py.File(data.shard_paths("val")[0], "r+") as file:
        first, second, third = file["id"][:3].tolist()
        file["id"][:3] = [first, first, 123456789]
    result = oracle.check(Dataset.open(tmp_path / "data"), sample.coco, sample.lvis)
    assert result.missing == [("val", second), ("val", third)]
    assert result.unexpected == [("val", first), ("val", 123456789)]


def faulty(tree):
    """A tree with every kind of fault that a build reports."""
    for image_id in range(1, 8):
        tree.image(image_id)
        tree.stuff(image_id, 94, box(0, 0, 8, 4))
        tree.thing(image_id, 3, box(0, 0, 4, 8))
    tree.picture(5).unlink()
    tree.thing(1, 9, [[1, 2]])
    tree.thing(1, 9, [[0, 0, float("nan"), 1, 2, 2]])
    tree.thing(2, 5000, box(0, 0, 8, 8))
    tree.stuff(77, 94, box(0, 0, 8, 8))
    things = tree.json["lvis_v1_train"]
    things["annotations"] += [things["annotations"][0] | {"category_id": 8}, {"id": 900, "image_id": 1}, 17]
    things["images"] += [things["images"][0] | {"height": 9}, {"id": 300}, {"id": 301, "height": 8, "width": 8}]
    return tree


@pytest.mark.parametrize("options", OPTIONS[:3], ids=names)
def test_what_the_build_reports_is_left_out_and_counted(tree, options):
    data = faulty(tree).build(**options)
    kinds = {"malformed annotation", "unknown category", "unlisted image"}
    reported = sum(data.index["report"]["counts"].get(kind, 0) for kind in kinds)
    result = oracle.check(data, tree.coco, tree.lvis)
    assert result.faults() == []
    assert result.skipped == reported == 6
    assert result.images == 6


def test_what_the_build_does_not_report_is_a_fault(tree, tmp_path):
    data = faulty(tree).build()
    index = json.loads((tmp_path / "data" / "dataset.json").read_text())
    index["report"]["faults"] = [f for f in index["report"]["faults"] if f["kind"] != "missing image"]
    result = oracle.check(Dataset(data.folder, index), tree.coco, tree.lvis)
    assert result.missing == [("train", 5)]
    tree.thing(3, 50, box(0, 0, 1, 1))
    tree.json["lvis_v1_train"]["annotations"].insert(0, tree.json["lvis_v1_train"]["annotations"].pop())
    tree.write()
    index["inputs"]["lvis_v1_train.json"] = sha256(tree.path("lvis_v1_train"))
    assert oracle.check(Dataset(data.folder, index), tree.coco, tree.lvis).differing == [("train", 3, 1)]


def test_images_without_url_are_found_in_the_stuff_lists(tree):
    for image_id, split, folder in ((1, "train", "train2017"), (2, "val", "train2017"), (3, "val", "val2017")):
        tree.image(image_id, split, folder)
        tree.stuff(image_id, 94, box(0, 0, 8, 4), folder)
    for content in tree.json.values():
        for image in content["images"]:
            image["file_name"] = image.pop("coco_url").split("/")[-1]
    assert oracle.check(tree.build(), tree.coco, tree.lvis).faults() == []


def test_other_inputs_are_refused(sample, tree):
    tree.image(1)
    data = tree.build()
    with pytest.raises(DataError, match="is not the file that the data set was built from; check --coco and --lvis"):
        oracle.check(data, sample.coco, sample.lvis)
    with pytest.raises(DataError, match="no LVIS annotations of split train: looked for"):
        oracle.check(data, tree.coco, tree.root / "absent")


def test_it_shares_no_code_with_the_build():
    shared = ("disk.archives", "errors", "progress", "sources.locations", "storage.dataset", "vocabulary")
    allowed = {f"cocolvis.{name}" for name in shared}
    tree = ast.parse(Path(oracle.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name for name in imported if name.startswith("cocolvis")} == allowed
    assert {"lvis", "pycocotools.coco"} <= imported


def test_it_is_silent(sample, capsys):
    oracle.check(Dataset.open(sample.data), sample.coco, sample.lvis)
    assert capsys.readouterr() == ("", "")


def test_a_disk_that_fails_is_reported_without_the_options_of_builds(tree, monkeypatch):
    tree.image(1)
    data = tree.build()

    def fail(place):
        raise of_number("EIO")

    monkeypatch.setattr(reading, "PAUSES", ())
    monkeypatch.setattr(reading, "_worn_out", False)
    monkeypatch.setattr(Place, "_mapped", fail)
    where = ("--coco", tree.coco, "--lvis", tree.lvis)
    for command in (("why", data.folder, 1, 0, 0), ("verify", data.folder, "--oracle")):
        assert run(*command, *where, code=1).endswith(".json: cannot be read: Input/output error")
    assert "continue with --resume when" in run("build", *where, "--out", tree.root / "other", "--workers", 1, code=1)
