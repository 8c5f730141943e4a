"""Writes docs/api.md, the reference for ``import cocolvis`` and ``import ess``: run ``python docs/api.py``.

The sources are parsed, not imported: the result depends on nothing but their text.
"""

import ast
import inspect
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("cocolvis", "ess")
WIDTH = 110
"""Longer signatures get one parameter per line."""

HEAD = """# API

Generated from signatures and docstrings by `python docs/api.py`; edit those, not this file.
"""

Definition = ast.FunctionDef | ast.ClassDef


class Module:
    """The text of one module and the definitions in it."""

    def __init__(self, name: str, root: Path):
        self.root = root
        path = root.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, str(path))
        self.definitions = {node.name: node for node in self.tree.body if isinstance(node, Definition)}
        assignments = [node for node in self.tree.body if isinstance(node, ast.Assign) and len(node.targets) == 1]
        self.constants = {self.source(node.targets[0]): self.source(node) for node in assignments}
        self.imports = {
            alias.asname or alias.name: node.module
            for node in ast.walk(self.tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }

    def constant(self, name: str) -> str | None:
        """The line that assigns a constant or a type alias, here or in the module of this project that it comes from."""
        origin = self.imports.get(name, "")
        owner = module(origin, self.root) if origin.split(".")[0] in PACKAGES else self
        line = owner.constants.get(name, "")
        return line if line and "\n" not in line and "TypeVar" not in line else None

    def source(self, node: ast.AST) -> str:
        """The text of a node."""
        return ast.get_source_segment(self.text, node) or ""

    def annotation(self, node: ast.expr) -> str:
        """The text of a type, without the quotes of forward references."""
        return re.sub(r'"([A-Z]\w*(?: \| None)?)"', r"\1", self.source(node))


@cache
def module(name: str, root: Path) -> Module:
    """The module of this dotted name, parsed once."""
    return Module(name, root)


def reference(root: Path = ROOT, packages: tuple[str, ...] = PACKAGES) -> str:
    """The whole text of docs/api.md for the packages below ``root``."""
    return "\n".join([HEAD, *(line for package in packages for line in _package(module(package, root)))])


def _package(front: Module) -> Iterator[str]:
    (title,) = {name.split(".")[0] for name in front.imports.values()} - {"importlib", "typing"}
    names = sorted((name for name, home in front.imports.items() if home.startswith(f"{title}.")), key=_classes_first)
    links = " · ".join(f"[{name}](#{title}{name.lower()})" for name in names)
    yield f"## {title}\n\n{_prose(front.tree)}\n\n{links}\n"
    for name in names:
        yield f"### {title}.{name}\n"
        yield from _definition(module(front.imports[name], front.root), name)


def _classes_first(name: str) -> tuple[bool, str]:
    return name.islower(), name


def _definition(home: Module, name: str) -> Iterator[str]:
    node = home.definitions[name]
    if isinstance(node, ast.FunctionDef):
        yield from _entry([home], _signature(home, node, f"def {name}"), node)
        return
    bases = [*_bases(home, node)]
    yield from _entry([home, *(owner for owner, _ in bases)], _class(home, node), node)
    for owner, base in bases:
        yield f"From `{base.name}`: {_prose(base)}\n"
        yield from _methods(owner, base, name)
    yield from _methods(home, node, name)


def _entry(homes: Sequence[Module], code: str, node: Definition) -> Iterator[str]:
    """The code of a definition, the constants that it or its docstring mentions, and the docstring."""
    words = dict.fromkeys(re.findall(r"\b[A-Z]\w+", f"{code}\n{ast.get_docstring(node)}"))
    constants = dict.fromkeys(line for word in words for home in homes if (line := home.constant(word)))
    listed = "\n".join([*constants, "", "", code] if constants else [code])
    yield f"```python\n{listed}\n```\n\n{_prose(node)}\n"


def _class(home: Module, node: ast.ClassDef) -> str:
    """A class as its decorators and fields, or as the call that makes one."""
    fields = [
        f"    {owner.source(field)}"
        for owner, base in (*_bases(home, node), (home, node))
        for field in base.body
        if isinstance(field, ast.AnnAssign) and not owner.source(field).startswith("_")
    ]
    head = f"class {node.name}"
    if not fields:
        made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return _signature(home, made[0], head, skip=1) if made else head + _written_bases(home, node)
    decorators = [f"@{home.source(decorator)}\n" for decorator in node.decorator_list]
    return "".join(decorators) + head + _written_bases(home, node) + ":\n" + "\n".join(fields)


def _written_bases(home: Module, node: ast.ClassDef) -> str:
    return f"({', '.join(map(home.source, node.bases))})" if node.bases else ""


def _bases(home: Module, node: ast.ClassDef) -> Iterator[tuple[Module, ast.ClassDef]]:
    """The base classes with fields or methods that are defined in this project, the most basic first."""
    for base in node.bases:
        name = home.source(base)
        origin = home.imports.get(name, "")
        owner = module(origin, home.root) if origin.split(".")[0] in PACKAGES else home
        found = owner.definitions.get(name)
        if isinstance(found, ast.ClassDef) and any(not isinstance(item, ast.Expr) for item in found.body):
            yield from _bases(owner, found)
            yield owner, found


def _methods(home: Module, node: ast.ClassDef, shown: str) -> Iterator[str]:
    """Public methods and properties, and those special methods that have a docstring."""
    for item in node.body:
        if not isinstance(item, ast.FunctionDef) or item.name == "__init__":
            continue
        if item.name.startswith("_") and not (item.name.endswith("__") and ast.get_docstring(item)):
            continue
        marks = [home.source(mark) for mark in item.decorator_list]
        if any(mark.endswith("property") for mark in marks):
            code = f"{shown}.{item.name}: {home.annotation(item.returns) if item.returns else 'Any'}"
        else:
            static = "staticmethod" in marks
            code = _signature(home, item, f"{shown}.{item.name}", skip=0 if static else 1)
        yield from _entry([home], code, item)


def _signature(home: Module, node: ast.FunctionDef, head: str, skip: int = 0) -> str:
    """``head``, the parameters from number ``skip`` on, and what is returned."""
    parameters = _parameters(home, node.args)[skip:]
    returned = f" -> {home.annotation(node.returns)}" if node.returns and node.name != "__init__" else ""
    line = f"{head}({', '.join(parameters)}){returned}"
    if len(line) <= WIDTH:
        return line
    return f"{head}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){returned}"


def _parameters(home: Module, args: ast.arguments) -> list[str]:
    def shown(arg: ast.arg, default: ast.expr | None = None) -> str:
        annotation = f": {home.annotation(arg.annotation)}" if arg.annotation else ""
        equals = " = " if annotation else "="
        return arg.arg + annotation + (equals + home.source(default) if default else "")

    plain = [*args.posonlyargs, *args.args]
    defaults = [None] * (len(plain) - len(args.defaults)) + args.defaults
    parts = [shown(arg, default) for arg, default in zip(plain, defaults, strict=True)]
    if args.posonlyargs:
        parts.insert(len(args.posonlyargs), "/")
    if args.vararg:
        parts.append(f"*{shown(args.vararg)}")
    elif args.kwonlyargs:
        parts.append("*")
    parts += [shown(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    return parts + ([f"**{shown(args.kwarg)}"] if args.kwarg else [])


def _prose(node: ast.Module | Definition) -> str:
    """The docstring as Markdown; raises ValueError if there is none."""
    text = ast.get_docstring(node, clean=False)
    if not text:
        raise ValueError(f"{getattr(node, 'name', 'the package')} is public and has no docstring")
    text = re.sub(r":\w+:`~?([^`]+)`", r"``\1``", inspect.cleandoc(text))
    parts = re.split(r"(``.+?``|`.+?`)", text, flags=re.DOTALL)
    code = (f"`{part.strip('`')}`" for part in parts[1::2])
    words = map(_escaped, parts[::2])
    return next(words) + "".join(f"{one}{other}" for one, other in zip(code, words, strict=True))


def _escaped(words: str) -> str:
    """Text whose asterisks and angle brackets Markdown leaves alone."""
    return re.sub(r"(?<![\s*])\*+|\*+(?![\s*])|<(?=[a-zA-Z/!])", lambda found: "".join(f"\\{sign}" for sign in found[0]), words)


if __name__ == "__main__":
    (ROOT / "docs" / "api.md").write_text(reference(), encoding="utf-8")
