"""Builds from failing disks and unmounted folders, and of splits that lost their pictures."""

import ast
import errno
import os
import re
import shutil
from pathlib import Path

import pytest
import zips
from disks import SHARDS, Disk, emptied, of_number, run, stamps
from trees import box, faults, five_images
from victims import contents, kept

from cocolvis.building import lost_images
from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.disk import archives, reading
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.storage.dataset import Dataset

NOT_OF_ONE_FILE = """ESTALE EMFILE ENFILE ENOMEM ETIMEDOUT ENOTCONN EHOSTDOWN EIO EHOSTUNREACH ENETDOWN ENETUNREACH ENODEV ENXIO
EREMOTEIO ENOLINK ECONNRESET ECONNREFUSED ECONNABORTED ESHUTDOWN EAGAIN EBUSY EINTR EPIPE EPROTO ENOBUFS EDQUOT EUCLEAN"""
OF_ONE_FILE = {"ENOENT": "missing image"} | dict.fromkeys(("EACCES", "ELOOP", "EISDIR", "ENAMETOOLONG"), "unreadable image")


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(reading, "PAUSES", (0, 0, 0, 0))
    monkeypatch.setattr(reading, "_worn_out", False)


def command(tree, *options):
    return ["build", "--coco", tree.coco, "--lvis", tree.lvis, "--out", tree.root / "data", "--workers", 1, *options]


def test_an_error_that_is_not_about_one_file_ends_a_build_that_can_be_resumed(tree, monkeypatch):
    five_images(tree).build("whole", shard_size=2)
    errors = [(name, of_number(name)) for name in NOT_OF_ONE_FILE.split() if hasattr(errno, name)]
    for name, error in [*errors, ("ENOMEM", MemoryError()), ("", OSError("no number"))]:
        with monkeypatch.context() as patch:
            patch.setattr(reading, "_worn_out", False)
            disk = Disk(patch, "3.jpg", error)
            line = run(*command(tree, "--shard-size", 2, "--resume"), code=1)
        said = os.strerror(getattr(errno, name)) if name else "the system gives no reason"
        assert line.startswith(f"Error: {tree.picture(3)}: cannot be read: {said}; finished shards are kept: continue with ")
        assert line.endswith("or with --resume --allow-missing to leave out what cannot be read")
        assert disk.calls == 5, name
        assert list(kept(tree.root / "data")) == ["train-00000"] and not (tree.root / "data" / "dataset.json").exists()
    before = kept(tree.root / "data")
    run(*command(tree, "--shard-size", 2, "--resume"))
    assert contents(tree.root / "data") == contents(tree.root / "whole")
    status = (tree.root / "data/shards/train-00000.h5").stat()
    assert before == {"train-00000": (status.st_ino, status.st_mtime_ns)}


def test_an_error_that_goes_away_costs_nothing(tree, monkeypatch):
    five_images(tree).build("whole")
    disk = Disk(monkeypatch, "3.jpg", of_number("EIO"), times=4)
    tree.build("data")
    assert disk.calls == 5 and contents(tree.root / "data") == contents(tree.root / "whole")


def test_pauses_grow_and_are_a_few_seconds():
    pauses = ast.literal_eval(Path(reading.__file__).read_text().partition("\nPAUSES = ")[2].splitlines()[0])
    assert list(pauses) == sorted(pauses) and len(pauses) >= 2 and 1 <= sum(pauses) < 10


@pytest.mark.parametrize("name", OF_ONE_FILE)
def test_an_error_about_one_file_is_a_fault_at_once(tree, monkeypatch, name):
    disk = Disk(monkeypatch, "3.jpg", of_number(name))
    assert faults(five_images(tree).build()) == [(OF_ONE_FILE[name], "image", 3, None)]
    assert disk.calls == 1


def test_allowed_errors_are_faults_after_the_tries(tree, monkeypatch):
    disk = Disk(monkeypatch, "3.jpg", of_number("EIO"))
    data = five_images(tree).build(allow_missing=True)
    assert disk.calls == 5 and faults(data) == [("unreadable image", "image", 3, None)]
    assert data.index["report"]["faults"][0]["reason"] == "train2017/000000000003.jpg: cannot be read: Input/output error"
    assert "allow_missing" not in data.index["options"]


def test_no_read_is_retried_again_until_one_succeeds(tree, monkeypatch):
    waited = []
    monkeypatch.setattr(reading.time, "sleep", waited.append)
    Disk(monkeypatch, ".jpg", of_number("ESTALE"))
    assert len(faults(five_images(tree).build(allow_missing=True, images="path"))) == 5
    assert len(waited) == 4


def test_a_folder_that_may_not_be_searched_is_not_about_one_file(tree, monkeypatch):
    Disk(monkeypatch, "3.jpg", of_number("EACCES"))

    lstat = os.lstat

    def denied(path, **how):
        if str(path).endswith("3.jpg"):
            raise of_number("EACCES")
        return lstat(path, **how)

    monkeypatch.setattr(reading.os, "lstat", denied)
    with pytest.raises(DataError, match=r"3\.jpg: cannot be read: its folder cannot be searched: Permission denied; finished"):
        five_images(tree).build()


@pytest.mark.parametrize(("harm", "said"), [(shutil.rmtree, "does not exist"), (emptied, "is empty")])
def test_a_folder_of_pictures_that_is_not_mounted_is_not_about_one_file(tree, harm, said):
    five_images(tree).write()
    calls = iter([harm])
    how = {"progress": lambda done, total: next(calls, str)(tree.coco / "train2017")}
    with pytest.raises(DataError, match=f"train2017 {said}; is its disk mounted[?]; finished shards are kept"):
        build(tree.sources(), tree.root / "data", CocoLvisOptions(images="path"), **how)
    emptied(tree.coco / "train2017") if (tree.coco / "train2017").exists() else (tree.coco / "train2017").mkdir()
    with pytest.raises(DataError, match="train2017 is empty"):  # while the disk space is estimated
        build(tree.sources(), tree.root / "data", CocoLvisOptions(images="embed"), mode=Mode.OVERWRITE)
    index = build(tree.sources(), tree.root / "data", CocoLvisOptions(), mode=Mode.OVERWRITE, allow_missing=True)
    assert index["report"]["counts"] == {"missing image": 5}


def test_a_zip_that_vanishes_is_not_about_one_file(tree):
    five_images(tree).write()
    archive = zips.write_zip(tree.coco / "train2017.zip", zips.pictures(tree.coco, "train"))
    shutil.rmtree(tree.coco / "train2017")
    calls = iter([lambda path: path.rename(path.with_suffix(".away"))])
    how = {"progress": lambda done, total: next(calls, str)(archive)}
    with pytest.raises(DataError, match=r"train2017\.zip: .*1\.jpg: cannot be read: No such file or directory; finished"):
        build(tree.sources(), tree.root / "data", CocoLvisOptions(), **how)
    archive.with_suffix(".away").rename(archive)
    assert build(tree.sources(), tree.root / "data", CocoLvisOptions(), mode=Mode.RESUME)["splits"]["train"]["images"] == 5


def test_planning_retries_too(tree, monkeypatch):
    five_images(tree).write()
    stat, calls = os.stat, []

    def stale(path, *more, **how):
        if str(path).endswith("3.jpg"):
            calls.append(path)
            raise of_number("ESTALE")
        return stat(path, *more, **how)

    monkeypatch.setattr(archives.os, "stat", stale)
    with pytest.raises(DataError, match=r"3\.jpg: cannot be read: " + re.escape(os.strerror(errno.ESTALE))):
        build(tree.sources(), tree.root / "data", CocoLvisOptions())
    assert len(calls) == 5 and not (tree.root / "data").exists()


@pytest.mark.linux
def test_worker_processes_report_it_in_one_line_or_allow_it(tree):
    five_images(tree).write()
    tree.picture(3).unlink()
    tree.picture(3).symlink_to("/proc/self/mem")  # an input/output error, also for root
    how = ("--shard-size", 1, "--workers", 2)
    line = run(*command(tree, *how), code=1)
    assert line.startswith(f"Error: {tree.picture(3)}: cannot be read: Input/output error; finished shards are kept: ")
    before = kept(tree.root / "data")
    assert before
    run(*command(tree, *how, "--resume", "--allow-missing"))
    found = {name: (tree.root / "data/shards" / f"{name}.h5").stat() for name in before}
    assert {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()} == before
    assert faults(Dataset.open(tree.root / "data")) == [("unreadable image", "image", 3, None)]


def lost(images, missing, kind="missing image"):
    """The report of a shard that lost ``missing`` of its ``images``."""
    return {"images": images - missing, "faults": [Fault(kind, "image", i, None, f"{i}.jpg: no") for i in range(missing)]}


@pytest.mark.parametrize(
    ("images", "missing", "fine"),
    [(100, 9, True), (100, 10, False), (1000, 10, True), (999, 10, False), (5000, 50, True), (5000, 51, False), (9, 9, False)],
)
def test_how_much_a_split_may_lose(images, missing, fine):
    for kind in lost_images.LOST:
        half = images // 2
        shards = {"train-0": half, "train-1": images - half, "val-0": 10**6}
        reports = {"train-0": lost(half, missing // 2, kind), "train-1": lost(images - half, missing - missing // 2, kind)}
        found = lost_images.reasons_to_refuse(shards, reports | {"val-0": lost(10**6, 0)}, {})
        assert (found == []) == fine
        if not fine and missing >= 10:
            assert found[0].startswith(f"split train lost {missing} of {images} images to missing or unreadable files: image 0")
    other = lost(images, missing, "wrong image size")
    found = lost_images.reasons_to_refuse({"train-0": images}, {"train-0": other}, {})
    assert [line.partition("images:")[0] for line in found] == ["split train keeps none of its 9 "] * (images == missing)
    assert all("image 0: 0.jpg: no; " in line for line in found)


def many(tree, count=12, gone=range(2, 12)):
    """``count`` images in shards of 3; the pictures of those in ``gone`` are put aside."""
    for image_id in range(1, count + 1):
        tree.image(image_id)
        tree.stuff(image_id, 94, box(0, 0, 8, 8))
    tree.image(100, "val", "val2017")
    tree.stuff(100, 94, box(0, 0, 8, 8), "val2017")
    tree.write()
    (tree.root / "aside").mkdir()
    for image_id in gone:
        tree.picture(image_id).rename(tree.root / "aside" / tree.picture(image_id).name)
    return tree


def remounted(tree):
    for path in (tree.root / "aside").iterdir():
        path.rename(tree.coco / "train2017" / path.name)


def test_a_split_that_lost_its_pictures_is_refused_until_that_is_allowed(tree):
    out = many(tree).root / "data"
    line = run(*command(tree, *SHARDS), code=1)
    assert line.startswith(f"Error: {out}: split train lost 10 of 12 images to missing or unreadable files: image 2: train")
    assert line.endswith(
        "finished shards are kept: --resume reads them again, --resume --allow-missing leaves these images out"
    )
    assert not (out / "dataset.json").exists()
    before = stamps(out)
    assert len(before) == 5
    run(*command(tree, *SHARDS, "--resume", "--allow-missing"))
    assert stamps(out) == before
    assert Dataset.open(out).splits == {"train": 2, "val": 1}
    run(*command(tree, *SHARDS, "--overwrite"), code=1)
    assert not (out / "dataset.json").exists()


def test_pictures_that_are_back_are_read_on_resume(tree):
    out = many(tree, 30, range(2, 12)).root / "data"
    run(*command(tree, *SHARDS), code=1)
    before = stamps(out)
    assert "lost 10 of 30" in run(*command(tree, *SHARDS, "--resume"), code=1)
    remounted(tree)

    def interrupted(done, total):
        if done >= 20 + 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tree.sources(), out, CocoLvisOptions(shard_size=3), mode=Mode.RESUME, progress=interrupted)
    assert "2 of the finished shards lack images" in run(*command(tree, *SHARDS, "--resume"))
    tree.build("whole", shard_size=3)
    assert contents(out) == contents(tree.root / "whole")
    unchanged = {name for name, stamp in stamps(out).items() if before[name] == stamp}
    assert unchanged == {f"train-{number:05d}.h5" for number in range(4, 10)} | {"val-00000.h5"}


def test_parts_are_checked_when_they_are_joined(tree):
    out = many(tree).root / "data"
    for part in ("1/2", "2/2"):
        run(*command(tree, *SHARDS, "--shard", part))
    line = run("join", out, code=1)
    assert "split train lost 10 of 12 images" in line
    assert line.endswith("parts that run again read them again, `join --allow-missing` leaves these images out")
    assert not (out / "dataset.json").exists()
    shutil.copytree(out, tree.root / "allowed")
    run("join", tree.root / "allowed", "--allow-missing")
    assert Dataset.open(tree.root / "allowed").splits == {"train": 2, "val": 1}
    remounted(tree)
    for part in ("1/2", "2/2"):
        run(*command(tree, *SHARDS, "--shard", part))
    run("join", out)
    tree.build("whole", shard_size=3)
    assert contents(out) == contents(tree.root / "whole")


def test_parts_that_run_again_read_lost_pictures_without_a_join_in_between(tree):
    """After the first part has read its pictures again, the second one sees a loss that a build would accept."""
    out, parts = many(tree).root / "data", ("1/2", "2/2")
    for part in parts:
        run(*command(tree, *SHARDS, "--shard", part))
    remounted(tree)
    allowed = Path(shutil.copytree(out, tree.root / "allowed"))
    before = stamps(allowed)
    for part in parts:
        run(*command(tree, *SHARDS, "--shard", part, "--allow-missing", "--out", allowed))
    assert stamps(allowed) == before
    for part in parts:
        assert "2 of the finished shards lack images" in run(*command(tree, *SHARDS, "--shard", part))
    before = stamps(out)
    for part in parts:
        assert "lack images" not in run(*command(tree, *SHARDS, "--shard", part))
    assert stamps(out) == before
    run("join", out)
    tree.build("whole", shard_size=3)
    assert contents(out) == contents(tree.root / "whole")


def test_a_split_that_keeps_nothing_is_refused_unless_nothing_was_asked_of_it(tree):
    five_images(tree).image(100, "val", "val2017")
    tree.image(101, "val", "val2017")
    tree.picture(100, "val2017").unlink()
    with pytest.raises(DataError, match=r"split val keeps none of its 1 images: image 100: val2017/0+100\.jpg: does not"):
        tree.build(limit=1)
    assert tree.build(limit=0).splits == {"train": 0, "val": 0}
    assert tree.build(allow_missing=True, limit=1).splits == {"train": 1, "val": 0}
    for image in tree.json["lvis_v1_val"]["images"]:
        image["height"] = "eight"
    with pytest.raises(
        DataError, match=r"none of its 2 images: image 100: its height is the text 'eight'; .*; image 101: .*; fin"
    ):
        tree.build()
    assert tree.build(images="none", limit=0).splits == {"train": 0, "val": 0}


def test_the_reasons_for_an_empty_split_are_those_of_its_own_records(tree):
    five_images(tree).image(100, "val", "val2017")
    for split, wrong in (("train", "1"), ("val", None)):
        for image in tree.json[f"lvis_v1_{split}"]["images"]:
            image["id"] = wrong
    text = r"split train keeps none of its 5 images: (an image: its id is the text '1'[^:]*; ){3}\.\.\., and "
    with pytest.raises(DataError, match=text + r"split val keeps none of its 1 images: an image: its id is null; "):
        tree.build()
