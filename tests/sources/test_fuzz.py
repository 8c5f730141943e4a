"""Mutated inputs are refused or give the correct result; nothing crashes, hangs or affects other records."""

import os
import re
import subprocess
import sys
from pathlib import Path

import fuzzed_files
import pytest
from fuzzed_files import Playground, annotation_file, under_way
from fuzzed_segmentations import SEGMENTATIONS, assert_refused_or_painted, segmentation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GUARD = 1800
"""Seconds after which a batch counts as hanging."""

repeatable = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
choices = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def ground(tmp_path_factory) -> Playground:
    return Playground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("number", range(len(SEGMENTATIONS)))
def test_the_segmentations_are_valid_before_mutation(number):
    painted = assert_refused_or_painted(*SEGMENTATIONS[number])
    assert painted


@settings(repeatable, max_examples=300)
@given(random=choices)
def test_mutated_segmentations_are_refused_or_painted_as_pycocotools_does(random):
    assert_refused_or_painted(*segmentation(random))


def test_the_files_are_valid_before_mutation(ground):
    for file, content in ground.contents.items():
        assert ground.check(file, content)


@settings(repeatable, max_examples=60)
@given(random=choices)
def test_mutated_files_are_refused_or_only_lose_the_mutated_records(ground, random):
    ground.check(*annotation_file(random, ground.contents))


def run_batch(folder: Path, seed: int, segmentations: int, files: int, **environment: str) -> list[int]:
    """Run a batch in a separate process; (segmentations painted, files built). A failure names the current input."""
    env = os.environ | {"PYTHONPATH": str(Path(fuzzed_files.__file__).parents[1] / "helpers")} | environment
    command = [sys.executable, "-X", "faulthandler", fuzzed_files.__file__, folder, seed, segmentations, files]
    command = [str(part) for part in command]
    with (folder / "output").open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=env) as process:
        try:
            ended = f"with exit code {process.wait(GUARD)}"
        except subprocess.TimeoutExpired:
            ended = f"hanging, after {GUARD} s"
            process.kill()
    text = (folder / "output").read_text()
    assert process.returncode == 0, f"ended {ended}, at {under_way(folder)}\n{text[-3000:]}"
    return [int(number) for number in re.findall(r"(\d+) of", text)]


def test_a_short_batch_in_a_separate_process(tmp_path):
    painted, built = run_batch(tmp_path, 1, 400, 20)
    assert 100 < painted < 350 and built > 5


@pytest.mark.long
def test_a_long_batch_in_a_separate_process_with_bounds_checks(tmp_path):
    painted, built = run_batch(tmp_path, 2, 17_000, 3_000, NUMBA_BOUNDSCHECK="1", NUMBA_CACHE_DIR=str(tmp_path))
    assert 4_250 < painted < 14_875 and built > 750
