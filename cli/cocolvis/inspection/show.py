"""``cocolvis show``: pictures of images and their masks."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import command
from cli.display import say
from cli.options import first_split_option, image_root_option, path_argument, path_option
from cocolvis.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from cocolvis.storage.dataset import Dataset
    from cocolvis.storage.samples import Sample


@command(interrupted="the pictures that were drawn are kept; the same command draws all of them again")
@path_argument("dir")
@click.argument("image_ids", metavar="IMAGE_ID...", type=int, nargs=-1, required=True)
@path_option("--out", required=True, help="Folder to write the pictures to.")
@first_split_option
@click.option("--class", "outlined", metavar="NAME", help="Outline this class, given by its name or its number.")
@image_root_option
def show(
    dir: Path,
    image_ids: tuple[int, ...],
    out: Path,
    split: str | None,
    outlined: str | None,
    image_root: Path | None,
) -> None:
    """Draw the image, its mask, an overlay, and a legend of all classes in the mask: one PNG per image.

    The legend gives the pixels of each class, and the classes that LVIS verified to be absent or did not annotate exhaustively.
    For a data set that was built with --images none, only the mask is drawn. `cocolvis images` lists the ids.

    \b
    Example:
      cocolvis show ~/cocolvis 139 285 --out pictures
    """
    from cocolvis.inspection.listing import class_ids
    from cocolvis.pictures.encoded import write_png
    from cocolvis.storage.dataset import Dataset

    dataset = Dataset.open(dir, image_root)
    if split is not None:
        dataset.split(split)  # raises DataError if there is none of this name
    if _has_no_pictures(dataset):
        say(f"{dir}: was built with --images none, so only the masks are drawn; --image-root adds the pictures", err=True)
    classes = class_ids(dataset.vocabulary, [] if outlined is None else [outlined])
    if len(classes) > 1:
        raise click.UsageError(f"--class outlines one class, but {outlined!r} names {len(classes)}")
    faults = []
    for image_id in dict.fromkeys(image_ids):
        path = out / f"{image_id:012d}.png"
        try:
            picture = _drawn(dataset, dataset.find(image_id, split), *classes)
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


def _drawn(dataset: "Dataset", sample: "Sample", outlined: int = 0) -> "np.ndarray":
    """The picture to write for an image, (h, w, 3) uint8 RGB."""
    from cocolvis.inspection.legend import with_legend
    from cocolvis.inspection.render import mask_alone, side_by_side

    if _has_no_pictures(dataset):
        drawn = mask_alone(sample.mask, dataset.vocabulary, outlined)
    else:
        drawn = side_by_side(sample.image(), sample.mask, dataset.vocabulary, outlined)
    return with_legend(drawn, sample, dataset.vocabulary, outlined)
