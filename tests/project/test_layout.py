"""Folders import each other in one direction only, and none holds too many modules."""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cocolvis", "ess", "cli")
MOST = 12
"""The largest number of modules in a folder."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module in the three packages; the file of a package is its ``__init__``."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules of the packages it imports, including imports inside functions and for types only."""
    known = modules(root)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: a relative import"
                if node.module in known:
                    inner = {f"{node.module}.{alias.name}" for alias in node.names}
                    found[name] |= inner & known.keys() or {node.module}
        found[name].discard(name)
    return found


def folders(root: Path = ROOT) -> dict[str, set[str]]:
    """Folder -> the folders whose modules it imports. The ``__init__`` of a package is a node of its own."""
    known = modules(root)

    def folder(name: str) -> str:
        return f"import {name}" if name in PACKAGES else str(known[name].parent.relative_to(root))

    found: dict[str, set[str]] = {}
    for name, targets in imports(root).items():
        found.setdefault(folder(name), set()).update(folder(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}


def ordered(graph: dict[str, set[str]]) -> list[str]:
    """The nodes, each after everything it imports; fails and names the cycle if there is one."""
    try:
        return [*TopologicalSorter(graph).static_order()]
    except CycleError as error:
        pytest.fail(f"imports form a cycle: {' -> '.join(error.args[1])}")


def test_no_module_imports_itself_through_others():
    assert set(ordered(imports())) == set(modules())


def test_imports_between_folders_run_one_way():
    order = ordered(folders())
    assert {"cocolvis", "ess", "ess/kernels", "cocolvis/building", "cli"} <= set(order)


FOR_TYPES = "if TYPE_CHECKING:\n    from cocolvis.building import build"


@pytest.mark.parametrize("added", ["import cocolvis.building.build", FOR_TYPES])
def test_an_import_against_the_direction_is_found(tmp_path, added):
    for name, path in modules().items():
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text() + (f"\n{added}\n" if name == "cocolvis.disk.files" else ""))
    assert "cocolvis/building" in folders(tmp_path)["cocolvis/disk"]
    for graph in (imports(tmp_path), folders(tmp_path)):
        with pytest.raises(pytest.fail.Exception, match="form a cycle"):
            ordered(graph)


def test_no_folder_is_crowded():
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    held = Counter(path.parent.relative_to(ROOT) for path in (*modules().values(), *tests) if path.name != "__init__.py")
    assert {folder: count for folder, count in held.items() if count > MOST} == {}
