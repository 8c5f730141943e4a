"""Which module imports which: the graph that the tests check, the picture of the folders shows and `make quick` follows."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cocolvis", "ess", "cli")


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name -> file of every module of the three packages; a package has the name of its ``__init__``."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


@cache
def _import_statements(path: Path, modified: int) -> list[ast.Import | ast.ImportFrom]:
    """All imports in a file; ``modified`` is its time of modification, so that a changed file is parsed again."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports_among(known: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of ``known`` that it imports, including imports inside functions and for type checking only.

    Raises ValueError for a relative import.
    """
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in _import_statements(path, path.stat().st_mtime_ns):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif node.level:
                raise ValueError(f"{path}: line {node.lineno} is a relative import; write the full module name")
            elif node.module in known:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= inner & known.keys() or {node.module}
        found[name].discard(name)
    return found


def imports(root: Path = ROOT) -> dict[str, set[str]]:
    """Module -> the modules that it imports, for the three packages."""
    return imports_among(modules(root))


def folders(root: Path = ROOT) -> dict[str, set[str]]:
    """Folder -> the folders whose modules it imports.

    The ``__init__`` of a package, its public entry point, is a node of its own called "import PACKAGE".
    """
    known = modules(root)

    def folder(name: str) -> str:
        return f"import {name}" if name in PACKAGES else known[name].parent.relative_to(root).as_posix()

    found: dict[str, set[str]] = {}
    for name, targets in imports(root).items():
        found.setdefault(folder(name), set()).update(folder(target) for target in targets)
    return {name: targets - {name} for name, targets in found.items()}
