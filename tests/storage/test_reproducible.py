"""The same input and options give the same bytes, however the work is done; and one digest identifies the content."""

import fcntl
import hashlib
import json
import multiprocessing
import random
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from trees import Tree, box, five_images
from victims import contents

from cli.cocolvis import main
from cocolvis.building import executors
from cocolvis.building.build import Mode, join
from cocolvis.inspection.verify import verify
from cocolvis.storage import digest, shard_writer
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader

SHARDS = 20


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory) -> dict[str, bytes]:
    """The contents of the sample's data set in 20 shards, built in this process and in order."""
    out = tmp_path_factory.mktemp("whole") / "data"
    sample.rebuild(out, shard_size=2)
    assert len(list((out / "shards").iterdir())) == SHARDS
    return contents(out)


def test_three_workers_write_the_same_bytes_as_one(sample, whole, tmp_path):
    sample.rebuild(tmp_path / "data", shard_size=2, workers=3)
    assert contents(tmp_path / "data") == whole


def test_two_forked_workers_write_the_same_bytes(sample, whole, tmp_path, monkeypatch):
    forkserver = multiprocessing.get_context("forkserver")
    monkeypatch.setattr(executors, "get_context", lambda name: forkserver)
    sample.rebuild(tmp_path / "data", shard_size=2, workers=2)
    assert contents(tmp_path / "data") == whole


def executor_in_order(order):
    """A replacement for ``executors.processes`` that waits for all tasks and then runs them in another order."""

    @contextmanager
    def processes(count):
        waiting = []

        def work():
            for number in order(list(range(SHARDS))):
                future, arguments = waiting[number]
                try:
                    future.set_result(executors.run_shard(*arguments))
                except BaseException as error:  # the build would wait for it forever
                    future.set_exception(error)

        def submit(*arguments):
            waiting.append((Future(), arguments))
            if len(waiting) == SHARDS:
                threading.Thread(target=work).start()
            return waiting[-1][0]

        yield executors.Workers(submit, lambda: SHARDS)

    return processes


def shuffled(numbers):
    random.Random(4).shuffle(numbers)
    return numbers


@pytest.mark.parametrize("order", [reversed, shuffled])
def test_any_order_of_the_work_gives_the_same_bytes(sample, whole, tmp_path, monkeypatch, order):
    monkeypatch.setattr(executors, "processes", executor_in_order(order))
    sample.rebuild(tmp_path / "data", shard_size=2, workers=2)
    assert contents(tmp_path / "data") == whole


def test_a_profiler_changes_nothing(sample, whole, tmp_path):
    """A profiler, such as that of a dask worker, keeps local variables alive; the bytes must not depend on their lifetime."""
    ended = threading.Event()

    def look():
        seen = deque(maxlen=30)
        while not ended.wait(0.0001):
            seen.append(sys._current_frames())

    onlooker = threading.Thread(target=look)
    onlooker.start()
    try:
        sample.rebuild(tmp_path / "data", shard_size=2)
    finally:
        ended.set()
        onlooker.join()
    assert contents(tmp_path / "data") == whole


def interruption(calls):
    """A progress callback that raises KeyboardInterrupt after ``calls`` calls."""
    left = iter(range(calls))

    def progress(done, total):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("turns", [(10, 6, 16), (2, 38)])
def test_interruptions_leave_no_trace(sample, whole, tmp_path, turns):
    for turn in turns:
        with pytest.raises(KeyboardInterrupt):
            sample.rebuild(tmp_path / "data", shard_size=2, mode=Mode.RESUME, progress=interruption(turn))
    sample.rebuild(tmp_path / "data", shard_size=2, mode=Mode.RESUME)
    assert contents(tmp_path / "data") == whole


def part_command(sample, out, part):
    command = ["build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", out, "--shard-size", 2, "--workers", 1]
    return [str(word) for word in [*command, "--shard", part]]


def test_parts_in_any_order_give_the_same_bytes(sample, whole, tmp_path):
    out = tmp_path / "data"
    for number in (1, 3, 2):
        early = CliRunner().invoke(main, ["join", str(out)])
        assert early.exit_code == 1 and len(early.output.splitlines()) == 1
        done = CliRunner().invoke(main, part_command(sample, out, f"{number}/3"))
        assert (done.exit_code, f"cocolvis join {out}" in done.stdout) == (0, True)
    assert early.output.startswith(f"Error: {out}: 7 of 20 shards are missing or damaged: train-00001, train-00004, ")
    (out / "shards" / ".train-00000.h5.0123456789ab.tmp").touch()
    assert CliRunner().invoke(main, ["join", str(out)]).exit_code == 0
    assert contents(out) == whole
    join(out)
    assert contents(out) == whole


def test_parts_built_at_the_same_time_give_the_same_bytes(sample, whole, tmp_path):
    commands = [[sys.executable, "-m", "cli.cocolvis", *part_command(sample, tmp_path / "data", f"{i}/3")] for i in (1, 2, 3)]
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for command in commands]
    assert [(process.communicate()[1][-500:], process.returncode)[1] for process in running] == [0, 0, 0]
    join(tmp_path / "data")
    assert contents(tmp_path / "data") == whole


def digest_of(folder):
    return Dataset.open(folder).index["digest"]


def test_the_digest_does_not_depend_on_shards_or_workers(sample, tmp_path):
    expected = digest_of(sample.data)
    for number, settings in enumerate(({"shard_size": 1}, {"shard_size": 7, "workers": 2}, {"shard_size": 1000})):
        assert sample.rebuild(tmp_path / str(number), **settings).index["digest"] == expected


def test_the_digest_does_not_depend_on_the_bytes_of_the_file(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(shard_writer.np, "bytes_", lambda text, bytes_=shard_writer.np.bytes_: bytes_(text + b"\0" * 9))
    data = sample.rebuild(tmp_path / "data", shard_size=15)
    assert data.index["shards"][0]["bytes"] != Dataset.open(sample.data).index["shards"][0]["bytes"]
    assert (data.index["digest"], verify(data)) == (digest_of(sample.data), [])


def pixel(tree):
    tree.thing(1, 700, box(7, 7, 1, 1))


def image_id(tree):
    for name in ("lvis_v1_train", "stuff_train2017"):
        for record in tree.json[name]["images"]:
            record["id"] += 100 * (record["id"] == 5)
        for record in tree.json[name]["annotations"]:
            record["image_id"] += 100 * (record["image_id"] == 5)


def jpeg_byte(tree):
    content = bytearray(tree.picture(2).read_bytes())
    content[-3] ^= 1
    tree.picture(2).write_bytes(content)


def neg(tree):
    tree.json["lvis_v1_train"]["images"][2]["neg_category_ids"] = [11]


def not_exhaustive(tree):
    tree.json["lvis_v1_train"]["images"][2]["not_exhaustive_category_ids"] = [11]


def path(tree):
    for name in ("lvis_v1_train", "stuff_train2017"):
        record = tree.json[name]["images"][3]
        record["coco_url"] = record["coco_url"].replace("0004.jpg", "0004.jpeg")
    tree.picture(4).rename(tree.picture(4).with_suffix(".jpeg"))


def order(tree):
    images = tree.json["lvis_v1_train"]["images"]
    images[0], images[1] = images[1], images[0]


def split(tree):
    tree.json["lvis_v1_val"], tree.json["lvis_v1_train"] = tree.json["lvis_v1_train"], tree.json["lvis_v1_val"]


def one_less(tree):
    tree.json["lvis_v1_train"]["images"].pop()


CHANGES = (pixel, image_id, jpeg_byte, neg, not_exhaustive, path, order, split, one_less)


def test_any_change_of_the_content_changes_the_digest(tmp_path):
    found = {}
    for change in (lambda tree: None, *CHANGES):
        tree = five_images(Tree(tmp_path / change.__name__))
        change(tree)
        data = tree.build()
        assert sum(data.splits.values()) == 5 - (change is one_less)
        found[data.index["digest"]] = change.__name__
    assert len(found) == 1 + len(CHANGES), found
    tree.json["lvis_v1_train"]["info"] = {"description": "says nothing that is stored"}
    assert tree.build("again").index["digest"] == data.index["digest"]


def rfc_6962(leaves):
    """The Merkle root as the RFC defines it."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256(b"").digest()
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + rfc_6962(leaves[:middle]) + rfc_6962(leaves[middle:])).digest()


def framed(*fields):
    return hashlib.sha256(b"\0" + b"".join(len(field).to_bytes(8, "little") + field for field in fields)).digest()


@pytest.mark.parametrize("count", range(21))
def test_the_root_is_that_of_rfc_6962(count):
    leaves = [bytes([number]) * digest.LENGTH for number in range(count)]
    assert digest.root(leaves) == rfc_6962(leaves)


def leaves_by_the_document(path):
    """The digests of a shard's images, computed only with h5py and hashlib as docs/format.md says."""
    groups = ("path/bytes", "image/bytes", "mask/class", "mask/length")
    groups += ("present/class", "present/pixels", "neg/class", "not_exhaustive/class")
    with h5py.File(path, "r") as file:
        for row in range(len(file["id"])):
            fields = [file[name][row].astype(file[name].dtype.newbyteorder("<")).tobytes() for name in ("id", "size")]
            for name in groups:
                first, last = map(int, file[name.split("/")[0]]["offsets"][row : row + 2])
                fields.append(file[name][first:last].astype(file[name].dtype.newbyteorder("<")).tobytes())
            yield framed(*fields)


def test_the_digest_follows_the_document(sample):
    data = Dataset.open(sample.data)
    fields = [b"cocolvis", data.index["vocabulary"]["digest"].encode()]
    for name in ("train", "val"):
        leaves = [leaf for path in data.shard_paths(name) for leaf in leaves_by_the_document(path)]
        fields += [name.encode(), len(leaves).to_bytes(8, "little"), rfc_6962(leaves)]
    assert framed(*fields).hex() == data.index["digest"]


def checksum_by_the_document(path):
    """The checksum of a shard, computed only with h5py and hashlib as docs/format.md says."""
    content = path.read_bytes()
    with h5py.File(path, "r") as file:
        pictures = file["image/bytes"]
        first, size = pictures.id.get_offset() or 0, len(pictures)
    return hashlib.sha256(content[:first] + content[first + size :]).hexdigest()


@pytest.mark.parametrize("images", ["embed", "none"])
def test_the_checksum_follows_the_document(sample, tmp_path, images):
    data = sample.rebuild(tmp_path / "data", images=images, shard_size=15)
    assert data.index["version"] == 3
    for entry in data.index["shards"]:
        path = data.folder / entry["file"]
        whole = hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["checksum"] == checksum_by_the_document(path) == ShardReader(path).checksum()
        assert (entry["checksum"] == whole) == (images == "none")


def recorded_again(folder, file):
    """Record the current size and checksum of a shard in dataset.json."""
    index = json.loads((folder / "dataset.json").read_text())
    entry = next(entry for entry in index["shards"] if entry["file"] == file)
    entry |= {"bytes": (folder / file).stat().st_size, "checksum": checksum_by_the_document(folder / file)}
    (folder / "dataset.json").write_text(json.dumps(index))


def test_verify_names_the_image_whose_mask_was_changed(sample, tmp_path):
    folder, file = tmp_path / "data", "shards/train-00001.h5"
    data = sample.rebuild(folder, shard_size=15)
    with h5py.File(folder / file, "r+") as shard:
        first = int(shard["mask/offsets"][4])
        shard["mask/class"][first] ^= 1
        image_id, expected = int(shard["id"][4]), shard["digest"][4].tobytes().hex()
    recorded_again(folder, file)
    ShardReader(folder / file).close()
    done = CliRunner().invoke(main, ["verify", str(folder)])
    assert done.exit_code == 1
    assert f"image {image_id} has the digest" in done.output and f"the shard says {expected}" in done.output
    assert "its digest is" in done.output and data.index["digest"] in done.output
    leaves = list(leaves_by_the_document(folder / file))
    with h5py.File(folder / file, "r+") as shard:
        shard["digest"][4] = np.frombuffer(leaves[4], np.uint8)
    recorded_again(folder, file)
    assert any("its digest is" in fault for fault in verify(Dataset.open(folder)))


LOCK = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


def test_a_locked_shard_is_read(sample):
    path = Dataset.open(sample.data).shard_paths("train")[0]
    command = [sys.executable, "-c", LOCK, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"\n"
        with path.open() as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert len(ShardReader(path)) == 15
        holder.communicate()
