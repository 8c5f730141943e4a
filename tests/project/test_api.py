"""``import cocolvis`` and ``import ess`` offer the same names to users, to type checkers and to docs/api.md."""

import ast
import pkgutil
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "api.py"))["reference"]

both = pytest.mark.parametrize("package", ["cocolvis", "ess"])


def imports_for_types(package: str) -> dict[str, str]:
    """Name -> module, from the imports that only type checkers see."""
    tree = ast.parse((ROOT / package / "__init__.py").read_text())
    guards = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for guard in guards for node in guard.body for alias in node.names}


@both
def test_every_name_is_the_one_that_its_module_defines(package):
    front = import_module(package)
    for name in front.__all__:
        offered = getattr(front, name)
        assert (offered.__module__, offered.__name__) == (imports_for_types(package)[name], name)


@both
def test_type_checkers_see_what_users_see(package):
    front = import_module(package)
    assert sorted(imports_for_types(package)) == sorted(front.__all__)
    assert imports_for_types(package) == front._MODULES
    assert (ROOT / package / "py.typed").exists()


@both
def test_dir_and_star_import_show_every_name(package):
    front = import_module(package)
    assert set(front.__all__) <= set(dir(front))
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)
    assert set(front.__all__) == names.keys() - {"__builtins__"}


@both
def test_no_name_hides_a_module_of_the_package(package):
    front = import_module(package)
    assert not set(front.__all__) & {module.name for module in pkgutil.iter_modules(front.__path__)}


@both
def test_a_wrong_name_is_an_attribute_error(package):
    front = import_module(package)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Datset'"):
        _ = front.Datset
    with pytest.raises(ImportError, match="Datset"):
        exec(f"from {package} import Datset")


def test_importing_loads_nothing_that_takes_time():
    code = "import cocolvis, ess, sys; dir(cocolvis); dir(ess); hasattr(ess, 'Datset'); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()
    assert {"cocolvis", "ess"} <= set(loaded)
    assert not {name.split(".")[0] for name in loaded} & {"torch", "numpy", "cv2", "h5py", "numba", "msgspec"}


def test_the_reference_is_up_to_date():
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == REFERENCE(), "docs/api.md is out of date: run `python docs/api.py`"


@both
def test_the_reference_has_a_section_for_every_name(package):
    text = REFERENCE()
    for name in import_module(package).__all__:
        assert f"\n### {package}.{name}\n" in text
        assert f"[{name}](#{package}{name.lower()})" in text


SHOP = '''"""A shop."""

from dataclasses import dataclass
from typing import NamedTuple

SIZES = ("small", "large")


@dataclass(frozen=True)
class Goods:
    """What is sold; ``size`` is one of ``SIZES``."""

    size: str = SIZES[0]


@dataclass(frozen=True)
class Apple(Goods):
    """An apple of *some* weight."""

    grams: float = 1e2

    @property
    def heavy(self) -> bool:
        """More than 200 g; see :func:`shop.till.buy`."""
        return self.grams > 200

    def _peel(self): ...


def buy(what: "Goods", /, *names: str, price: float, currency: str = "EUR", **how: int) -> "Apple | None":
    """Pay ``price``: x < y, a * b, <b>."""
'''

SECTIONS = """
### cocolvis.Apple

```python
SIZES = ("small", "large")


@dataclass(frozen=True)
class Apple(Goods):
    size: str = SIZES[0]
    grams: float = 1e2
```

An apple of \\*some\\* weight.

From `Goods`: What is sold; `size` is one of `SIZES`.

```python
Apple.heavy: bool
```

More than 200 g; see `shop.till.buy`.

### cocolvis.buy

```python
def buy(what: Goods, /, *names: str, price: float, currency: str = "EUR", **how: int) -> Apple | None
```

Pay `price`: x < y, a * b, \\<b>.
"""


def shop(root: Path, text: str) -> str:
    """The reference of a package with one module of this text."""
    (root / "cocolvis").mkdir(parents=True)
    (root / "cocolvis" / "__init__.py").write_text('"""Fruit."""\nfrom cocolvis.shop import Apple, buy\n')
    (root / "cocolvis" / "shop.py").write_text(text)
    return REFERENCE(root, ("cocolvis",))


def test_the_reference_shows_signatures_fields_and_docstrings(tmp_path):
    assert shop(tmp_path, SHOP).partition("[buy](#cocolvisbuy)\n")[2] == SECTIONS


def test_long_signatures_get_one_parameter_per_line(tmp_path):
    text = shop(tmp_path, SHOP.replace("price: float", f"{'p' * 80}: float"))
    assert f"\n    *names: str,\n    {'p' * 80}: float,\n" in text


def test_a_public_name_without_a_docstring_is_refused(tmp_path):
    with pytest.raises(ValueError, match="heavy is public and has no docstring"):
        shop(tmp_path, SHOP.replace('"""More than 200 g; see :func:`shop.till.buy`."""', ""))
