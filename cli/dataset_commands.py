"""The commands of ``cocolvis`` that look at a built data set."""

import click

from cli.listings import print_difference, print_explanation, print_split, print_summary
from cli.options import cores, json_option, path_argument, path_option, print_json, print_table, progress, source_options
from cocolvis.errors import DataError

_folder = path_argument("dir")


@click.command()
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


@click.command()
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


@click.command()
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


@click.command()
@_folder
@click.option("--oracle", is_flag=True, help="Also derive every mask again with lvis and pycocotools, and compare.")
@source_options(required=False)
@click.option("--decode", is_flag=True, help="Also look for damage inside every picture, on all cores.")
@path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")
@json_option
def verify(dir, oracle, coco, lvis, decode, image_root, as_json) -> None:
    """Check every shard and every image against its digest, and with --oracle every mask; exit 1 on any fault.

    \b
    Example:
      cocolvis verify ~/cocolvis --oracle --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.dataset import Dataset
    from cocolvis.verify import check_pictures
    from cocolvis.verify import verify as check_shards

    if len({oracle, bool(coco), bool(lvis)}) > 1:
        raise click.UsageError("--oracle, --coco and --lvis go together")
    dataset = Dataset.open(dir, image_root)
    with progress("verify", "shards") as show:
        faults = check_shards(dataset, show)
    checked = {"shards": len(dataset.index["shards"])}
    damaged = []
    if decode:
        with progress("decode") as show:
            damaged = [fault for fault in check_pictures(dataset, cores(), show) if fault not in faults]
        checked |= {"pictures": sum(dataset.splits.values())}
    if oracle and not faults:
        from cocolvis.oracle import check as check_masks

        with progress("oracle") as show:
            result = check_masks(dataset, coco, lvis, show)
        faults += result.faults()
        checked |= {"masks": result.images, "skipped_annotations": result.skipped}
    faults += damaged
    if as_json:
        print_json(checked | {"faults": faults})
    else:
        for fault in faults:
            click.echo(fault)
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in checked.items())
        click.echo(f"{counts}: {f'{len(faults)} faults' if faults else 'all as recorded'}")
    click.get_current_context().exit(1 if faults else 0)


@click.command()
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


@click.command()
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


@click.command()
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


@click.command()
@_folder
@click.argument("image_id", type=int)
@click.argument("x", type=int)
@click.argument("y", type=int)
@source_options()
@json_option
def why(dir, image_id, x, y, coco, lvis, as_json) -> None:
    """Say which annotation gave a pixel its class, and which it hides; exit 1 where the mask says otherwise.

    X is the pixel's column and Y its row, counted from 0 at the top left.

    \b
    Example:
      cocolvis why ~/cocolvis 139 320 240 --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.dataset import Dataset
    from cocolvis.sources import Sources
    from cocolvis.vocabulary import coco_lvis
    from cocolvis.why import why as explain

    found = explain(Dataset.open(dir), Sources(coco, lvis, coco_lvis()), image_id, x, y)
    print_explanation(found, as_json)
    if found.fault:
        raise DataError(found.fault)


COMMANDS = (info, vocab, stats, verify, diff, export, show, why)
