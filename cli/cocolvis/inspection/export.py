"""``cocolvis export``: masks as PNG files."""

from pathlib import Path

import click

from cli.commands import command
from cli.display import progress, say
from cli.options import path_argument, path_option
from cocolvis.limits import cores


@command(interrupted="the masks that were written are kept: continue with --resume")
@path_argument("dir")
@click.option("--format", "form", type=click.Choice(["png"]), default="png", show_default=True, help="16-bit grayscale PNG.")
@path_option("--out", required=True, help="Folder to write to: OUT/{split}/{image id, 12 digits}.png.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads. Default: the number of cores, at most 8.")
@click.option("--resume", is_flag=True, help="Complete an interrupted export; finished masks are kept.")
@click.option("--overwrite", is_flag=True, help="Replace the masks of another data set in --out.")
def export(dir: Path, form: str, out: Path, workers: int | None, resume: bool, overwrite: bool) -> None:
    """Write the masks as plain files; the value of a pixel is its class, 0 = unlabelled.

    \b
    Example:
      cocolvis export ~/cocolvis --format png --out ~/masks
    """
    from cocolvis.inspection.export import export_png
    from cocolvis.storage.dataset import Dataset

    dataset, threads = Dataset.open(dir), workers or min(cores(), 8)
    with progress("export") as show:
        how = {"resume": resume, "overwrite": overwrite}
        count = export_png(dataset, out, show, workers=threads, announce=show.line, **how)
    say(f"{count} masks in {out}")
