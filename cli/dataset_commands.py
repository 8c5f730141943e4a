"""The commands of ``cocolvis`` that look at a built data set."""

from typing import TYPE_CHECKING, Any

import click

from cli.display import BYTES, print_json, print_table, progress, say, say_fields
from cli.listings import print_difference, print_explanation, print_split, print_summary
from cli.options import UNCHANGED, command, cores, json_option, path_argument, path_option, source_options
from cocolvis.errors import DataError

if TYPE_CHECKING:
    from cocolvis.storage.dataset import Dataset

_folder = path_argument("dir")
_image_root = path_option("--image-root", help="Where the pictures lie, for a data set built with --images path.")


@command(interrupted=UNCHANGED)
@_folder
@json_option
def info(dir, as_json) -> None:
    """Say what a data set holds and what its build reported.

    \b
    Example:
      cocolvis info ~/cocolvis
    """
    from cocolvis.storage.dataset import Dataset

    print_summary(Dataset.open(dir), as_json)


@command(interrupted=UNCHANGED)
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


@command(interrupted=UNCHANGED)
@_folder
@click.option("--split", help="Only the images of this split.")
@click.option("--class", "classes", multiple=True, metavar="NAME,...", help="Only images that show all these classes.")
@click.option("--any", "any_of", is_flag=True, help="With --class: images that show at least one of them.")
@json_option
def images(dir, split, classes, any_of, as_json) -> None:
    """List the images of a data set, or those that show some classes: id, split and path, with a tab between them.

    A class is named, or given by its number; --class may be repeated.

    \b
    Example:
      cocolvis images ~/cocolvis --split val --class cat,couch
    """
    from cocolvis.inspection.listing import class_ids
    from cocolvis.inspection.listing import images as listed
    from cocolvis.storage.dataset import Dataset

    if any_of and not classes:
        raise click.UsageError("--any goes with --class")
    dataset = Dataset.open(dir)
    found = listed(dataset, split, class_ids(dataset.vocabulary, classes), any_of=any_of)
    if as_json:
        print_json({"images": [{"image": image.image_id, "split": image.split, "path": image.path} for image in found]})
        return
    for image in found:
        say_fields(*image)


@command(interrupted=UNCHANGED)
@_folder
@json_option
@path_option("--plot", help="Also draw the histograms to this file (.png, .pdf, .svg).")
def stats(dir, as_json, plot) -> None:
    """Show the long tail: images and pixels of each class, quantiles, groups, the commonest and the rarest.

    \b
    Example:
      cocolvis stats ~/cocolvis --plot tail.png
    """
    from cocolvis.inspection import stats as module
    from cocolvis.storage.dataset import Dataset

    dataset = Dataset.open(dir)
    with progress("stats") as show:
        found = module.statistics(dataset, show)
    if as_json:
        print_json(found)
    else:
        for name, split in found["splits"].items():
            print_split(name, split, len(dataset.vocabulary))
    if plot is not None:
        module.plot(found, plot)
        say(f"plot: {plot}", err=True)


@command(interrupted=UNCHANGED)
@_folder
@click.option("--oracle", is_flag=True, help="Also derive every mask again with lvis and pycocotools, and compare.")
@source_options(required=False)
@click.option("--decode", is_flag=True, help="Also look for damage inside every picture, on all cores.")
@_image_root
@json_option
def verify(dir, oracle, coco, lvis, decode, image_root, as_json) -> None:
    """Check every shard and every image against its digest, and with --oracle every mask; exit 1 on any fault.

    \b
    Example:
      cocolvis verify ~/cocolvis --oracle --coco ~/coco --lvis ~/lvis
    """
    from cocolvis.inspection.verify import check_pictures
    from cocolvis.inspection.verify import verify as check_shards
    from cocolvis.storage.dataset import Dataset

    if len({oracle, bool(coco), bool(lvis)}) > 1:
        raise click.UsageError("--oracle, --coco and --lvis go together")
    dataset = Dataset.open(dir, image_root)
    with progress("verify", BYTES) as show:
        faults = check_shards(dataset, show)
    checked = {"shards": len(dataset.index["shards"])}
    damaged = []
    if decode:
        with progress("decode") as show:
            damaged = [fault for fault in check_pictures(dataset, cores(), show) if fault not in faults]
        checked |= {"pictures": sum(dataset.splits.values())}
    if oracle and not faults:
        from cocolvis.inspection.oracle import check as check_masks

        with progress("oracle") as show:
            result = check_masks(dataset, coco, lvis, show, show.phase)
        faults += result.faults()
        checked |= {"masks": result.images, "skipped_annotations": result.skipped}
    faults += damaged
    if as_json:
        print_json(checked | {"faults": faults})
    else:
        for fault in faults:
            say(fault)
        counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in checked.items())
        say(f"{counts}: {f'{len(faults)} faults' if faults else 'all as recorded'}")
    click.get_current_context().exit(1 if faults else 0)


@command(interrupted=UNCHANGED)
@path_argument("dir_a")
@path_argument("dir_b")
@json_option
def diff(dir_a, dir_b, as_json) -> None:
    """Compare two data sets: images, pixels and classes that differ, and which class became which.

    \b
    Example:
      cocolvis diff ~/cocolvis ~/cocolvis-essnet
    """
    from cocolvis.inspection.diff import diff as compare
    from cocolvis.storage.dataset import Dataset

    a, b = Dataset.open(dir_a), Dataset.open(dir_b)
    with progress("diff") as show:
        show.phase("reading the image ids", 0, 0)
        found = compare(a, b, show)
    print_difference(found, a.vocabulary, b.vocabulary, as_json)


@command(interrupted="the masks that were written stay: go on with --resume")
@_folder
@click.option("--format", "form", type=click.Choice(["png"]), default="png", show_default=True, help="16-bit grayscale PNG.")
@path_option("--out", required=True, help="Folder to write to: OUT/{split}/{image id, 12 digits}.png.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads. Default: the cores, at most 8.")
@click.option("--resume", is_flag=True, help="Complete an interrupted export; masks that are whole are kept.")
@click.option("--overwrite", is_flag=True, help="Replace the masks of another data set that are in --out.")
def export(dir, form, out, workers, resume, overwrite) -> None:
    """Write the masks as plain files; a pixel's value is its class, 0 = unlabelled.

    \b
    Example:
      cocolvis export ~/cocolvis --format png --out ~/masks
    """
    from cocolvis.inspection.export import export_png
    from cocolvis.storage.dataset import Dataset

    dataset, workers = Dataset.open(dir), workers or min(cores(), 8)
    with progress("export") as show:
        count = export_png(dataset, out, show, workers=workers, resume=resume, overwrite=overwrite)
    say(f"{count} masks in {out}")


@command(interrupted="the pictures that were drawn stay; the same command draws all")
@_folder
@click.argument("image_ids", metavar="IMAGE_ID...", type=int, nargs=-1, required=True)
@path_option("--out", required=True, help="Folder to write the pictures to.")
@_image_root
def show(dir, image_ids, out, image_root) -> None:
    """Draw image, mask, and an overlay with the names of the largest classes: one PNG an image.

    Of a data set that was built with --images none the mask alone. `cocolvis images` lists the ids.

    \b
    Example:
      cocolvis show ~/cocolvis 139 285 --out pictures
    """
    from cocolvis.pictures.encoded import write_png
    from cocolvis.storage.dataset import Dataset

    dataset = Dataset.open(dir, image_root)
    if _has_no_pictures(dataset):
        say(f"{dir}: was built with --images none, so the masks are drawn alone; with --image-root the pictures too", err=True)
    faults = []
    for image_id in dict.fromkeys(image_ids):
        path = out / f"{image_id:012d}.png"
        try:
            picture = _drawn(dataset, image_id)
        except DataError as error:
            faults.append(str(error))
            continue
        write_png(path, picture)
        say(path)
    for fault in faults:
        say(f"Error: {fault}", err=True)
    click.get_current_context().exit(1 if faults else 0)


def _has_no_pictures(dataset: "Dataset") -> bool:
    return dataset.index["options"]["images"] == "none" and dataset.image_root is None


def _drawn(dataset: "Dataset", image_id: int) -> Any:
    """The picture of an image that ``show`` writes, (h, w, 3) uint8 RGB."""
    from cocolvis.inspection.render import mask_alone, side_by_side

    sample = dataset.find(image_id)
    if _has_no_pictures(dataset):
        return mask_alone(sample.mask, dataset.vocabulary)
    return side_by_side(sample.image(), sample.mask, dataset.vocabulary)


@command(interrupted=UNCHANGED)
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
    from cocolvis.inspection.why import why as explain
    from cocolvis.sources.inputs import Sources
    from cocolvis.storage.dataset import Dataset
    from cocolvis.vocabulary import coco_lvis

    with progress("why") as show:
        found = explain(Dataset.open(dir), Sources(coco, lvis, coco_lvis(), show.line, show.phase), image_id, x, y)
    print_explanation(found, as_json)
    if found.fault:
        raise DataError(found.fault)


COMMANDS = (info, vocab, images, stats, verify, diff, export, show, why)
