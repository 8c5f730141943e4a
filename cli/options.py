"""The arguments and options that commands of both command lines share."""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
"""The type of click's decorators, which add a parameter to the function of a command."""


class _GivenPath(click.Path):
    """A path; an empty one, which would mean the current folder, is wrong usage."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse an empty text; otherwise as click does."""
        if value == "":
            self.fail("the path is empty; expected a file or folder, such as . for the current one", param, ctx)
        return super().convert(value, param, ctx)


class _OutputFile(_GivenPath):
    """A file that a command writes at its end; a path that cannot be written is an error before the work begins."""

    def __init__(self, check: Callable[[Path], None]):
        super().__init__(path_type=Path)
        self._check = check

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or the file that a link there leads to; raises DataError if it cannot be written."""
        path = super().convert(value, param, ctx)
        path = Path(os.path.realpath(path)) if os.path.islink(path) else path
        self._check(path)
        return path


PATH = _GivenPath(path_type=Path)
"""The type of all paths on the command lines; commands receive a Path."""

json_option: Decorator = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")


def path_argument(name: str) -> Decorator:
    """A required positional path; commands receive a Path."""
    return click.argument(name, type=PATH, metavar=name.upper())


def path_option(*names: str, **settings: Any) -> Decorator:
    """An option that takes a path; commands receive a Path."""
    return click.option(*names, type=PATH, **settings)


def output_option(*names: str, **settings: Any) -> Decorator:
    """An option that takes the path of a file to write; commands receive a Path."""
    return click.option(*names, type=_OutputFile(_check_file), **settings)


def figure_option(*names: str, **settings: Any) -> Decorator:
    """An option that takes the path of a figure to write, in a format that matplotlib knows; commands receive a Path."""
    return click.option(*names, type=_OutputFile(_check_figure), **settings)


def _check_file(path: Path) -> None:
    from cocolvis.disk.files import check_writable

    check_writable(path)


def _check_figure(path: Path) -> None:
    from cocolvis.disk.files import check_figure

    check_figure(path)


image_root_option = path_option("--image-root", help="Folder of the pictures, for a data set built with --images path.")


first_split_option: Decorator = click.option("--split", help="Split to search first; several may have an image of this id.")


def source_options(required: bool = True) -> Decorator:
    """--coco and --lvis; commands receive a tuple of paths for each. Either both are given or, unless ``required``, none."""
    coco = "COCO folder or zip file: train2017, val2017, annotations/stuff_{train,val}2017.json. May be repeated."
    lvis = "LVIS folder or zip file: lvis_v1_{train,val}.json. May be repeated."

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def checked(*, coco: tuple[Path, ...], lvis: tuple[Path, ...], **given: Any) -> Any:
            if bool(coco) != bool(lvis):
                raise click.UsageError("--coco and --lvis are used together")
            return command(coco=coco, lvis=lvis, **given)

        with_lvis = path_option("--lvis", help=lvis, required=required, multiple=True)(checked)
        return path_option("--coco", help=coco, required=required, multiple=True)(with_lvis)

    return decorate
