"""``cocolvis join``: one data set from shards that were built in parts."""

from pathlib import Path

import click

from cli.cocolvis.creation.options import ALLOW_MISSING
from cli.cocolvis.inspection.summary import print_summary
from cli.commands import command
from cli.display import progress
from cli.options import json_option, path_argument


@command(interrupted="the shards are unchanged; run the same command to start over")
@path_argument("dir")
@click.option("--allow-missing", is_flag=True, help=ALLOW_MISSING)
@json_option
def join(dir: Path, allow_missing: bool, as_json: bool) -> None:
    """Complete a data set whose shards were built in parts, with `build --shard I/N` or `import ... --shard I/N`.

    \b
    Example:
      cocolvis join ~/cocolvis
    """
    from cocolvis.building.build import join as complete
    from cocolvis.storage.dataset import Dataset

    with progress("join", "shards") as show:
        complete(dir, show.line, show.phase, allow_missing=allow_missing)
    print_summary(Dataset.open(dir), as_json)
