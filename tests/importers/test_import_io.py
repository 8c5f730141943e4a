"""Imports from failing disks, and of data sets that lost files or got them back; faults of one file and of all files."""

import errno
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from disks import SHARDS, emptied, of_number, run, stamps
from import_trees import make_picture, voc, write_labels
from victims import contents

from cli.cocolvis import main
from cocolvis.disk import reading
from cocolvis.importers import voc as voc_layout
from cocolvis.pictures import encoded
from cocolvis.storage.dataset import Dataset


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0, 0, 0, 0))
    monkeypatch.setattr(reading, "_worn_out", False)


class Folder:
    """A data set for `import folder` with 12 images in each split; ``harm`` damages ten of train, and ``mend`` repairs them."""

    def __init__(self, root, picture=".png"):
        self.src, self.out, self.aside = root / "mine", root / "data", root / "aside"
        for number in range(24):
            split, labels = ("train", "val")[number // 12], np.full((6, 7 + number), 1 + number % 2, "u1")
            make_picture(self.src / f"images/{split}/deep/{number:02d}{picture}", labels.shape, 3)
            write_labels(self.src / f"masks/{split}/deep/{number:02d}.png", labels)
        (self.src / "classes.txt").write_text("sky\nhill\n")

    def command(self, *options):
        return ["import", "folder", self.src, "--out", self.out, "--workers", 1, *SHARDS, *options]

    def chosen(self, kind):
        return sorted((self.src / kind / "train/deep").iterdir())[1:11]

    def harm(self, kind, how):
        shutil.copytree(self.src / kind, self.aside)
        for path in self.chosen(kind):
            path.unlink() if how == "gone" else path.write_bytes(path.read_bytes()[: -20 if how == "truncated" else -30])

    def mend(self, kind):
        shutil.rmtree(self.src / kind)
        self.aside.rename(self.src / kind)


@pytest.mark.parametrize("how", ["gone", "truncated"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_an_import_that_lost_files_is_refused_allowed_or_mended(tmp_path, kind, how):
    made = Folder(tmp_path)
    run(*made.command())
    whole = contents(made.out)
    shutil.rmtree(made.out)
    made.harm(kind, how)
    line = run(*made.command(), code=1)
    assert "split train lost 10 of 12 images to missing or unreadable files: image 1: " in line
    before = stamps(made.out)
    shutil.copytree(made.out, tmp_path / "kept", copy_function=os.link)
    run(*made.command("--resume", "--allow-missing"))
    assert stamps(made.out) == before and Dataset.open(made.out).splits == {"train": 2, "val": 12}
    shutil.rmtree(made.out)
    (tmp_path / "kept").rename(made.out)
    made.mend(kind)
    run(*made.command("--resume"))
    assert contents(made.out) == whole
    assert {name for name, stamp in stamps(made.out).items() if before[name] == stamp} == {
        f"val-{number:05d}.h5" for number in range(4)
    }


def test_parts_of_an_import_that_run_again_read_repaired_files(tmp_path):
    """The first part records the sizes of all repaired files, so that the second one sees no change."""
    made = Folder(tmp_path)
    run(*made.command())
    whole = contents(made.out)
    shutil.rmtree(made.out)
    made.harm("images", "truncated")
    for part in ("1/2", "2/2"):
        run(*made.command("--shard", part))
    made.mend("images")
    for part in ("1/2", "2/2"):
        assert "2 of the finished shards lack images" in run(*made.command("--shard", part))
    run("join", made.out)
    assert contents(made.out) == whole


def test_an_import_that_may_lack_images_records_the_repaired_files_that_it_reads(tmp_path, monkeypatch):
    made = Folder(tmp_path)
    run(*made.command())
    whole = contents(made.out)
    shutil.rmtree(made.out)
    made.harm("images", "truncated")

    def stopped(*options):
        with monkeypatch.context() as patch:
            patch.setattr("cocolvis.building.index.complete", interrupted)
            assert CliRunner().invoke(main, list(map(str, made.command(*options)))).exit_code == 130

    def interrupted(*_):
        raise KeyboardInterrupt

    stopped()
    made.mend("images")
    (made.out / ".build/train-00001.json").unlink()  # three images whose shard is not finished
    shutil.copytree(made.out, tmp_path / "again")
    run(*made.command("--resume", "--allow-missing"))
    data = Dataset.open(made.out)
    assert (data.splits["train"], data.index["inputs"]) == (2 + 3, json.loads(whole["dataset.json"])["inputs"])
    run(*made.command("--resume"))
    shutil.rmtree(made.out)
    (tmp_path / "again").rename(made.out)
    stopped("--resume", "--allow-missing")
    assert (made.out / ".build/train-00001.json").exists()
    run(*made.command("--resume"))
    assert contents(made.out) == whole


def test_an_import_whose_files_vanish_after_it_began_is_still_the_same(tmp_path):
    made = Folder(tmp_path)

    def stop(*_):
        made.harm("images", "gone")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cocolvis.importers.labelled.LabelPlan.warm_up", stop)
        assert "lost 10 of 12" in run(*made.command(), code=1)
    before = stamps(made.out)
    emptied(made.src / "images/train")
    assert f"the folder {made.src}/images/train is empty; is its disk" in run(*made.command("--resume"), code=1)
    run(*made.command("--resume", "--allow-missing"))
    assert stamps(made.out) == before


def test_an_import_of_other_files_is_still_another_one(tmp_path):
    made = Folder(tmp_path)
    made.harm("images", "gone")
    run(*made.command(), code=1)
    make_picture(made.src / "images/val/deep/13.png", (30, 30), 4)
    assert "was begun with other inputs or options" in run(*made.command("--resume"), code=1)


def test_folders_of_an_import_that_are_not_mounted_are_not_about_one_file(tmp_path):
    made = Folder(tmp_path)
    emptied(made.src / "masks/train")
    assert f"the folder {made.src}/masks/train is empty; is its disk mounted?" in run(*made.command(), code=1)
    made = Folder(tmp_path / "other")
    shutil.rmtree(made.src / "images/train/deep")  # a folder below that of all pictures
    make_picture(made.src / "images/train/99.png", (6, 7), 0)
    assert "split train has no picture with its mask: " in run(*made.command(), code=1)
    run(*made.command("--allow-missing"))
    assert Dataset.open(made.out).splits == {"train": 0, "val": 12}
    write_labels(made.src / "masks/train/99.png", np.ones((6, 7), "u1"))
    assert "split train lost 12 of 13 images" in run(*made.command("--overwrite"), code=1)


def test_equal_imports_of_broken_files_are_equal_and_name_no_objects(tmp_path):
    made = Folder(tmp_path)
    broken = [path for kind in ("images", "masks") for path in sorted((made.src / kind / "train/deep").iterdir())]
    for number, path in enumerate(broken):
        content = path.read_bytes()
        at = content.index(b"IDAT") - 4 if number % 3 else content.index(b"IDAT") + 8
        path.write_bytes(content[:at] + bytes([number] * (3 + number)) + content[at + 3 + number :])
    run(*made.command("--allow-missing"))
    first = contents(made.out)
    run(*made.command("--overwrite", "--allow-missing"))
    assert contents(made.out) == first
    reasons = [fault["reason"] for fault in Dataset.open(made.out).faults()]
    assert len(reasons) >= 10 and not any("<" in reason or "0x" in reason for reason in reasons), reasons


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOTCONN"])
def test_a_folder_that_cannot_be_listed_is_tried_again_and_ends_an_import(tmp_path, monkeypatch, name):
    made = Folder(tmp_path)
    scandir, calls = os.scandir, []

    def stumble(path):
        if str(path).endswith("images/val/deep"):
            calls.append(path)
            if len(calls) <= times:
                raise of_number(name)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stumble)
    times = 10**9
    said = f"{made.src}/images/val/deep: cannot be read: {of_number(name).strerror}; finished shards are kept: "
    assert said in run(*made.command(), code=1) and len(calls) == 5
    assert said in run(*made.command("--split", "train"), code=1)  # ids count the images of val too
    times = len(calls) + 4
    run(*made.command())
    assert Dataset.open(made.out).splits == {"train": 12, "val": 12}


def test_a_linked_folder_on_a_failing_disk_ends_an_import(tmp_path, monkeypatch):
    made = Folder(tmp_path)
    (made.src / "images/train/deep").rename(tmp_path / "store")
    (made.src / "images/train/deep").symlink_to(tmp_path / "store")
    run(*made.command())
    before, calls, scandir = contents(made.out), [], os.scandir

    class Entry:
        def __init__(self, entry):
            self.name, self.path, self.is_symlink, self.is_file = entry.name, entry.path, entry.is_symlink, entry.is_file
            self._is_dir = entry.is_dir

        def is_dir(self):
            if self.path.endswith("images/train/deep"):
                calls.append(self)
                if len(calls) <= 5:
                    raise of_number("ESTALE")
            return self._is_dir()

    class Entries(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def __next__(self):
            return self[0]

    shutil.rmtree(made.out)
    with monkeypatch.context() as patch:
        patch.setattr("cocolvis.disk.folders.os.scandir", lambda path: Entries(map(Entry, scandir(path))))
        said = f"images/train/deep: cannot be read: {os.strerror(errno.ESTALE)}"
        assert said in run(*made.command(), code=1) and len(calls) == 5
        run(*made.command())
    assert contents(made.out) == before


def test_a_folder_to_predict_from_is_tried_again_and_then_passed_over(tmp_path, monkeypatch):
    from cocolvis.disk.folders import walk

    for name in ("a/b.jpg", "c.jpg"):
        make_picture(tmp_path / name, (4, 4), 0)
    scandir, calls = os.scandir, []

    def stumble(path):
        if str(path).endswith("/a"):
            calls.append(path)
            raise of_number("EIO")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stumble)
    assert walk(tmp_path, tolerant=True) == (["c.jpg"], [f"{tmp_path}/a: cannot be read: Input/output error"])
    assert len(calls) == 5


def no_memory(*_, **__):
    raise MemoryError


def no_memory_of_opencv(*_, **__):
    error = cv2.error("no memory")
    error.code, error.err = cv2.Error.StsNoMem, "Failed to allocate 17 bytes"
    raise error


@pytest.mark.parametrize(
    ("place", "fails", "named", "kind"),
    [
        ("cocolvis.pictures.label_files._decode", no_memory, "masks", "unreadable mask"),
        ("cocolvis.pictures.label_files.pixels", no_memory, "masks", "unreadable mask"),
        ("cocolvis.importers.labelled.open_labels", no_memory, "masks", "unreadable mask"),
        ("cocolvis.pictures.encoded.png.check", no_memory, "images", "unreadable image"),
        ("cocolvis.pictures.encoded.jpeg.check", no_memory, "images", "unreadable image"),
        ("cocolvis.pictures.encoded.cv2.imdecode", no_memory_of_opencv, "images", "unreadable image"),
    ],
)
def test_memory_that_runs_out_over_a_file_is_not_its_fault(tmp_path, monkeypatch, place, fails, named, kind):
    made = Folder(tmp_path, ".jpg" if "jpeg" in place else ".png")
    monkeypatch.setattr("cocolvis.importers.labelled.LabelPlan.warm_up", lambda plan: None)
    with monkeypatch.context() as patch:
        if "png.check" in place:
            patch.setattr(
                "cocolvis.pictures.label_files.png", type("Png", (), vars(encoded.png) | {"check": lambda content: None})
            )
        patch.setattr(place, fails)
        line = run(*made.command("--decode"), code=1)
        assert f"{made.src}/{named}/" in line and ": cannot be read: Cannot allocate memory; finished shards are kept" in line
        run(*made.command("--decode", "--overwrite", "--allow-missing"))
    faults = list(Dataset.open(made.out).faults())
    assert {fault["kind"] for fault in faults} == {kind} and len(faults) == 24
    assert all(fault["reason"].endswith("cannot be read: Cannot allocate memory") for fault in faults)


def test_label_files_in_several_folders_are_distinguished(tmp_path):
    made = voc(tmp_path)
    tree = voc_layout.find(made.src, ("train", "val"), augmented=True)
    for image in (image for own in tree.images.values() for image in own):
        assert image.picture.folder == str(Path(image.picture.path).parent)
        assert image.labels.folder == str(Path(image.labels.path).parent)
    assert len({image.labels.folder for image in tree.images["train"]}) == 2


def test_pictures_that_come_back_under_another_composition_are_the_same(tmp_path):
    made = Folder(tmp_path)
    for kind in ("images", "masks"):
        name = "e\u0301" if kind == "images" else "\u00e9"  # é, as macOS writes it, and as others do
        path = made.src / kind / "train/deep/05.png"
        path.rename(path.with_name(f"{name}.png"))
    run(*made.command())
    whole = contents(made.out)
    shutil.rmtree(made.out)
    made.harm("images", "gone")
    (made.src / "images/train/deep/e\u0301.png").unlink(missing_ok=True)
    run(*made.command(), code=1)
    made.mend("images")
    run(*made.command("--resume"))
    assert contents(made.out) == whole


@pytest.fixture
def begun(tmp_path):
    """An unfinished import that lacked ten pictures of train, which are back now."""
    made = Folder(tmp_path)
    made.harm("images", "gone")
    run(*made.command(), code=1)
    made.mend("images")
    return made


def edited(**values):
    def edit(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


RECORDS = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "files.json: is damaged: "),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "files.json: is a folder, a pipe or a device"),
    "no names": (edited(names=5), "files.json: is damaged: "),
    "no sizes": (edited(sizes={"train": [[1]], "val": []}), "files.json: is damaged: "),
    "negative": (edited(sizes={"train": [[-1, 1]] * 12, "val": []}), "files.json: is damaged: "),
    "too few": (edited(sizes={"train": [[0, 0]] * 11, "val": [[0, 0]] * 12}), "was begun with other inputs or options"),
    "one split": (edited(sizes={"val": [[0, 0]] * 12}), "was begun with other inputs or options"),
    "other names": (edited(names="0" * 64), "was begun with other inputs or options"),
    "gone": (lambda path: path.unlink(), "was begun with other inputs or options"),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_broken_record_of_files_is_reported_in_one_line_and_overwritten(begun, name):
    harm, said = RECORDS[name]
    harm(begun.out / ".build/files.json")
    before = stamps(begun.out)
    line = run(*begun.command("--resume"), code=1)
    assert said in line and "--overwrite" in line and stamps(begun.out) == before
    run(*begun.command("--overwrite"))
    assert sorted(path.name for path in begun.out.iterdir()) == ["dataset.json", "shards"]


@pytest.mark.parametrize("size", [None, 0, "x"])
def test_a_record_without_a_shard_size_is_reported_in_one_line(begun, size):
    plan = begun.out / ".build/plan.json"
    content = json.loads(plan.read_text())
    content["description"]["options"]["shard_size"] = size
    plan.write_text(json.dumps(content))
    chooses = [option for option in begun.command("--resume") if option not in SHARDS]
    assert "plan.json: is damaged: " in run(*chooses, code=1)


def test_reports_of_shards_to_be_built_again_still_say_what_these_were_built_from(begun):
    reports = {path.name: json.loads(path.read_text()) for path in (begun.out / ".build").glob("*-*.json")}
    assert len({found["build"] for found in reports.values()}) == len(reports) == 8
    assert {name for name, found in reports.items() if found.get("again")} == {f"train-{n:05d}.json" for n in range(4)}


def test_broken_reports_count_as_absent_when_lost_images_are_counted(begun):
    (begun.out / ".build/train-00001.json").write_text("{")
    (begun.out / ".build/val-00001.json").write_text("[]")
    run(*begun.command("--resume"))
    assert Dataset.open(begun.out).splits == {"train": 12, "val": 12}


def test_nothing_is_reported_once_the_folder_is_lost(tmp_path, monkeypatch):
    """Neither dataset.json nor faults.jsonl is written, and an older faults.jsonl is not removed."""
    made = Folder(tmp_path)
    monkeypatch.setattr("cocolvis.storage.report.LISTED", 0)

    def lost(*_):
        next(made.out.glob(".build-*.lock")).unlink()
        (made.out / "faults.jsonl").write_text("another's")
        return []

    (made.src / "images/train/deep/03.png").unlink()
    monkeypatch.setattr("cocolvis.building.index.reasons_to_refuse", lost)
    assert "this process has lost the folder" in run(*made.command(), code=1)
    assert (made.out / "faults.jsonl").read_text() == "another's" and not (made.out / "dataset.json").exists()
