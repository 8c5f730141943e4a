"""Downloading the official archives: what is fetched, checked and recorded, and what is refused."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import zipfile
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from archive_server import CONTENT, QUICK, SIZE, STUFF, archive, begun, message, whole
from click.testing import CliRunner

from cli.cocolvis import main
from cocolvis.downloads import official
from cocolvis.downloads.official import ARCHIVES, Record, download, plan
from cocolvis.errors import DataError


def test_the_official_files():
    assert {entry.name: entry.size for entry in ARCHIVES if entry.exact} == {
        "train2017": 19_336_861_798,
        "val2017": 815_585_330,
        "lvis-train": 350_264_821,
        "lvis-val": 64_026_968,
    }
    assert all(entry.url.endswith(entry.file.rpartition("/")[2]) for entry in ARCHIVES)
    choice = next(option for option in main.commands["download"].params if option.name == "names").type
    assert sorted(choice.choices) == sorted(entry.name for entry in ARCHIVES)


def test_all_archives_are_fetched_once_and_recorded(site, tmp_path):
    out, shown = tmp_path / "new" / "data", []
    records = download(out, mirror=f"{site.url}/", progress=lambda *now: shown.append(now), policy=QUICK)
    assert [record.name for record in records] == [entry.name for entry in ARCHIVES]
    for record in records:
        content = CONTENT[record.name]
        assert (out / record.file).read_bytes() == content
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert record.url == f"{site.url}/{record.file.rpartition('/')[2]}"
    recorded = json.loads((out / "downloads.json").read_text())["files"]
    assert [Record(**record) for record in recorded] == records
    assert len(site.asked) == 5 and not list(out.rglob("*.part*"))
    total = sum(map(len, CONTENT.values()))
    assert shown[0] == (0, total + 40_000 - SIZE) and shown[-1] == (total, total)
    lines = []
    assert download(out, mirror=site.url, announce=lines.append) == records
    assert len(site.asked) == 5 and lines == []  # nothing is hashed again either


def test_an_impossible_folder_is_one_line(site, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / ("x" * 300), tmp_path / "file", tmp_path / "file" / "below"):
        assert official.free_bytes(out) > 0
        with pytest.raises(DataError, match=r": cannot be (written|read): (File name too long|Not a directory|File exists)$"):
            download(out, ["val2017"], site.url, policy=QUICK)


def test_a_folder_in_the_place_of_an_archive_is_one_line(site, tmp_path):
    (tmp_path / "coco" / "stuff_trainval2017.zip").mkdir(parents=True)
    with pytest.raises(DataError, match=r"stuff_trainval2017\.zip: is a folder, a pipe or a device; expected a file"):
        plan(tmp_path)


def test_only_named_archives_are_fetched_and_added_to_the_record(site, stuff, tmp_path):
    stuff()
    download(tmp_path, ["lvis-val"], site.url, policy=QUICK)
    assert [request.path for request in site.asked] == ["/stuff_trainval2017.zip", "/lvis_v1_val.json.zip"]
    assert [job.state for job in plan(tmp_path)] == ["finished", "", "finished", "", ""]
    assert [job.left for job in plan(tmp_path)] == [0, len(CONTENT["lvis-train"]), 0, *map(len, list(CONTENT.values())[3:])]


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host/x", "host/x", "http://", "http://a b", "http://h/é"])
def test_a_mirror_is_a_web_address(tmp_path, mirror):
    assert f"--mirror {mirror}: is not a web address" in message(plan, tmp_path, mirror=mirror)


def test_a_finished_archive_of_another_size_than_recorded_is_refused(site, stuff, tmp_path):
    stuff()
    stuff.target.write_bytes(STUFF[:-1])
    text = message(stuff)
    assert text.startswith(f"{stuff.target}: has {SIZE - 1:,} bytes, but downloads.json records {SIZE:,}; remove it and fetch")
    assert text.endswith(f"`cocolvis download --out {tmp_path} --only stuff --mirror {site.url}`")
    assert len(site.asked) == 1
    stuff.target.unlink()
    stuff()
    assert whole(stuff)


def test_archives_that_the_user_put_there_are_checked_and_recorded(site, stuff, tmp_path):
    stuff.target.parent.mkdir()
    stuff.target.write_bytes(STUFF)
    assert [(job.state, job.left) for job in plan(tmp_path, ["stuff"])] == [("there", 0)]
    assert stuff()[0].sha256 == hashlib.sha256(STUFF).hexdigest() and site.asked == []
    assert plan(tmp_path, ["stuff"])[0].finished
    (tmp_path / "downloads.json").unlink()
    stuff.target.write_bytes(STUFF[:-30])
    text = message(stuff)
    assert "not a zip archive: it has no central" in text and "remove it and fetch it again" in text and stuff.target.exists()
    with zipfile.ZipFile(stuff.target, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("stuff_train2017.json", "{}")
    text = message(stuff)
    assert (
        "its member stuff_train2017.json is packed with LZMA, which is not supported; pack the file again with Deflate" in text
    )
    (tmp_path / "coco/val2017.zip").write_bytes(b"short")
    assert "has 5 bytes, but the published file has" in message(plan, tmp_path)


def test_different_content_than_last_time_is_reported(site, stuff):
    stuff()
    stuff.target.unlink()
    site.files["/stuff_trainval2017.zip"] = archive("new")
    lines = []
    stuff(announce=lines.append)
    assert f"an earlier download had {hashlib.sha256(STUFF).hexdigest()}" in lines[-1]


def test_a_kill_between_the_record_and_the_final_name_loses_nothing(site, stuff, monkeypatch):
    def crash(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(official.os, "replace", lambda old, new: crash() if str(old).endswith(".part") else os.rename(old, new))
    with pytest.raises(KeyboardInterrupt):
        stuff()
    assert not stuff.target.exists() and stuff.part.read_bytes() == STUFF
    monkeypatch.undo()
    stuff(mirror=site.url)
    assert stuff.target.read_bytes() == STUFF and len(site.asked) == 1


def test_an_archive_is_synced_before_it_gets_its_final_name(stuff, monkeypatch):
    done = []
    monkeypatch.setattr("cocolvis.disk.files.write_aside", None)  # its syncs do not count
    monkeypatch.setattr(official, "write_json", lambda path, content: None)
    monkeypatch.setattr("cocolvis.downloads.transfer.write_json", lambda path, content: path.write_text(json.dumps(content)))
    for name, action in (("fsync", os.fsync), ("replace", os.replace)):
        monkeypatch.setattr(os, name, lambda *a, name=name, action=action: (done.append(name), action(*a)))
    monkeypatch.setattr(official, "sync_folder", lambda folder: done.append(folder))
    stuff()
    assert done == ["fsync", "replace", stuff.target.parent]


@pytest.mark.parametrize("content", ["{}", '{"files": [{"name": 1}]}', "[", '{"files": 3}'])
def test_a_malformed_record_is_refused(tmp_path, content):
    (tmp_path / "downloads.json").write_text(content)
    assert str(tmp_path / "downloads.json") in message(plan, tmp_path)


def test_a_second_download_into_the_same_folder_is_refused(site, stuff, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "another download is running there" in message(stuff)
    os.close(handle)
    stuff()
    stuff.target.unlink()
    stuff()
    assert whole(stuff)


def test_folders_that_cannot_be_written_are_refused(site, tmp_path):
    (tmp_path / "coco").write_text("")
    text = message(download, tmp_path, ["stuff"], site.url, policy=QUICK)
    assert "cannot be written" in text and text.endswith("`")
    assert "cannot be written" in message(download, tmp_path / "coco", ["stuff"], site.url, policy=QUICK)


@pytest.mark.linux
def test_a_full_disk_is_reported(site, stuff):
    begun(site, stuff)
    stuff.part.unlink()
    stuff.part.symlink_to("/dev/full")
    assert "No space left on device; continue with" in message(stuff) and len(site.asked) == 1


@contextmanager
def room(monkeypatch, size):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
        yield


def test_a_disk_that_is_too_small_is_refused(site, stuff, tmp_path, monkeypatch):
    begun(site, stuff)
    arguments = ["download", "--out", str(tmp_path), "--mirror", site.url, "--only", "stuff", "--yes"]
    with room(monkeypatch, SIZE - 1001):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1 and "total" in result.stderr
        assert re.search(r"Error: .*\d kB are left to fetch and the disk has [0-9.]+ kB free; make room", result.stderr)
        assert "make room" in CliRunner().invoke(main, arguments[:-1]).stderr  # before it asks
        assert "make room" in message(stuff) and site.asked == []
    with room(monkeypatch, SIZE - 1000):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    with room(monkeypatch, 0):
        assert stuff()
