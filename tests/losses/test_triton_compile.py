"""The Triton kernels compiled for GPUs, which needs none: each one that training can reach fits into the registers.

Only beyond 64 dimensions, a few registers may be spilled.
"""

import math
import time

import pytest
from triton_cases import INTERPRETED

from ess.kernels.distances import DISTANCES, EUCLIDEAN

if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

import gpu
import registers


@pytest.fixture(autouse=True)
def cold(tmp_path, monkeypatch):
    """Compile again, whatever is in the cache of the user."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


def test_the_losses_of_the_presets_fit_into_the_registers_of_a_hopper():
    launches = registers.launches_of(12, EUCLIDEAN)
    seen = {registers.described(launch): launch for launch in launches}
    assert list(seen) == [
        "exact.by_pixel gradients",
        "exact.by_class",
        "exact.by_pixel gradients bias biased",
        "exact.by_class bias biased",
        "exact.by_pixel gradients biased",
        "exact.by_class biased",
        "exact.by_pixel",
        "search.nearest excludes",
        "candidates.by_pixel",
        "candidates.by_pixel gradients",
        "search.nearest",
        "search.nearest biased",
    ]
    for name in ("exact.by_pixel gradients", "candidates.by_pixel gradients"):
        assert registers.used(seen[name], 90).fits(12), name
    for name in ("search.nearest", "search.nearest biased"):
        exact_roots = "sqrt.rn.f32" in registers.compiled(seen[name], 90).asm["ptx"]
        assert exact_roots == name.endswith("biased")


def test_any_number_of_images_fits_into_a_grid():
    """CUDA allows 65,535 programs in the second and third dimension."""
    launches = registers.launches_of(12, EUCLIDEAN, images=70_000, pixels=1)
    grids = {registers.described(launch): launch.grid for launch in launches}
    assert all(max(grid[1:], default=1) <= 65_535 for grid in grids.values())
    for name in ("exact.by_pixel", "candidates.by_pixel", "search.nearest excludes"):
        assert grids[name] == (70_000,), name


@pytest.mark.parametrize(("until", "rounds"), [(math.inf, 5), (25, 3), (-1, 2)])
def test_a_race_begins_no_round_too_late(monkeypatch, until, rounds):
    now, seen = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def once(work):
        now[0] += 10
        seen.append(work)
        return 1.0, 0.0

    monkeypatch.setattr(gpu, "once", once)
    assert gpu.race({"one": ("work", 8)}, 8, 4, until)["one"]["ms"] == 1000
    assert len(seen) == rounds


@pytest.mark.long
def test_a_spill_is_seen():
    launch = registers.launches_of(12, EUCLIDEAN)[0]
    launch.arguments.update(PIXELS=128, CLASSES=128)
    found = registers.used(launch, 90)
    assert found.spilled > registers.SPILLED and not found.fits(12) and not found.fits(128)
    assert found._replace(spilled=0).fits(12) and found._replace(spilled=registers.SPILLED).fits(128)
    assert not found._replace(spilled=0, shared=registers.SHARED + 1).fits(12)


@pytest.mark.long
@pytest.mark.parametrize("capability", registers.CAPABILITIES)
@pytest.mark.parametrize("distance", range(len(DISTANCES)))
@pytest.mark.parametrize("dim", registers.DIMS)
def test_every_loss_fits_into_the_registers(dim, distance, capability):
    rows = registers.rows_of(capability, dim, distance)
    assert len(rows) == 12 and [registers.line_of(row) for row in rows if not row["fits"]] == []
