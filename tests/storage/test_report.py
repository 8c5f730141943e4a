"""Very long reports: dataset.json lists some of the faults, a file beside it holds all, and reasons have bounded length."""

import json
import os
import zipfile

import pytest
from disks import run
from trees import box, five_images
from victims import contents

from cocolvis.disk import archives
from cocolvis.disk.files import sha256
from cocolvis.errors import DataError
from cocolvis.faults import Fault
from cocolvis.inspection import oracle
from cocolvis.inspection.verify import verify
from cocolvis.storage import report
from cocolvis.storage.dataset import Dataset


def crowded(tree, count=1100):
    """Five images, of which one has ``count`` malformed annotations, and one fault of another kind."""
    five_images(tree)
    for _ in range(count):
        tree.thing(1, 5, [[1, 2, 3]])
    tree.thing(2, 2000, box(0, 0, 8, 8))
    return tree.build()


def test_a_long_report_is_abridged_in_dataset_json_and_complete_beside_it(tree):
    data = crowded(tree)
    recorded = data.index["report"]
    assert recorded["counts"] == {"malformed annotation": 1100, "unknown category": 1} and len(recorded["faults"]) == 1001
    lines = (data.folder / "faults.jsonl").read_text().splitlines()
    everything = [json.loads(line) for line in lines]
    assert len(lines) == 1101 and list(data.faults()) == everything
    assert [f for f in everything if f in recorded["faults"]] == recorded["faults"]
    assert verify(data) == [] and oracle.check(data, tree.coco, tree.lvis).skipped == 1101
    assert oracle.check(data, tree.coco, tree.lvis).faults() == []
    assert len(json.loads(run("info", data.folder, "--json"))["report"]["faults"]) == 1101
    assert f"... and 1097 more, listed in {data.folder / 'faults.jsonl'}" in run("info", data.folder)
    first = contents(data.folder)
    tree.build()
    assert contents(data.folder) == first
    for content in tree.json.values():
        content["annotations"] = []
    tree.build()
    assert sorted(contents(data.folder)) == ["dataset.json", "shards/train-00000.h5"]


HARMS = {
    "absent": (lambda path: path.unlink(), "does not exist"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder, a pipe or a device"),
    "a pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "is a folder, a pipe or a device"),
    "changed": (lambda path: path.write_bytes(path.read_bytes()[:-3] + b"?}\n"), "has SHA-256 "),
    "short": (lambda path: path.write_bytes(b""), "has 0 bytes, dataset.json says "),
}


def test_a_fault_file_that_is_not_as_recorded_is_reported_in_one_line(tree):
    path = crowded(tree).folder / "faults.jsonl"
    content = path.read_bytes()
    for harm, said in HARMS.values():
        harm(path)
        data = Dataset.open(path.parent)
        assert [fault for fault in verify(data) if said in fault and str(path) in fault]
        with pytest.raises(DataError, match=said):
            list(data.faults())
        run("info", path.parent)
        path.unlink(missing_ok=True) if not path.is_dir() else path.rmdir()
        path.write_bytes(content)


LINES = {
    "no JSON": (b"{\n", "line 1 is not a fault"),
    "no object": (b"5\n", "line 1 is not a fault"),
    "no reason": (b'{"kind": "a"}\n', "line 1 is not a fault"),
    "deep": (b"[" * 60000 + b"\n", "line 1 is not a fault"),
    "no UTF-8": (b'{"kind": "\xff"}\n', "line 1 is not a fault"),
    "no end": (b"{}", "line 1 does not end"),
    "endless": (b" " * 2**17 + b"\n", "line 1 does not end"),
    "another number": (b'{"kind":"a","source":"b","image_id":1,"annotation_id":null,"reason":"c"}\n', "holds 1 faults"),
}


@pytest.mark.parametrize("name", LINES)
def test_hostile_fault_files_are_refused(tmp_path, name):
    content, said = LINES[name]
    (tmp_path / "faults.jsonl").write_bytes(content)
    recorded = {"bytes": len(content), "sha256": sha256(tmp_path / "faults.jsonl")}
    with pytest.raises(DataError, match=said) as raised:
        list(report.read(tmp_path, {"counts": {"a": 2}, "faults": [], "file": recorded}))
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 1000


def test_a_fault_file_of_a_terabyte_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "find_damage", lambda folder, recorded: None)
    with (tmp_path / "faults.jsonl").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError, match="has 1099511627776 bytes; at most"):
        list(report.read(tmp_path, {"counts": {}, "faults": [], "file": {"bytes": 2**40, "sha256": "0" * 64}}))


def test_a_reason_is_one_printable_line_of_bounded_length():
    fault = Fault("malformed annotation", "lvis", 1, 2, "a\x1b[2J" + "b" * 10**6 + "\nc")
    assert fault.reason.isprintable() and len(fault.reason) == 300
    assert Fault(*fault) == fault and fault._replace(reason="x" * 999).kind == fault.kind


def test_a_damaged_zip_is_reported_in_words(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b"[" * 1000)
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.zip: a\.json: cannot be read: its bytes are damaged$"):
        archives.members(path)["a.json"].map()
