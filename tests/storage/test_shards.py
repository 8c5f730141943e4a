"""Shards: they read back as written, in any process, and damaged ones are refused in one line."""

import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocolvis.errors import DataError
from cocolvis.masks import runlength
from cocolvis.masks.runlength import Runs
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.samples import Sample
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter


def make(image_id, mask, content=b"", neg=(), not_exhaustive=()):
    classes = {"neg": np.array(neg, np.uint16), "not_exhaustive": np.array(not_exhaustive, np.uint16)}
    return Sample(
        image_id=image_id, path=f"f/{image_id}.jpg", runs=Runs.of(np.array(mask, np.uint16)), content=content, **classes
    )


@pytest.fixture
def shard(tmp_path):
    """Three images: a small one, one without classes, and one of a single pixel."""
    path = tmp_path / "a.h5"
    with ShardWriter(path, {"split": "train", "vocabulary": "v"}) as writer:
        writer.add(make(5, [[1, 1, 0], [7, 7, 7]], b"jpeg", neg=[3, 9]))
        writer.add(make(2**40, np.zeros((4, 2)), not_exhaustive=[1284]))
        writer.add(make(0, [[1284]], b"\0\xff"))
    return path


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 40), width=st.integers(1, 40), classes=st.integers(1, 5))
def test_run_lengths_are_exact_and_minimal(seed, height, width, classes):
    rng = np.random.default_rng(seed)
    mask = rng.choice([0, 1, 255, 256, 1284], (height, width), p=None)[: height // classes + 1].astype(np.uint16)
    values, lengths = runlength.encode(mask)
    assert np.array_equal(runlength.decode(values, lengths, *mask.shape), mask)
    assert (values.dtype, lengths.dtype) == (np.uint16, np.uint16)
    assert lengths.min() > 0 and not (values[1:] == values[:-1]).any()
    present, pixels = runlength.pixel_counts(values, lengths)
    expected = {c: int((mask == c).sum()) for c in np.unique(mask).tolist() if c}
    assert dict(zip(present.tolist(), pixels.tolist(), strict=True)) == expected


@pytest.mark.parametrize("length", [1, 65534, 65535, 65536, 131070, 131071, 200_000])
def test_long_runs_are_stored_as_several(length):
    mask = np.concatenate([np.full(3, 9, np.uint16), np.full(length, 1284, np.uint16), np.zeros(2, np.uint16)])[None]
    values, lengths = runlength.encode(mask)
    assert lengths.tolist() == [3, *[65535] * ((length - 1) // 65535), (length - 1) % 65535 + 1, 2]
    assert np.array_equal(runlength.decode(values, lengths, *mask.shape), mask)
    assert runlength.pixel_counts(values, lengths)[1].tolist() == [3, length]


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 30), width=st.integers(1, 30), classes=st.integers(1, 4))
def test_the_runs_of_a_window_match_the_mask(seed, height, width, classes):
    rng = np.random.default_rng(seed)
    mask = rng.choice(np.array([0, 7, 1284, 65535], np.uint16)[:classes], (height, width))
    (top, bottom), (left, right) = (sorted(rng.choice(side + 1, 2, replace=False)) for side in mask.shape)
    values, lengths = Runs.of(mask).window(slice(top, bottom), slice(left, right))
    assert (values.dtype, lengths.dtype) == (np.uint16, np.int32)
    assert np.array_equal(np.repeat(values, lengths), mask[top:bottom, left:right].ravel())
    assert lengths.min() > 0 and not (values[1:] == values[:-1]).any()


def test_a_window_may_have_long_runs():
    mask = np.full((400, 500), 9, np.uint16)
    mask[399, 499] = 3
    assert [part.tolist() for part in Runs.of(mask).window(slice(0, 400), slice(0, 500))] == [[9, 3], [199_999, 1]]


def test_many_runs_fit():
    mask = np.arange(40_000, dtype=np.uint16).reshape(200, 200)
    values, lengths = runlength.encode(mask)
    assert len(values) == 40_000
    assert np.array_equal(runlength.decode(values, lengths, 200, 200), mask)


def test_a_shard_reads_back_as_written(shard):
    reader = ShardReader(shard)
    first, second, third = (reader.sample(row) for row in range(len(reader)))
    assert first.mask.tolist() == [[1, 1, 0], [7, 7, 7]] and first.mask.dtype == np.uint16
    assert (first.image_id, first.path, first.content) == (5, "f/5.jpg", b"jpeg")
    assert (first.neg.tolist(), first.not_exhaustive.tolist()) == ([3, 9], [])
    assert (second.image_id, second.mask.shape, second.mask.any(), second.content) == (2**40, (4, 2), False, b"")
    assert second.not_exhaustive.tolist() == [1284]
    assert (third.mask.tolist(), third.content) == ([[1284]], b"\0\xff")
    assert np.array_equal(reader.runs(0).mask(), first.mask)
    assert reader.image_ids().tolist() == [5, 2**40, 0]
    assert reader.sizes().tolist() == [[2, 3], [4, 2], [1, 1]]
    offsets, classes, pixels = reader.present()
    assert (offsets.tolist(), classes.tolist(), pixels.tolist()) == ([0, 2, 2, 3], [1, 7, 1284], [2, 3, 1])
    assert reader.attributes["split"] == "train"


def test_instances_read_back_as_written_and_are_optional(shard, tmp_path):
    with ShardWriter(tmp_path / "b.h5", {"split": "train"}, instances=True) as writer:
        for mask, instances in (([[9, 1, 0], [7, 7, 7]], {7: 2**27, 1: 3, 500: 4}), (np.zeros((2, 2)), {5: 1}), ([[1284]], {})):
            writer.add(replace(make(5, mask), instances=instances))
    reader = ShardReader(tmp_path / "b.h5")
    of_images = [{1: 3, 7: 2**27, 9: 0}, {}, {1284: 0}]
    assert [reader.instances_of(row) for row in range(3)] == [reader.sample(row).instances for row in range(3)] == of_images
    assert reader.instances().tolist() == [3, 2**27, 0, 0] and reader.instances().dtype == np.uint32
    reader = ShardReader(shard)
    assert not reader.has_instances and reader.instances() is reader.instances_of(0) is reader.sample(0).instances is None


def test_nothing_is_stored_in_the_heap_without_checksums(shard):
    with h5py.File(shard) as file:
        assert {name: file.attrs.get_id(name).dtype.kind for name in file.attrs} == {
            "format": "S",
            "version": "i",
            "split": "S",
            "vocabulary": "S",
        }
    assert b"GCOL" not in shard.read_bytes()


def test_an_empty_shard_and_one_after_an_exception(tmp_path):
    with ShardWriter(tmp_path / "empty.h5", {}):
        pass
    assert len(ShardReader(tmp_path / "empty.h5")) == 0
    with pytest.raises(KeyError), ShardWriter(tmp_path / "broken.h5", {}) as writer:
        writer.add(make(1, [[1]]))
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["empty.h5"]


def replaced(data, path, values):
    del data[path]
    data[path] = values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.attrs.__setitem__("version", 1), "format and version are"),
        (lambda f: f.__delitem__("mask/class"), "not a readable shard"),
        (lambda f: replaced(f, "id", np.zeros(3, np.int32)), r"/id is int32 \(3,\), expected int64"),
        (lambda f: replaced(f, "size", np.zeros((2, 2), np.uint32)), r"/size is .*expected uint32 \(3, 2\)"),
        (lambda f: replaced(f, "neg/offsets", np.zeros(9, np.uint64)), r"/neg/offsets is"),
        (lambda f: replaced(f, "mask/length", np.zeros(1, np.uint32)), r"/mask/length is .* expected uint16 \(5,\)"),
        (lambda f: replaced(f, "mask/offsets", np.array([0, 9, 2, 5], np.uint64)), "does not ascend"),
        (lambda f: replaced(f, "mask/offsets", np.array([1, 3, 4, 5], np.uint64)), "does not ascend from 0"),
    ],
)
def test_damaged_shards_are_refused(shard, damage, message):
    with h5py.File(shard, "r+") as file:
        damage(file)
    with pytest.raises(DataError, match=message) as error:
        ShardReader(shard)
    assert "\n" not in str(error.value) and str(shard) in str(error.value)


def test_files_that_are_not_shards_are_refused(shard, tmp_path):
    whole = shard.read_bytes()
    for content in (b"", b"hello", whole[:-100], whole[: len(whole) // 2]):
        shard.write_bytes(content)
        with pytest.raises(DataError, match=r"is not a readable shard: .*; `cocolvis verify`"):
            ShardReader(shard)
    with pytest.raises(DataError, match="does not exist"):
        ShardReader(tmp_path / "absent.h5")


def test_shards_that_point_at_other_files_are_refused(shard, tmp_path):
    def external(file):
        del file["image/bytes"]
        group = file["image"]
        group.create_dataset("bytes", (6,), "uint8", external=[(str(tmp_path / "secret"), 0, 6)])

    def virtual(file):
        del file["image/bytes"]
        layout = h5py.VirtualLayout((6,), "uint8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "data", (6,))
        file["image"].create_virtual_dataset("bytes", layout)

    def link(file):
        del file["image/bytes"]
        file["image/bytes"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "data")

    (tmp_path / "secret").write_bytes(b"secret")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["data"] = np.frombuffer(b"secret", np.uint8)
    original = shard.read_bytes()
    for damage in (external, virtual, link):
        shard.write_bytes(original)
        with h5py.File(shard, "r+") as file:
            damage(file)
        with pytest.raises(DataError, match="points at another file"):
            ShardReader(shard)


def test_shards_that_declare_terabytes_are_refused(shard):
    original = shard.read_bytes()
    with h5py.File(shard, "r+") as file:
        del file["id"]
        file.create_dataset("id", (2**40,), "int64", chunks=(2**20,))
    with pytest.raises(DataError, match="/id is stored in chunks, expected one contiguous block"):
        ShardReader(shard)
    shard.write_bytes(original)
    with h5py.File(shard, "r+") as file:
        replaced(file, "size", np.array([[2, 3], [2**31, 2**31], [1, 1]], np.uint32))
    with pytest.raises(DataError, match=f"image {2**40} of {2**31} x {2**31} is not in 1..{2**27} pixels"):
        ShardReader(shard)
    with pytest.raises(ValueError, match="are more than"):
        runlength.decode(np.ones(3, np.uint16), np.full(3, 2**30, np.uint32), 3 * 2**15, 2**15)


def test_runs_that_do_not_fill_the_mask_are_refused(shard):
    with h5py.File(shard, "r+") as file:
        file["mask/length"][0] = 1
    with pytest.raises(DataError, match=r"mask of image 5 \(f/5\.jpg\): runs cover 5 pixels, expected 2 x 3 = 6"):
        ShardReader(shard).sample(0)


@pytest.mark.parametrize(
    ("column", "read", "what"),
    [
        ("image/bytes", lambda reader: reader.sample(0), r"picture of image \d+ \(.*\): "),
        ("mask/length", lambda reader: reader.sample(0), r"mask of image \d+ \(.*\): "),
        ("image/bytes", lambda reader: reader.digest(0), r"image \d+ \(.*\): "),
        ("present/class", ShardReader.present, ""),
        ("digest", ShardReader.digests, ""),
    ],
)
def test_a_shard_that_is_cut_while_open_is_reported(sample, tmp_path, column, read, what):
    shard = Path(shutil.copy(sample.data / "shards" / "val-00000.h5", tmp_path))
    with h5py.File(shard, "r+") as file:
        file["last"] = file[column][()]
        del file[column]
        file.move("last", column)
        place = file[column].id.get_offset()
    reader = ShardReader(shard)
    read(reader)
    os.truncate(shard, place + 5)
    with pytest.raises(DataError, match=rf"val-00000\.h5: {what}the file has become shorter"):
        read(reader)


def test_a_reader_leaves_no_file_open(shard):
    before = os.listdir("/dev/fd")
    for _ in range(5):
        ShardReader(shard)
        ShardReader(shard).close()
    with pytest.raises(DataError):
        ShardReader(Path(__file__))
    assert os.listdir("/dev/fd") == before


def test_splits_are_sequences_that_pickle_and_fork(sample):
    split = Dataset.open(sample.data).split("train")
    whole = [one.image_id for one in split]
    assert whole == split.image_ids().tolist() and len(whole) == len(split) > 15
    assert split.sizes()[3].tolist() == list(split[3].mask.shape)
    copy = pickle.loads(pickle.dumps(split))
    assert np.array_equal(copy[16].mask, split[16].mask)
    for wrong in (-1, len(split)):
        with pytest.raises(IndexError):
            split[wrong]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(split[16].mask, copy.mask(16)) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_present_counts_every_image_of_a_split(sample):
    split = Dataset.open(sample.data).split("train")
    rows, classes, pixels = split.present()
    found = set(zip(rows.tolist(), classes.tolist(), pixels.tolist(), strict=True))
    expected = set()
    for row in range(len(split)):
        values, counts = np.unique(split.mask(row), return_counts=True)
        expected |= {(row, int(c), int(n)) for c, n in zip(values, counts, strict=True) if c}
    assert found == expected
