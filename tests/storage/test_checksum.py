"""Checksums of shards: they and the digests cover every byte, and no picture is hashed or copied twice; version 2 opens."""

import hashlib
import json
import tracemalloc

import h5py
import numpy as np
import pytest
from trees import five_images

from cocolvis.errors import DataError
from cocolvis.inspection.verify import verify
from cocolvis.masks.runlength import Runs
from cocolvis.storage import digest, shard_writer
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter

NONE = np.zeros(0, np.uint16)


def write(path, pictures):
    """Write a shard with these pictures; what the writer says about it."""
    writer = ShardWriter(path, {"split": "train"})
    for number, content in enumerate(pictures):
        runs = Runs.of(np.full((4, 5), number + 1, np.uint16))
        writer.add(Sample(image_id=number, path=f"{number}.jpg", runs=runs, content=content, neg=NONE, not_exhaustive=NONE))
    return writer.finish()


def as_version_2(data):
    """The data set with dataset.json as version 2 has it: a SHA-256 of each whole shard."""
    index = json.loads((data.folder / "dataset.json").read_text()) | {"version": 2}
    for entry in index["shards"]:
        del entry["checksum"]
        entry["sha256"] = hashlib.sha256((data.folder / entry["file"]).read_bytes()).hexdigest()
    (data.folder / "dataset.json").write_text(json.dumps(index))
    return Dataset.open(data.folder)


@pytest.mark.parametrize("version", [2, 3])
def test_any_wrong_byte_is_found(tree, version):
    data = five_images(tree).build()
    data = as_version_2(data) if version == 2 else data
    assert data.index["version"] == version and verify(data) == []
    (path,) = data.shard_paths("train")
    whole = path.read_bytes()
    with h5py.File(path) as file:
        first, size = file["image/bytes"].id.get_offset(), len(file["image/bytes"])
    edges = {first - 1, first, first + size - 1, len(whole) - 1}
    for place in sorted({*range(0, len(whole), 97), *edges}):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        assert verify(data), place
    for other in (whole[:-1], whole + b"\0", whole[:first] + whole[first + size :], b""):
        path.write_bytes(other)
        assert verify(data)


def test_a_data_set_of_version_2_has_the_same_contents_and_digest(sample, tmp_path):
    new = sample.rebuild(tmp_path / "data", shard_size=15)
    old = as_version_2(new)
    assert old.index["digest"] == new.index["digest"]
    for name in new.splits:
        for one, other in zip(old.split(name), new.split(name), strict=True):
            assert np.array_equal(one.mask, other.mask) and one.content == other.content != b""


@pytest.mark.parametrize(("version", "key"), [(2, "sha256"), (3, "checksum")])
def test_each_version_needs_its_own_checksum(tree, version, key):
    folder = as_version_2(five_images(tree).build()).folder
    index = json.loads((folder / "dataset.json").read_text()) | {"version": version}
    index["shards"][0] |= {"sha256": "0" * 64, "checksum": "0" * 64}
    (folder / "dataset.json").write_text(json.dumps(index))
    assert any(f"train-00000.h5: has {key} " in fault for fault in verify(Dataset.open(folder)))
    del index["shards"][0][key]
    (folder / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=rf"dataset\.json: shard shards/train-00000\.h5 has no {key}"):
        Dataset.open(folder)


def test_a_picture_is_hashed_once_and_never_copied(tmp_path, monkeypatch):
    hashed, sha256 = [], hashlib.sha256

    class Counted:
        def __init__(self, content=b""):
            self._real = sha256(content)
            hashed.append(len(content))

        def update(self, content):
            self._real.update(content)
            hashed.append(len(content))

        def __getattr__(self, name):
            return getattr(self._real, name)

    pictures = [bytes([number]) * 2**20 for number in range(8)]
    write(tmp_path / "first.h5", pictures[:1])  # compiling and importing need memory, too
    monkeypatch.setattr(hashlib, "sha256", Counted)
    tracemalloc.start()
    try:
        written = write(tmp_path / "a.h5", pictures)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, pictures)) < sum(hashed) < written["bytes"] + 2**16 and written["bytes"] < 8 * 2**20 + 2**14
    assert most < 2**19


@pytest.mark.parametrize("pictures", [[], [b""], [b"a"], [b"ab", b"", b"c" * 70_000]], ids=["none", "empty", "one", "some"])
def test_plain_h5py_reads_the_pictures_wherever_hdf5_places_them(tmp_path, monkeypatch, pictures):
    before = write(tmp_path / "last.h5", pictures)
    monkeypatch.setattr(shard_writer.h5py.File, "flush", lambda self: None)  # a table that HDF5 writes late is after them
    after = write(tmp_path / "inside.h5", pictures)
    for name, written in (("last.h5", before), ("inside.h5", after)):
        content = (tmp_path / name).read_bytes()
        with h5py.File(tmp_path / name) as file:
            assert file["image/bytes"][()].tobytes() == b"".join(pictures)
            place = file["image/bytes"].id.get_offset()
            assert all(h5py.h5g.get_objinfo(file[column].id).mtime == 0 for column in ("id", "image/bytes", "mask/class"))
        if any(pictures):
            assert content.endswith(b"".join(pictures)) == (name == "last.h5")
            assert content[place:].startswith(b"".join(pictures))
        assert written["bytes"] == len(content)
        assert written["checksum"] == ShardReader(tmp_path / name).checksum()


def test_the_digest_of_an_image_does_not_depend_on_how_fields_are_hashed():
    fields = [b"a", b"b" * 70_000, b"", bytearray(b"c" * 2**15), memoryview(b"d" * (2**15 - 1)), b"e"]
    whole = b"\0" + b"".join(len(field).to_bytes(8, "little") + bytes(field) for field in fields)
    assert digest.leaf(fields) == hashlib.sha256(whole).digest()
