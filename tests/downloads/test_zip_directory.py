"""The central directory of a zip: broken ones are refused, 64-bit ones are accepted."""

import re
import zipfile

import pytest
from archive_server import STUFF, message

from cocolvis.downloads import zip_directory


def directory_at(content):
    """The offsets of the end record and of the directory of a small archive."""
    end = content.rindex(b"PK\5\6")
    return end, int.from_bytes(content[end + 16 : end + 20], "little")


def moved(content, by):
    """The same archive with another offset of the directory in its end record."""
    end, start = directory_at(content)
    return content[: end + 16] + (start + by).to_bytes(4, "little") + content[end + 20 :]


def far(content):
    """The same archive with an offset of its member beyond the end of the file."""
    _, start = directory_at(content)
    return content[: start + 42] + (2**31).to_bytes(4, "little") + content[start + 46 :]


def more(content):
    """The same archive, declaring two members."""
    end, _ = directory_at(content)
    return content[: end + 10] + b"\2" + content[end + 11 :]


def zip64(content):
    """The same archive, declaring a 64-bit record that does not exist."""
    end, _ = directory_at(content)
    return content[: end + 16] + b"\xff" * 4 + content[end + 20 :]


BROKEN = {
    "no end": lambda content: content[:-22],
    "cut": lambda content: content[: len(content) // 2],
    "more behind": lambda content: content + bytes(100),
    "directory outside": lambda content: moved(content, 10**6),
    "directory elsewhere": lambda content: moved(content, -10),
    "member outside": far,
    "members missing": more,
    "no zip64": zip64,
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_does_not_get_its_final_name(site, stuff, name):
    site.files["/stuff_trainval2017.zip"] = BROKEN[name](STUFF)
    text = message(stuff)
    assert re.search("no central directory at its end|central directory (points outside|is damaged|lists 1)", text)
    assert not list(stuff.target.parent.iterdir())


def test_zip64_archives_are_accepted(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in "abc":
            file.writestr(name, bytes(200))
        file.comment = b"PK\5\6 is no end here"
    content = (tmp_path / "a.zip").read_bytes()
    end = content.index(b"PK\5\6")
    content = content[: end + 8] + b"\xff" * 12 + content[end + 20 :]  # as where they do not fit
    (tmp_path / "a.zip").write_bytes(content)
    assert zip_directory.fault(tmp_path / "a.zip") is None
    (tmp_path / "b.zip").write_bytes(content.replace(b"PK\6\6", b"PK\6\5"))
    assert "points outside" in zip_directory.fault(tmp_path / "b.zip")
