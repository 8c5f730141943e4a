"""``cocolvis sample``: a generated COCO and LVIS tree."""

from pathlib import Path

import click

from cli.commands import command
from cli.display import progress, say
from cli.options import path_option


@command(interrupted="nothing was written")
@path_option("--out", required=True, help="Folder to write coco/ and lvis/ to.")
@click.option("--images", type=int, default=120, show_default=True, help="Images in both splits together.")
@click.option("--classes", type=int, default=120, show_default=True, help="How many of the 1284 classes occur.")
@click.option("--size", type=int, default=96, show_default=True, help="Side length of the pictures in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed writes the same bytes.")
def sample(out: Path, **settings: int) -> None:
    """Generate a COCO and LVIS tree with procedural pictures, to try everything without a download.

    \b
    Example:
      cocolvis sample --out sample && cocolvis build --coco sample/coco --lvis sample/lvis --out data
    """
    from cocolvis.sample.writer import write_sample

    with progress("sample") as show:
        write_sample(out, progress=show, **settings)
    say(f"Build it with `cocolvis build --coco {out}/coco --lvis {out}/lvis --out DIR`.")
