"""The command ``cocolvis``: build COCO+LVIS masks, and look at what was built."""

import click

from cli import dataset_commands
from cli.listings import print_summary
from cli.options import Group, cores, json_option, path_option, progress


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="cocolvis")
def main() -> None:
    """Merge COCO-Stuff and LVIS annotations into the 1284-class COCO+LVIS masks, and look at them."""


_coco = path_option("--coco", required=True, help="COCO folder: train2017/, val2017/, annotations/stuff_{train,val}2017.json.")
_lvis = path_option("--lvis", required=True, help="LVIS folder: lvis_v1_{train,val}.json.")


@main.command()
@_coco
@_lvis
@path_option("--out", required=True, help="Folder to write the data set to.")
@click.option(
    "--split",
    "splits",
    multiple=True,
    type=click.Choice(["train", "val"]),
    default=("train", "val"),
    help="Split to build; may be given twice. Default: both.",
)
@click.option("--limit", type=click.IntRange(min=0), help="Only the first N images of each split.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; 1 stays in this one. Default: the cores, at most 8.")
@click.option("--shard-size", type=click.IntRange(min=1), default=500, show_default=True, help="Images a shard.")
@click.option(
    "--images",
    type=click.Choice(["embed", "path", "none"]),
    default="embed",
    show_default=True,
    help="Store the pictures' bytes, only their paths, or masks alone (then no image folder is needed).",
)
@click.option(
    "--overlap",
    type=click.Choice(["first", "small-on-top"]),
    default="first",
    show_default=True,
    help="Which of two overlapping annotations of one source wins: the first in the file, or the smaller.",
)
@click.option("--compat", type=click.Choice(["essnet"]), help="Reproduce the published generator's masks, defects included.")
@click.option("--overwrite", is_flag=True, help="Replace what is in --out.")
@click.option("--resume", is_flag=True, help="Complete an interrupted build; finished shards are kept.")
@click.option("--strict", is_flag=True, help="Stop at the first fault of the input instead of reporting it.")
@json_option
def build(coco, lvis, out, splits, limit, workers, overwrite, resume, strict, as_json, **settings) -> None:
    """Build the masks of both splits into HDF5 shards.

    Faults of single records are counted, listed and stored in dataset.json; they do not end the build.

    \b
    Example:
      cocolvis build --coco ~/coco --lvis ~/lvis --out ~/cocolvis --workers 8
    """
    from cocolvis.build import build as run
    from cocolvis.dataset import Dataset
    from cocolvis.plan import BuildOptions
    from cocolvis.sources import Sources
    from cocolvis.vocabulary import coco_lvis

    options = BuildOptions(splits=tuple(dict.fromkeys(splits)), limit=limit, **settings)
    how = {"workers": workers or min(cores(), 8), "resume": resume, "overwrite": overwrite, "strict": strict}
    with progress("build") as show:
        run(Sources(coco, lvis, coco_lvis()), out, options, progress=show, **how)
    print_summary(Dataset.open(out), as_json)
    if not as_json:
        click.echo(f"\nThe data set lies in {out}; look at it with `cocolvis stats {out}` and `cocolvis show {out} IMAGE_ID`.")


@main.command()
@path_option("--out", required=True, help="Folder to write coco/ and lvis/ to.")
@click.option("--images", type=int, default=120, show_default=True, help="Images in both splits together.")
@click.option("--classes", type=int, default=120, show_default=True, help="Classes that occur, of the 1284.")
@click.option("--size", type=int, default=96, show_default=True, help="Side of the pictures in pixels.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed writes the same bytes.")
def sample(out, **settings) -> None:
    """Generate a COCO + LVIS tree with procedural pictures, to try everything without a download.

    \b
    Example:
      cocolvis sample --out sample && cocolvis build --coco sample/coco --lvis sample/lvis --out data
    """
    from cocolvis.sample import write_sample

    with progress("sample") as show:
        write_sample(out, progress=show, **settings)
    click.echo(f"Build it with `cocolvis build --coco {out}/coco --lvis {out}/lvis --out DIR`.")


for command in dataset_commands.COMMANDS:
    main.add_command(command)


if __name__ == "__main__":
    main()
