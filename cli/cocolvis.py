"""The command ``cocolvis``: build COCO+LVIS masks, and look at what was built."""

import click

from cli.listings import print_difference, print_split, print_summary
from cli.options import Group, cores, json_option, path_argument, path_option, print_json, print_table, progress


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="cocolvis-ess", prog_name="cocolvis")
def main() -> None:
    """Merge COCO-Stuff and LVIS annotations into the 1284-class COCO+LVIS masks, and look at them."""


_coco = path_option("--coco", required=True, help="COCO folder: train2017/, val2017/, annotations/stuff_{train,val}2017.json.")
_lvis = path_option("--lvis", required=True, help="LVIS folder: lvis_v1_{train,val}.json.")
_folder = path_argument("dir")


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
@_folder
@json_option
def info(dir, as_json) -> None:
    """Say what a data set holds and what its build reported.

    \b
    Example:
      cocolvis info ~/cocolvis
    """
    from cocolvis.dataset import Dataset

    print_summary(Dataset.open(dir), as_json)


@main.command()
@_folder
@json_option
@path_option("--plot", help="Also draw the histograms to this file (.png, .pdf, .svg).")
def stats(dir, as_json, plot) -> None:
    """Show the long tail: images and pixels of each class, quantiles, groups, the commonest and the rarest.

    \b
    Example:
      cocolvis stats ~/cocolvis --plot tail.png
    """
    from cocolvis import stats as module
    from cocolvis.dataset import Dataset

    dataset = Dataset.open(dir)
    found = module.statistics(dataset)
    if as_json:
        print_json(found)
    else:
        for name, split in found["splits"].items():
            print_split(name, split, len(dataset.vocabulary))
    if plot is not None:
        module.plot(found, plot)
        click.echo(f"plot: {plot}", err=True)


@main.command()
@_folder
@click.option("--oracle", is_flag=True, help="Also derive every mask again with lvis and pycocotools, and compare.")
@path_option("--coco", help="With --oracle: the COCO folder of the build.")
@path_option("--lvis", help="With --oracle: the LVIS folder of the build.")
@json_option
def verify(dir, oracle, coco, lvis, as_json) -> None:
    """Check every shard against its SHA-256, and with --oracle every mask; exit 1 on any fault.

    \b
    Example:
      cocolvis verify ~/cocolvis --oracle --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.dataset import Dataset
    from cocolvis.verify import verify as check_shards

    if len({oracle, coco is not None, lvis is not None}) > 1:
        raise click.UsageError("--oracle, --coco and --lvis go together")
    dataset = Dataset.open(dir)
    with progress("verify", "shards") as show:
        faults = check_shards(dataset, show)
    checked = {"shards": len(dataset.index["shards"])}
    if oracle and not faults:
        from cocolvis.oracle import check as check_masks

        with progress("oracle") as show:
            result = check_masks(dataset, coco, lvis, show)
        faults += result.faults()
        checked |= {"masks": result.images, "skipped_annotations": result.skipped}
    if as_json:
        print_json(checked | {"faults": faults})
    else:
        for fault in faults:
            click.echo(fault)
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in checked.items())
        click.echo(f"{counts}: {f'{len(faults)} faults' if faults else 'all as recorded'}")
    click.get_current_context().exit(1 if faults else 0)


@main.command()
@_folder
@click.option("--format", "form", type=click.Choice(["png"]), default="png", show_default=True, help="16-bit grayscale PNG.")
@path_option("--out", required=True, help="Folder to write to: OUT/{split}/{image id, 12 digits}.png.")
def export(dir, form, out) -> None:
    """Write the masks as plain files; a pixel's value is its class, 0 = unlabelled.

    \b
    Example:
      cocolvis export ~/cocolvis --format png --out ~/masks
    """
    from cocolvis.dataset import Dataset
    from cocolvis.export import export_png

    with progress("export") as show:
        count = export_png(Dataset.open(dir), out, show)
    click.echo(f"{count} masks in {out}")


@main.command()
@_folder
@click.argument("image_ids", metavar="IMAGE_ID...", type=int, nargs=-1, required=True)
@path_option("--out", required=True, help="Folder to write the pictures to.")
def show(dir, image_ids, out) -> None:
    """Draw image, mask, and an overlay with the names of the largest classes: one PNG an image.

    \b
    Example:
      cocolvis show ~/cocolvis 139 285 --out pictures
    """
    from cocolvis.dataset import Dataset
    from cocolvis.images import write_png
    from cocolvis.render import side_by_side

    dataset = Dataset.open(dir)
    for image_id in image_ids:
        sample = dataset.find(image_id)
        picture = side_by_side(sample.image(), sample.mask, dataset.vocabulary)
        path = out / f"{image_id:012d}.png"
        write_png(path, picture)
        click.echo(path)


@main.command()
@path_argument("dir_a")
@path_argument("dir_b")
@json_option
def diff(dir_a, dir_b, as_json) -> None:
    """Compare two data sets: images, pixels and classes that differ, and which class became which.

    \b
    Example:
      cocolvis diff ~/cocolvis ~/cocolvis-essnet
    """
    from cocolvis.dataset import Dataset
    from cocolvis.diff import diff as compare

    a, b = Dataset.open(dir_a), Dataset.open(dir_b)
    with progress("diff") as show:
        found = compare(a, b, show)
    print_difference(found, a.vocabulary, b.vocabulary, as_json)


@main.command()
@click.option("--search", metavar="TEXT", help="Only classes whose name or synset contains TEXT.")
@json_option
def vocab(search, as_json) -> None:
    """List the 1284 classes: name, kind, frequency group, synset and source categories.

    \b
    Example:
      cocolvis vocab --search cabinet
    """
    from cocolvis.vocabulary import coco_lvis

    vocabulary = coco_lvis()
    classes = list(vocabulary) if search is None else vocabulary.search(search)
    if as_json:
        print_json({"classes": [c.to_json() for c in classes]})
        return
    sources = (" ".join(f"{source}:{category}" for source, category in c.sources.items()) for c in classes)
    rows = [(str(c.id), c.name, c.kind, c.group, c.synset, s) for c, s in zip(classes, sources, strict=True)]
    print_table(("class", "name", "kind", "group", "synset", "sources"), rows)


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


if __name__ == "__main__":
    main()
