"""docs/format.md is sufficient: its example reads a data set in a process without any code of the project."""

import json
import re
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from cocolvis.storage.columns import INSTANCES, PACKED, PER_IMAGE
from cocolvis.storage.dataset import Dataset

DOCUMENT = (Path(__file__).parents[2] / "docs" / "format.md").read_text()

GUARD = """
for name in sys.modules:
    if name.split(".")[0] in ("cocolvis", "ess", "cli", "torch", "cv2"):
        sys.exit(f"imports {name}")
"""


def test_the_documented_reader_reads_every_sample(sample, tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "reader.py").write_text(script + GUARD)
    command = [sys.executable, "-I", tmp_path / "reader.py", sample.data]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    data = Dataset.open(sample.data)
    assert [row["image"] for row in rows] == [i for name in data.splits for i in data.split(name).image_ids().tolist()]
    for row in rows:
        one = data.find(row["image"])
        found = (row["path"], tuple(row["shape"]), row["sum"], row["jpeg"], row["instances"])
        assert found == (
            one.path,
            one.mask.shape,
            one.mask.sum(dtype="int64"),
            len(one.content),
            sum(one.instances.values()),
        )
    assert len({row["largest"] for row in rows}) > 5


def test_every_data_set_attribute_and_key_is_documented(sample):
    index = json.loads((sample.data / "dataset.json").read_text())
    named = set(re.findall(r"`/?(\w+)`", DOCUMENT))
    assert index.keys() <= named
    assert set(PER_IMAGE) | set(PACKED) <= named
    assert {column for columns in PACKED.values() for column in columns} | {"offsets"} <= named
    with h5py.File(sample.data / index["shards"][0]["file"]) as file:
        assert set(file.attrs) <= named
        assert set(file) == set(PER_IMAGE) | set(PACKED)
        assert INSTANCES in file and f"`/{INSTANCES}`" in DOCUMENT


@pytest.mark.long
def test_the_layout_benchmark_covers_the_tables_of_the_document():
    script = Path(__file__).parents[2] / "benchmarks" / "layout.py"
    found = json.loads(subprocess.check_output([sys.executable, script, "--images", "100", "--json"], text=True))
    for what in ("masks", "pictures"):
        (table,) = re.findall(rf"\| {what} \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", DOCUMENT)
        assert len(table.splitlines()) == len(found[what])
        assert all(row["kib_an_image"] > 0 and row["write"] > 0 and row["read"] > 0 for row in found[what])
