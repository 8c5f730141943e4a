"""``cocolvis info``: the summary of a data set."""

from pathlib import Path

from cli.cocolvis.inspection.summary import print_summary
from cli.commands import UNCHANGED, command
from cli.options import json_option, path_argument


@command(interrupted=UNCHANGED)
@path_argument("dir")
@json_option
def info(dir: Path, as_json: bool) -> None:
    """Print the contents of a data set and the report of its build.

    \b
    Example:
      cocolvis info ~/cocolvis
    """
    from cocolvis.storage.dataset import Dataset

    print_summary(Dataset.open(dir), as_json)
