"""Memory is bounded by the size of the input, not by its contents or by classes x classes; measured in separate processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import memory_of_annotations
import memory_of_classes
import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")

BYTES_A_BYTE = 6
"""The most bytes of memory per byte of a file, besides the mapped file itself."""

SLACK = 2**22
"""Bytes that reading any file takes, such as pages of code that run for the first time."""


@pytest.mark.parametrize("size", [2 * 10**6, pytest.param(10**8, marks=pytest.mark.long)])
def test_reading_an_annotation_file_takes_memory_in_proportion_to_its_size(size, tmp_path):
    command = [sys.executable, memory_of_annotations.__file__, str(tmp_path), str(size)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"MALLOC_ARENA_MAX": "1"})
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found.keys() == memory_of_annotations.SHAPES.keys()
    assert {name: row for name, row in found.items() if row[0] > BYTES_A_BYTE * row[1] + SLACK} == {}
    said = {name: row[2] for name, row in found.items()}
    assert said["only brackets"].endswith("expected one JSON object")
    assert said["keys without end"].endswith("it is cut short")
    assert said["many good, one bad"].endswith(" annotations, 1 faults")
    assert said["one large record"] == "1 images, 1 annotations, 0 faults"
    assert "has more than" in said["numbers for annotations"]


@pytest.mark.parametrize("many", [8_000, pytest.param(30_000, marks=pytest.mark.long)])
def test_many_classes_take_at_most_64_mib_more_than_few(many):
    command = [sys.executable, memory_of_classes.__file__, "100", str(many)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    for what in ("penalty", "evaluation"):
        assert found[f"{what} {many}"] - found[f"{what} 100"] <= 64 * 2**20, found
