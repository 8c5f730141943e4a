"""The documents match the code: they name every module and dependency, and open with the two set-up commands."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(p for folder in ("cocolvis", "ess", "cli") for p in (ROOT / folder).rglob("*.py") if p.stem != "__init__")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_module_stands_in_the_readme_and_the_architecture(path):
    for document in ("README.md", "docs/architecture.md"):
        assert re.search(rf"(?<![\w.]){re.escape(path.name)}", (ROOT / document).read_text()), document


def test_no_document_names_a_module_that_is_gone():
    here = {path.name for folder in ("cocolvis", "ess", "cli", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    for document in ("README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))):
        named = set(re.findall(r"[\w]+\.py\b", (ROOT / document).read_text()))
        assert named <= here, document


def test_the_readme_opens_with_the_two_set_up_commands():
    head = (ROOT / "README.md").read_text().splitlines()[:8]
    commands = [line.split()[:2] for line in head if line.startswith("    ")]
    assert commands == [["make", "demo"], ["make", "test"]]


def test_every_dependency_has_its_reason():
    text = (ROOT / "docs" / "architecture.md").read_text().split("## Dependencies")[1]
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name, bound = re.match(r"([\w-]+)(>=\S+)?", requirement).groups()
        assert name in text, name
        assert bound, f"{name} has no lower bound"
