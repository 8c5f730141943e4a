"""Compiled functions are cached, and compiled again when any of their files changes."""

import compileall
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cocolvis import compiled

OUTER = """
from cocolvis.compiled import entry
from cocolvis.inside import step

@entry()
def twice(x):
    return step(step(x))
"""

INSIDE = """
from cocolvis.compiled import inner
from cocolvis.limit import LIMIT

@inner()
def step(x):
    return x + LIMIT
"""


@pytest.fixture
def package(tmp_path):
    """A package of three modules; twice is compiled from all of them."""
    folder = tmp_path / "cocolvis"
    folder.mkdir()
    (folder / "compiled.py").write_text(Path(compiled.__file__).read_text())
    for name, text in {"__init__": "", "outer": OUTER, "inside": INSIDE, "limit": "LIMIT = 1\n"}.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def called(package, most=-1):
    """twice(0) in a new process, which can write ``most`` bytes to a file, and how often it was found in the cache."""
    command = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most}))\n"
    command += "from cocolvis.outer import twice; print(twice(0), sum(twice.stats.cache_hits.values()))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(package.parent / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", command], cwd=package.parent, env=environment, check=True, capture_output=True, text=True
    )
    return [int(text) for text in found.stdout.split()]


def test_a_change_of_an_imported_file_compiles_again(package):
    assert called(package) == [2, 0]
    assert called(package) == [2, 1]
    (package / "limit.py").write_text("LIMIT = 3\n")
    assert called(package) == [6, 0]
    (package / "inside.py").write_text(INSIDE.replace("x + LIMIT", "2 * x + LIMIT"))
    assert called(package) == [9, 0]


@pytest.mark.parametrize(
    ("ending", "kept"),
    [
        (".nbi", 0),
        pytest.param(".nbi", 50, marks=pytest.mark.long),
        pytest.param(".nbc", 0, marks=pytest.mark.long),
        (".nbc", 500),
    ],
)
def test_a_truncated_cache_is_replaced(package, ending, kept):
    assert called(package) == [2, 0]
    (path,) = package.parent.rglob(f"*{ending}")
    path.write_bytes(path.read_bytes()[:kept])
    assert called(package) == [2, 0]
    assert called(package) == [2, 1]


def test_a_full_disk_costs_only_the_cache(package):
    assert called(package) == [2, 0]
    (index,), (data,) = (list(package.parent.rglob(f"*.{ending}")) for ending in ("nbi", "nbc"))
    sizes = (0, index.stat().st_size)  # room for nothing, and for the index alone
    assert sizes[1] < data.stat().st_size
    for size in sizes:
        for path in (index, data):
            path.unlink(missing_ok=True)
        assert called(package, size) == [2, 0]
        assert not index.exists() and not data.exists()
    assert called(package) == [2, 0]
    assert called(package) == [2, 1]


def test_a_package_without_sources_compiles_without_a_cache(package):
    compileall.compile_dir(package, quiet=1, legacy=True)
    for path in package.glob("*.py"):
        path.unlink()
    assert called(package) == called(package) == [2, 0]


def test_the_files_of_a_kernel_are_those_it_is_compiled_from():
    assert compiled._sources("cocolvis.masks.reading_kernels").keys() == {
        f"cocolvis.{name}" for name in ("compiled", "sources.json_kernels")
    } | {f"cocolvis.masks.{name}_kernels" for name in ("reading", "number", "polygon", "run")}


def test_every_compiled_module_has_a_digest():
    root = Path(compiled.__file__).parents[1]
    files = [path for name in ("cocolvis", "ess") for path in (root / name).rglob("*.py")]
    using = [path for path in files if "from cocolvis.compiled import entry" in path.read_text(encoding="utf-8")]
    assert len(using) > 5
    for path in using:
        compiled._digest(".".join(path.relative_to(root).with_suffix("").parts))
