"""Exported masks, overlays with names, and the check of integrity."""

import json

import cv2
import h5py
import numpy as np
import pytest
from trees import five_images

from cocolvis.disk import lock
from cocolvis.errors import DataError
from cocolvis.inspection import export, render
from cocolvis.inspection.export import export_png
from cocolvis.inspection.render import colourise, enlarge, overlay, palette, side_by_side
from cocolvis.inspection.verify import verify
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.vocabulary import coco_lvis


def test_every_mask_is_exported_as_16_bit_png(sample, tmp_path):
    data = Dataset.open(sample.data)
    calls = []
    assert export_png(data, tmp_path, lambda *c: calls.append(c)) == 40
    assert calls[-1] == (40, 40)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"export.json"} == {
        f"{i:012d}.png" for name in data.splits for i in data.split(name).image_ids().tolist()
    }
    for name in data.splits:
        for row, image_id in enumerate(data.split(name).image_ids().tolist()):
            mask = cv2.imread(str(tmp_path / name / f"{image_id:012d}.png"), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint16 and np.array_equal(mask, data.split(name).mask(row))
    assert max(int(data.split(name).mask(0).max()) for name in data.splits) > 255


def test_an_unlabelled_image_is_exported_and_a_blocked_folder_is_reported(tree, tmp_path):
    tree.image(1)
    data = tree.build()
    export_png(data, tmp_path / "out")
    assert not cv2.imread(str(tmp_path / "out" / "train" / "000000000001.png"), cv2.IMREAD_UNCHANGED).any()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        export_png(data, tmp_path / "file")


def masks(folder):
    """The bytes of every mask by its path below the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_workers_write_the_same_files_and_the_record_is_written_first(sample, tmp_path, monkeypatch):
    data, synced = Dataset.open(sample.data), []
    export_png(data, tmp_path / "one")
    monkeypatch.setattr(export, "sync_disk", lambda folder: synced.append((folder, len(masks(folder)))))
    monkeypatch.setattr("cocolvis.disk.files._sync", lambda path: lock.is_lock(path) or synced.append(path.name.split(".")[1]))
    assert export_png(data, tmp_path / "three", workers=3) == 40
    assert masks(tmp_path / "one") == masks(tmp_path / "three")
    assert synced == ["export", (tmp_path / "three", 40)]  # nothing else is synced on its own
    record = json.loads((tmp_path / "three" / "export.json").read_text())
    assert record == {"digest": data.index["digest"], "splits": ["train", "val"], "format": "png"}


def test_one_export_at_a_time_writes_to_a_folder(sample, tmp_path):
    data, out = Dataset.open(sample.data), tmp_path / "out"
    with lock.held(out, None, print, "an export"):
        for how in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(DataError, match=r"an export \(process \d+ on .*\) is running there; wait until it ends"):
                export_png(data, out, **how)
        assert all(lock.is_lock(path) for path in out.iterdir())
    assert export_png(data, out) == 40 and not any(lock.is_lock(path) for path in out.iterdir())


def test_an_export_whose_folder_was_taken_over_writes_and_removes_nothing_more(sample, tree, tmp_path):
    data, out = Dataset.open(sample.data), tmp_path / "out"

    def lost(done, total):
        if done == 5:
            next(out.glob(".build-*.lock")).unlink()

    with pytest.raises(lock.LockLost):
        export_png(data, out, lost)
    assert 5 <= len(masks(out)) < 40 and not list(out.rglob(".*.tmp"))
    before, other = masks(out), five_images(tree).build()
    with lock.held(out, None, print) as lease:
        lost(5, 40)
        with pytest.raises(lock.LockLost):
            export._begin(other, out, resume=False, overwrite=True, lease=lease)
    assert masks(out) == before


def interrupted(data, out, after):
    def stop(done, total):
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_png(data, out, stop, workers=2)


def test_resuming_an_export_keeps_only_intact_masks(sample, tmp_path):
    data, out = Dataset.open(sample.data), tmp_path / "out"
    export_png(data, tmp_path / "whole")
    interrupted(data, out, 20)
    there = sorted(out.rglob("*.png"))
    assert 20 <= len(there) < 40 and not list(out.rglob(".*.tmp"))
    there[0].write_bytes(b"")  # as a power cut can leave them
    there[1].write_bytes(there[1].read_bytes()[:-20])
    zeros = bytearray(there[2].read_bytes())
    zeros[60:80] = bytes(20)
    there[2].write_bytes(zeros)
    there[3].write_bytes(cv2.imencode(".png", np.zeros((3, 3), np.uint16))[1])
    there[4].unlink()
    (there[5].parent / f".{there[5].name}.{'0' * 12}.tmp").write_bytes(b"half")
    kept = {path: path.stat().st_ino for path in there[5:]}
    calls = []
    assert export_png(data, out, lambda *call: calls.append(call), workers=2, resume=True) == 40
    assert masks(out) == masks(tmp_path / "whole") and not list(out.rglob(".*.tmp"))
    assert {path: path.stat().st_ino for path in there[5:]} == kept and calls[-1] == (40, 40)


@pytest.mark.parametrize("how", [{}, {"resume": True}])
@pytest.mark.parametrize("left", ["another", "unknown", "damaged", "folder"])
def test_masks_of_another_data_set_are_only_replaced_with_overwrite(sample, tree, tmp_path, how, left):
    other, data, out = five_images(tree).build(), Dataset.open(sample.data), tmp_path / "out"
    export_png(data, out)
    (out / "train" / "notes.png").write_text("mine")
    if left != "another":
        (out / "export.json").unlink()
    if left == "damaged":
        (out / "export.json").write_text('{"digest": 1, "splits": ["../.."]}')
    if left == "folder":
        (out / "export.json").mkdir()
    before = masks(out)
    with pytest.raises(DataError, match="--overwrite"):
        export_png(other, out, **how)
    assert masks(out) == before
    if left == "folder":
        return
    export_png(other, out, overwrite=True, **how)
    export_png(other, tmp_path / "fresh")
    assert masks(out) == masks(tmp_path / "fresh") | {"train/notes.png": b"mine"}
    export_png(other, out)  # exporting the same data set again needs no option
    assert masks(out).items() >= masks(tmp_path / "fresh").items()


def test_an_interrupted_overwrite_never_passes_old_masks_for_new_ones(sample, tree, tmp_path, monkeypatch):
    other, data, out = five_images(tree).build(), Dataset.open(sample.data), tmp_path / "out"
    export_png(data, out)

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(export, "write_json", fail)
        export_png(other, out, overwrite=True)
    assert masks(out) == {}


def test_colours_are_distinct_stable_and_black_means_unlabelled():
    colours = palette(1284)
    assert (colours.shape, colours.dtype, colours[0].tolist()) == ((1285, 3), np.uint8, [0, 0, 0])
    assert len(np.unique(colours, axis=0)) == 1285
    assert np.array_equal(palette(150), colours[:151])
    neighbours = np.abs(np.diff(colours[1:].astype(int), axis=0)).sum(axis=1)
    assert neighbours.min() > 40
    assert colourise(np.array([[0, 1284]], np.uint16)).tolist() == [[[0, 0, 0], colours[1284].tolist()]]
    assert colourise(np.array([[2000]])).shape == (1, 1, 3)
    with pytest.raises(ValueError, match="read-only"):
        colours[3] = 0


def test_overlays_keep_size_and_unlabelled_pixels_and_write_names():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (427, 640, 3), dtype=np.uint8)
    mask = np.zeros((427, 640), np.uint16)
    mask[100:300, 200:500] = 1271
    before = image.copy()
    picture = overlay(image, mask, coco_lvis())
    assert picture.shape == image.shape and picture.dtype == np.uint8 and np.array_equal(image, before)
    outside = np.ones(mask.shape, bool)
    outside[98:302, 198:502] = False
    assert np.array_equal(picture[outside], image[outside])
    other = overlay(image, mask, [*map(str, range(1271)), "another"])
    changed = np.argwhere((picture != other).any(axis=2))
    assert 100 < len(changed) < 4000
    assert changed.min(axis=0)[0] >= 180 and changed.max(axis=0)[0] <= 220
    assert np.array_equal(overlay(image, np.zeros_like(mask), coco_lvis()), image)


def test_names_neither_overlap_nor_leave_the_picture(monkeypatch):
    placed = []
    write = render._write

    def watched(picture, name, centre, taken):
        write(picture, name, centre, taken)
        placed[:] = taken

    monkeypatch.setattr(render, "_write", watched)
    mask = np.repeat(np.arange(1, 31, dtype=np.uint16), 4)[:, None] * np.ones((1, 160), np.uint16)
    overlay(np.zeros((*mask.shape, 3), np.uint8), mask, coco_lvis())
    assert 4 <= len(placed) < 12
    for index, (left, top, right, bottom) in enumerate(placed):
        assert left >= 0 and top >= 0 and right <= mask.shape[1] and bottom <= mask.shape[0]
        for l2, t2, r2, b2 in placed[:index]:
            assert right <= l2 or r2 <= left or bottom <= t2 or b2 <= top


def test_small_pictures_are_enlarged(sample):
    one = Dataset.open(sample.data).split("train")[0]
    image, mask = enlarge(one.image(), one.mask)
    factor = mask.shape[0] // one.mask.shape[0]
    assert factor > 1 and min(mask.shape) > 300
    assert np.array_equal(mask[::factor, ::factor], one.mask) and image.shape[:2] == mask.shape
    large = np.zeros((480, 640), np.uint16)
    assert enlarge(np.zeros((480, 640, 3), np.uint8), large)[1] is large
    row = side_by_side(one.image(), one.mask, coco_lvis())
    assert row.shape == (mask.shape[0], 3 * mask.shape[1] + 16, 3)
    assert np.array_equal(row[:, mask.shape[1] + 8 : 2 * mask.shape[1] + 8], colourise(mask))


@pytest.fixture
def data(tree):
    return five_images(tree).build(shard_size=2)


def test_an_intact_data_set_verifies(sample, data):
    calls = []
    assert verify(Dataset.open(sample.data), lambda *c: calls.append(c)) == []
    size = sum(path.stat().st_size for path in (sample.data / "shards").iterdir())
    assert calls == sorted(calls) and len({*calls}) > 40 and (calls[0], calls[-1]) == ((0, size), (size, size))
    assert verify(data) == []


def test_a_flipped_bit_a_cut_and_a_lost_shard_are_found(data):
    first, second, third = data.shard_paths("train")
    content = bytearray(first.read_bytes())
    content[-1] ^= 1
    first.write_bytes(content)
    second.write_bytes(second.read_bytes()[:-9])
    third.unlink()
    found = verify(data)
    expected = [
        (first, "image 2 has the digest"),
        (second, "bytes, dataset.json says"),
        (second, "not a readable shard"),
        (third, "not exist"),
    ]
    for path, reason in expected:
        assert any(line.startswith(f"{path}: ") and reason in line for line in found)
    assert all(len(line.splitlines()) == 1 for line in found)


def rewritten(data, change):
    """Change a shard and record its new size and checksum, so that only its content is wrong; return what verify finds."""
    path = data.shard_paths("train")[0]
    with h5py.File(path, "r+") as file:
        change(file)
    data.index["shards"][0] |= {"checksum": ShardReader(path).checksum(), "bytes": path.stat().st_size}
    return verify(data)


def test_contents_that_contradict_the_index_are_found(data):
    twice = rewritten(data, lambda file: file["id"].__setitem__(0, 5))
    assert "split train: 1 image ids occur more than once, the first: 5" in twice and "image 5 has the digest" in twice[0]
    assert "holds classes 1..9999" in rewritten(data, lambda file: file["present/class"].__setitem__(-1, 9999))[0]
    assert (
        "its split is 'val', dataset.json says 'train'"
        in rewritten(data, lambda file: file.attrs.__setitem__("split", np.bytes_("val")))[0]
    )
    data.index["shards"][0]["images"] = 3
    found = verify(data)
    assert any("holds 2 images, dataset.json says 3" in line for line in found)
    assert any(
        "split train is {'images': 5, 'shards': 3}, its shards have {'images': 6, 'shards': 3}" in line for line in found
    )
