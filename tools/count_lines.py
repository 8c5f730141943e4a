"""Writes the lengths of the main files to read into README.md; `make generate` runs it."""

import re
from pathlib import Path

from import_graph import ROOT

ROW = re.compile(r"^\| `([\w/]+\.py)` \| (\d+) \|", re.MULTILINE)
"""A row of the table: the path of a file, and its number of lines."""


def counted(text: str, root: Path = ROOT) -> str:
    """The text of the README with the present lengths."""
    return ROW.sub(lambda row: f"| `{row[1]}` | {len((root / row[1]).read_text(encoding='utf-8').splitlines())} |", text)


def main(readme: Path = ROOT / "README.md") -> None:
    """Rewrite the table."""
    readme.write_text(counted(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
