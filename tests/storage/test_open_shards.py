"""Data sets with more shards than a process may open files: all commands work, and open files stay within the limit."""

import gc
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from runs import flags
from trees import Tree, box

from cocolvis.errors import DataError
from cocolvis.storage import digest
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.open_shards import OPEN_SHARDS, OpenShards, most_open
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.storage.shard_writer import ShardWriter

LIMIT = 256
SHARDS = 300
TO_EVALUATE = 20


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A data set with one image per shard: 300 for training and 20 for evaluation."""
    tree = Tree(tmp_path_factory.mktemp("many"))
    tree.stuff(tree.image(1, size=(24, 32)), 92, box(0, 0, 20, 20))
    data = tree.build()
    one, vocabulary = data.find(1), data.vocabulary.digest
    shards, leaves = [], {}
    for split, images in (("train", SHARDS), ("val", TO_EVALUATE)):
        leaves[split] = []
        for number in range(images):
            file = f"shards/{split}-{number:05d}.h5"
            writer = ShardWriter(data.folder / file, {"split": split, "vocabulary": vocabulary}, instances=True)
            writer.add(replace(one, image_id=10_000 * len(leaves) + number))
            leaves[split] += writer._parts["digest"]
            written = writer.finish()
            shards.append({"file": file, "split": split, "images": 1} | {name: written[name] for name in ("bytes", "checksum")})
    index = data.index | {"shards": shards, "digest": digest.of_dataset(leaves, vocabulary)}
    index["splits"] = {split: {"images": len(found), "shards": len(found)} for split, found in leaves.items()}
    (data.folder / "dataset.json").write_text(json.dumps(index))
    return data.folder


@pytest.fixture
def few_files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, before[1]))
    yield LIMIT
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def commands(*lines):
    """Run commands one after another in a process that may open 256 files; return their stdout."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    calls = [[str(part) for part in line] for line in lines]
    script = (
        "import importlib, json, sys\n"
        "for package, *arguments in json.loads(sys.argv[1]):\n"
        "    importlib.import_module(f'cli.{package}').main(arguments, standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(calls)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, limit)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_stats_and_diff_with_more_shards_than_files(many):
    found = commands(("cocolvis", "stats", many), ("cocolvis", "diff", many, many))
    assert "train: 300 images" in found and "0 of 320 common images differ" in found


@pytest.mark.long
def test_other_commands_with_more_shards_than_files(many, tmp_path):
    found = commands(
        ("cocolvis", "info", many),
        ("cocolvis", "verify", many),
        ("cocolvis", "show", many, 10_299, 20_019, 10_000, "--out", tmp_path / "shown"),
        ("cocolvis", "export", many, "--out", tmp_path / "masks"),
    )
    assert "320 shards: all as recorded" in found and "320 masks" in found and "000000020019.png" in found
    assert len(list((tmp_path / "masks").rglob("*.png"))) == SHARDS + TO_EVALUATE


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_training_and_evaluation_with_more_shards_than_files(many, tmp_path, method):
    settings = {"batch_size": 30, "crop": 32, "steps": 2, "workers": 2, "track": "none", "start_method": method}
    more = ("--repeat-threshold", 0.01, "--eval-every", 2, "--eval-limit", 3)
    found = commands(
        ("ess", "train", many, "--out", tmp_path / "run", *flags(**settings), *more),
        ("ess", "eval", tmp_path / "run", many, "--top-n", 5, "--device", "cpu"),
    )
    assert f"{TO_EVALUATE} images of split val" in found


def own_files() -> set[str]:
    """The shards that this process has open; files that close while they are listed are skipped."""
    found = set()
    for handle in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{handle}"))
        except OSError:
            continue
    return {name for name in found if name.endswith(".h5")}


@pytest.mark.linux
def test_all_splits_of_a_process_share_one_limit(many, few_files):
    gc.collect()
    before = len(own_files())
    splits = [Dataset.open(many).split(name) for name in ("train", "val", "train")]
    for row in range(100):
        for split in splits:
            split.mask(row % len(split))
    assert before <= few_files // 4 and len(own_files()) <= few_files // 4
    assert len(OPEN_SHARDS) <= few_files // 4
    copy = pickle.loads(pickle.dumps(splits[0]))
    assert np.array_equal(copy.mask(5), splits[0].mask(5)) and len(own_files()) <= few_files // 4
    held = [split.shard(7) for split in splits]
    assert splits[0].shard(7) is held[0]
    del held, copy, splits, split
    gc.collect()
    assert not {name for name in own_files() if name.startswith(str(many))}


@pytest.mark.parametrize(
    ("limit", "most"), [(16, 4), (64, 16), (256, 64), (1024, 256), (2**20, 256), (resource.RLIM_INFINITY, 256)]
)
def test_the_limit_follows_from_that_of_the_process(monkeypatch, limit, most):
    monkeypatch.setattr(resource, "getrlimit", lambda what: (limit, limit))
    assert most_open() == most


def test_the_most_recently_used_shards_stay_open(monkeypatch):
    monkeypatch.setattr("cocolvis.storage.open_shards.most_open", lambda: 3)

    class Owner:
        pass

    owner, opened, closed, shards = Owner(), [], [], OpenShards()
    number = shards.owner(owner, 10)

    class Reader:
        def __init__(self, shard):
            opened.append(shard)

        def close(self):
            closed.append(self)

    readers = [shards.get(number, shard, Reader) for shard in (0, 1, 2, 0, 3, 0, 1)]
    assert opened == [0, 1, 2, 3] and readers[6] is readers[1]
    assert closed == [readers[1], readers[2]] and len(shards) == 3
    del readers, closed[:]
    del owner
    gc.collect()
    assert len(shards) == 0


def test_a_thread_keeps_reading_while_others_close_its_shard(many, monkeypatch):
    """If a file were closed while a thread uses it, its descriptor could belong to another file at the time of the read."""
    monkeypatch.setattr("cocolvis.storage.open_shards.most_open", lambda: 1)
    split, wrong = Dataset.open(many).split("train"), []

    def read(rows):
        for row in rows:
            sample = split[row]
            if sample.image_id != 10_000 + row or sample.image().shape != (24, 32, 3):
                wrong.append(row)

    threads = [threading.Thread(target=read, args=(range(start, 120, 4),)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_process_reads_without_disturbing_its_parent(many):
    split = Dataset.open(many).split("train")
    expected = [split.mask(row) for row in range(20)]
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(split.mask(row), mask) for row, mask in enumerate(expected))
        del split
        gc.collect()
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert all(np.array_equal(split.mask(row), mask) for row, mask in enumerate(expected))


def test_too_many_open_files_are_reported_as_such(many, monkeypatch):
    def refused(*arguments, **settings):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("cocolvis.storage.shard_reader.os.open", refused)
    with pytest.raises(DataError, match=r"train-00000\.h5: cannot be read: Too many open files$"):
        Dataset.open(many).split("train")[0]


@pytest.mark.linux
def test_a_closed_shard_opens_again_unless_its_file_was_replaced(many, tmp_path):
    path = tmp_path / "one.h5"
    path.write_bytes((many / "shards" / "train-00000.h5").read_bytes())
    reader = ShardReader(path)
    expected = reader.runs(0).mask()
    reader.close()
    assert str(path) not in own_files() and np.array_equal(reader.runs(0).mask(), expected)
    reader.close()
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(DataError, match=r"image 10000 .*: the file was replaced by another while it was in use"):
        reader.runs(0)
    path.unlink()
    with pytest.raises(DataError, match=r"image 10000 .*: .*No such file"):
        reader.runs(0)
