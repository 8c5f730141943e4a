"""`make quick` runs the tests that are closest to a change, and starts none when its time is over."""

import os
import subprocess
import sys

import pytest
from import_graph import ROOT
from quick_tests import MOST_FILES, changed_files, chosen, distances


@pytest.mark.parametrize(
    ("changed", "first"),
    [
        ("cocolvis/pictures/png.py", "tests/pictures/"),
        ("ess/data/transforms.py", "tests/data/test_transforms.py"),
        ("tests/masks/test_merge.py", "tests/masks/test_merge.py"),
    ],
)
def test_the_closest_tests_come_first(changed, first):
    assert chosen([changed])[0].startswith(first)


def test_distance_counts_imports_between_test_and_change(tmp_path):
    files = {
        "cocolvis/low.py": "",
        "cocolvis/high.py": "def f():\n    from cocolvis import low",
        "tests/helpers/made.py": "import cocolvis.high",
        "tests/test_low.py": "from cocolvis.low import x",
        "tests/test_high.py": "import cocolvis.high",
        "tests/test_made.py": "from made import y",
        "tests/test_other.py": "",
        "cocolvis/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    expected = {"tests/test_low.py": 1, "tests/test_high.py": 2, "tests/test_made.py": 3}
    assert distances(["cocolvis/low.py", "README.md"], tmp_path) == expected
    assert chosen(["cocolvis/low.py"], tmp_path) == [*expected]
    assert distances(["tests/helpers/made.py"], tmp_path) == {"tests/test_made.py": 1}


def test_a_change_that_everything_imports_runs_a_few_files_and_a_document_none():
    assert len(chosen(["cocolvis/errors.py"])) == MOST_FILES
    assert chosen(["docs/format.md"]) == []


def test_changed_files_are_those_not_committed_or_else_the_last_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # the user may sign commits, or have hooks
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*words):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *words], cwd=tmp_path, check=True)

    git("init", "-q")
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("1")
        git("add", name)
        git("commit", "-q", "-m", name)
    assert changed_files(root=tmp_path) == ["b.py"]
    (tmp_path / "a.py").write_text("2")
    (tmp_path / "c.py").write_text("3")
    assert changed_files(root=tmp_path) == ["a.py", "c.py"]


@pytest.mark.parametrize(("end", "least", "left"), [("0", "-1", True), ("0", "20", False), ("inf", "-1", False)])
def test_no_test_starts_when_the_time_is_over(tmp_path, end, least, left):
    (tmp_path / "conftest.py").write_text(f"import quick_tests\nquick_tests.AT_LEAST = {least}")
    (tmp_path / "test_two.py").write_text("def test_one(): pass\ndef test_two(): pass")
    command = [sys.executable, "-m", "pytest", "-p", "quick_tests", "-p", "no:cacheprovider", str(tmp_path)]
    environment = os.environ | {"QUICK_TESTS_END": end, "PYTHONPATH": str(ROOT / "tools"), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("2 left out" if left else "2 passed") in done.stdout
    assert ("`make test` runs everything" in done.stdout) is left
