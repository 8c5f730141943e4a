"""Files that are written: any name that a file may have is possible, and impossible places are refused before any work."""

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from cocolvis.disk import files
from cocolvis.disk.files import (
    LONGEST_NAME,
    Unwritable,
    check_figure,
    check_writable,
    create_json,
    pretty,
    write_aside,
    write_json,
)
from cocolvis.errors import DataError

LONG = ["x" * LONGEST_NAME, "x" * 250 + ".json", "\u0436" * 127, "\u6f22" * 80 + ".png"]


@pytest.mark.parametrize("name", LONG)
def test_names_may_be_as_long_as_file_systems_accept(name, tmp_path):
    check_writable(tmp_path / name)
    with write_aside(tmp_path / name) as aside:
        assert len(os.fsencode(aside.name)) <= LONGEST_NAME
        aside.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize("write", [check_writable, check_figure, lambda path: write_aside(path).__enter__()])
@pytest.mark.parametrize("path", ["", ".", "..", "/", "folder/.."])
def test_what_cannot_be_the_name_of_a_file_is_refused(path, write, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Unwritable, match=r": cannot be written: it is a folder; expected the name of a file$"):
        write(Path(path))


def test_places_that_cannot_be_written_are_found_without_writing(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    check_writable(tmp_path / "file")
    check_writable(tmp_path / "new" / "deep" / "file")
    for path, reason in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "below", "file is not a directory"),
        (tmp_path / ("x" * 256), "a name has more than 255 bytes"),
        (tmp_path / ("x" * 256) / "file", "a name has more than 255 bytes"),
    ):
        with pytest.raises(Unwritable, match=reason):
            check_writable(path)
        with pytest.raises(Unwritable), write_aside(path):
            pass
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(Unwritable, match="is read-only, or belongs to another user"):
        check_writable(tmp_path / "new" / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "fine"), [("EINVAL", True), ("EBADF", True), ("ENOTSUP", True), ("EIO", False)])
def test_a_file_system_need_not_sync_folders(name, fine, tmp_path, monkeypatch):
    sync, synced = os.fsync, []

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
        synced.append(sync(handle))

    monkeypatch.setattr("cocolvis.disk.files.os.fsync", fsync)
    for write in (write_json, create_json):
        path = tmp_path / f"{write.__name__}.json"
        if fine:
            write(path, [1])
        else:
            with pytest.raises(Unwritable, match="Input/output error"):
                write(path, [1])
        assert path.exists()
    assert len(synced) == 2


def test_a_figure_needs_a_known_format(tmp_path):
    for name in ("a.png", "a.PDF", "a"):
        check_figure(tmp_path / name)
    with pytest.raises(DataError, match=r"no format is named '\.xyz'; expected .*pdf, .*png, .*svg"):
        check_figure(tmp_path / "a.xyz")


def without_links(*_):
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_hard_links_too_a_file_has_its_name_once_it_is_whole(tmp_path, monkeypatch):
    path, sync, seen = tmp_path / "plan.json", os.fsync, []

    def fsync(handle):
        seen.append(path.read_text() if path.exists() else None)
        sync(handle)

    monkeypatch.setattr("cocolvis.disk.files.os.link", without_links)
    monkeypatch.setattr("cocolvis.disk.files.os.fsync", fsync)
    assert create_json(path, [1]) and not create_json(path, [2])
    assert seen == [None, "[\n 1\n]\n", "[\n 1\n]\n"] and [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_without_hard_links_what_a_killed_process_has_claimed_is_free_again(tmp_path, monkeypatch):
    waits, claim = [], tmp_path / ".plan.json.000000000000.tmp"
    monkeypatch.setattr("cocolvis.disk.files.os.link", without_links)
    monkeypatch.setattr("cocolvis.disk.files.time.sleep", waits.append)
    claim.touch()
    assert create_json(tmp_path / "plan.json", [1])
    assert sum(waits) == pytest.approx(10) and [file.name for file in tmp_path.iterdir()] == ["plan.json"]
    claim.touch()
    files.sweep(tmp_path)
    assert not claim.exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"empty": [{}, []], "number": 1e16, "other": [-0.0, 10**30, 1.5e-300, None, True]},
        {"text": 'é\n"\\\u2028\x7f\x00'},
        {"not UTF-8": "\udcff", "\ud800": 1},
        [float("nan"), -float("inf")],
    ],
)
def test_json_is_indented_as_python_does_it(content):
    expected = json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    assert pretty(content) == expected
