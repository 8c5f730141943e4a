"""The wheel that users install holds everything: it runs in an environment without this checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cocolvis", "ess", "cli")
DATA = (".csv", ".toml", ".typed", ".html", ".css", ".js", ".svg")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

LOADED = "import cli, cocolvis, ess; print(*(package.__file__ for package in (cli, cocolvis, ess)), sep='\\n')"
TABLES = "from cocolvis.importers.tables import table; print(*(len(table(name)) for name in {names}))"


def data_files() -> set[str]:
    """The tables, presets and marks of the packages, by their paths."""
    found = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in DATA]
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources: a build leaves files beside them, and takes up what it left before."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*PIP, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", out, source], check=True)
    (built,) = out.glob("*.whl")
    return built


class Environment:
    """A fresh virtual environment with the wheel and, from the tests' environment, its dependencies."""

    def __init__(self, folder: Path, wheel: Path):
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir(parents=True)
        self.bin = folder / "env" / "bin"
        # With PYTHONPATH, pip would find the checkout there and install nothing.
        self.variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        install = [*PIP, "--python", self.bin / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel]
        subprocess.run(install, env=self.variables, check=True)
        (self.packages,) = folder.glob("env/lib/python*/site-packages")
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        # Folders that a .pth file names are searched last, and their own .pth files, which lead to checkouts, are not read.
        (self.packages / "dependencies.pth").write_text("\n".join(sorted(paths)))

    def run(self, program: str, *arguments: str) -> str:
        """What a program of the environment prints, in a folder that has nothing to do with the project."""
        command = [self.bin / program, *arguments]
        done = subprocess.run(command, cwd=self.elsewhere, env=self.variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment"), wheel)


def test_the_wheel_holds_every_data_file(wheel):
    names = {
        "cocolvis/vocabulary.csv",
        "cocolvis/importers/voc.csv",
        "ess/presets/demo.toml",
        "ess/presets/variants/exact.toml",
    }
    assert names | {"cocolvis/py.typed", "ess/py.typed"} <= data_files()
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.endswith(DATA)} == data_files()


def test_the_wheel_holds_every_module_and_nothing_else(wheel):
    modules = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert inside == modules | data_files()


def test_the_installed_packages_are_those_of_the_wheel(environment):
    for path in environment.run("python", "-c", LOADED).splitlines():
        assert Path(path).is_relative_to(environment.packages)


def test_the_installed_commands_read_every_table_and_preset(environment):
    assert "1284" in environment.run("cocolvis", "vocab").splitlines()[-1]
    presets = environment.run("ess", "preset")
    for path in data_files():
        if path.endswith(".toml"):
            assert Path(path).stem in presets
    names = [Path(path).stem for path in sorted(data_files()) if path.startswith("cocolvis/importers/")]
    assert environment.run("python", "-c", TABLES.format(names=names)) == "150 19 182 21\n"


@pytest.mark.long  # the loops are compiled again in a fresh environment
def test_the_installed_commands_make_a_data_set(environment):
    environment.run("cocolvis", "sample", "--out", "sample", "--images", "8", "--classes", "20")
    environment.run("cocolvis", "build", "--coco", "sample/coco", "--lvis", "sample/lvis", "--out", "data")
    assert environment.run("cocolvis", "verify", "data") == "2 shards: all as recorded\n"
