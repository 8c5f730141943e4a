"""The memory of the losses, measured in separate processes: it does not grow with the classes, unlike that of others."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "losses.py"


@cache
def compile_loops(name):
    """Fill numba's cache: a process that compiles needs 100 MB more than one that loads."""
    measured(name, 9, 1, 16)


def peak(name, classes, images, size):
    """{"bytes", "pixels", "resident"} of a contender on that many pixels, its compiled loops loaded from numba's cache."""
    compile_loops(name)
    return measured(name, classes, images, size)


def measured(name, classes, images, size):
    """{"bytes", "pixels", "resident"} of a contender on that many pixels, as the benchmark measures it."""
    options = {"classes": classes, "images": images, "size": size, "peak-of": name}
    words = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    found = json.loads(subprocess.run([sys.executable, SCRIPT, *words], check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert found["pixels"] == images * size * size
    return found


@pytest.mark.parametrize("name", ["exact", pytest.param("k-NN", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_the_classes(name):
    few, many = peak(name, 100, 2, 64), peak(name, 30_000, 2, 64)
    assert many["resident"] <= 1.05 * few["resident"]
    assert many["bytes"] < 2 * 64 * 64 * 30_000 * 4 / 20  # a twentieth of a pixels x classes array


@pytest.mark.long
@pytest.mark.parametrize("name", ["exact", "exact, cosine", "k-NN", "k-NN, clustered"])
def test_memory_is_flat_from_a_hundred_to_a_hundred_thousand(name):
    assert peak(name, 100_000, 8, 128)["resident"] <= 1.05 * peak(name, 100, 8, 128)["resident"]


@pytest.mark.long
def test_a_tenth_of_the_published_arithmetic_and_a_fiftieth_of_dense_logits():
    published = peak("published", 1284, 8, 512)["bytes"]
    dense = 8 * 512 * 512 * 1284 * 4 * 3  # logits, their softmax and its gradient
    for name in ("exact", "k-NN"):
        ours = peak(name, 1284, 8, 512)["bytes"]
        assert ours <= published / 10, name
        assert ours <= dense / 50, name
