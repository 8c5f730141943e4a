"""The files of a figure: PNG and SVG, and its numbers as CSV."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cocolvis.disk.files import save_figure, write_aside


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV with a header; None becomes an empty field, and a lone surrogate an escape, as in JSON.

    Raises DataError if the file cannot be written.
    """
    with write_aside(path) as aside, aside.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def save_both(figure: Any, stem: Path) -> None:
    """Write a matplotlib figure to ``stem`` with .png and .svg; raises DataError if a file cannot be written."""
    for suffix in (".png", ".svg"):
        save_figure(figure, stem.with_suffix(suffix))
