"""A figure on disk: PNG, SVG and its numbers as CSV, and the index that lists all figures of a folder."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cocolvis.disk.files import write_json
from cocolvis.figures.files import save_both, write_table

INDEX = "figures.json"
"""The file that lists the figures of a folder."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure that was written.

    ``name`` is the stem of its files, ``title`` a few words, and ``caption`` one or more sentences that say what it shows and
    how it was made, as plain text. ``csv`` has its numbers, and is None only if it has none.
    """

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    csv: Path | None

    def to_json(self) -> dict[str, str | None]:
        """As in the index: paths are names of files in the folder."""
        files = {"png": self.png.name, "svg": self.svg.name, "csv": self.csv.name if self.csv else None}
        return {"name": self.name, "title": self.title, "caption": self.caption} | files


def write_figure(
    folder: Path, name: str, title: str, caption: str, drawn: Any, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> Figure:
    """Write a matplotlib figure and the table of its numbers; raises DataError if a file cannot be written."""
    stem = folder / name
    write_table(stem.with_suffix(".csv"), columns, rows)
    save_both(drawn, stem)
    return Figure(name, title, caption, *(stem.with_suffix(suffix) for suffix in (".png", ".svg", ".csv")))


def write_index(folder: Path, figures: Sequence[Figure], left_out: Sequence[str], about: dict[str, Any]) -> None:
    """Write the index: the run and the data set that are ``about``, the figures, and why others were left out."""
    listed = {"figures": [figure.to_json() for figure in figures], "left_out": [*left_out]}
    write_json(folder / INDEX, about | listed)
