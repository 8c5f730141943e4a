"""Imports run in one direction: cocolvis uses neither ess nor torch, and both commands start without heavy imports."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import cocolvis

ROOT = Path(__file__).parents[2]

HEAVY = ("torch", "torchvision", "timm", "cv2", "h5py", "numpy", "matplotlib", "lvis", "pycocotools")


def modules_after(code):
    """The top-level modules that are loaded after running ``code`` in a fresh interpreter."""
    printed = subprocess.check_output([sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], text=True, cwd=ROOT)
    return {name.split(".")[0] for name in printed.splitlines()[-1].split()}


def test_cocolvis_imports_neither_torch_nor_ess_nor_cli():
    names = [module.name for module in pkgutil.walk_packages(cocolvis.__path__, "cocolvis.")]
    assert "cocolvis.building.build" in names
    loaded = modules_after("import " + ", ".join(names))
    assert not loaded & {"torch", "ess", "cli", "click"}
    assert {"h5py", "cv2", "lvis"} <= loaded


@pytest.mark.parametrize("command", ["cocolvis", "ess"])
def test_help_starts_without_heavy_imports(command):
    loaded = modules_after(f"from cli.{command} import main\ntry: main(['--help'])\nexcept SystemExit: pass")
    assert "click" in loaded and not loaded & set(HEAVY)


@pytest.mark.parametrize(("package", "forbidden"), [("cocolvis", {"ess", "cli", "torch", "click"}), ("ess", {"cli", "click"})])
def test_no_module_imports_against_the_direction(package, forbidden):
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & forbidden, path


def test_only_the_command_lines_print():
    for package in ("cocolvis", "ess"):
        for path in (ROOT / package).rglob("*.py"):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            assert not any(isinstance(call, ast.Name) and call.id == "print" for call in calls), path
