"""The exponents that benchmarks/growth.py fits."""

import json
import subprocess
import sys
from pathlib import Path

import growth
import numpy as np
import pytest


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_found(power):
    sizes = growth.powers(100, 3, 5)
    seconds = 0.2 * np.array(sizes, float) ** power
    assert growth.exponent(sizes, seconds) == pytest.approx(power, abs=1e-9)
    noise = np.random.default_rng(0).uniform(0.95, 1.05, len(sizes))
    assert growth.exponent(sizes, seconds * noise) == pytest.approx(power, abs=0.05)


def test_a_constant_start_counts_less_in_the_upper_half():
    sizes = growth.powers(100, 2, 7)
    seconds = [0.5 + size * 1e-3 for size in sizes]
    upper = growth.exponent(growth.upper_half(sizes), growth.upper_half(seconds))
    assert growth.exponent(sizes, seconds) < 0.7 < upper < 1


@pytest.mark.parametrize(("length", "kept"), [(2, 2), (3, 2), (4, 2), (5, 3), (7, 4)])
def test_the_upper_half_has_at_least_two_sizes(length, kept):
    assert growth.upper_half(range(length)) == range(length - kept, length)


@pytest.mark.parametrize(
    ("sizes", "seconds"),
    [
        ([100], [1.0]),
        ([100, 100], [1.0, 2.0]),
        ([100, 200, 400], [1.0, 2.0]),
        ([100, 200], [1.0, 0.0]),
        ([100, 200], [1.0, -2.0]),
        ([100, 200], [1.0, float("nan")]),
        ([100, 200], [1.0, float("inf")]),
        ([0, 200], [1.0, 2.0]),
    ],
)
def test_what_has_no_exponent_is_refused(sizes, seconds):
    with pytest.raises(ValueError, match=r"sizes \[.+\], times \[.+\]: expected"):
        growth.exponent(sizes, seconds)


def test_the_time_of_children_counts():
    before = growth.spent()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert growth.spent() - before > 0.25


@pytest.mark.long
def test_the_script_measures_every_part(tmp_path):
    command = [sys.executable, Path(growth.__file__), "--quick", "--json", "--plot", tmp_path]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["parts"]
    assert set(found) == set(growth.NAMES)
    assert all(min(line["seconds"]) > 0 for part in found.values() for line in part["lines"].values())
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"
