"""``cocolvis show``: pictures of images and their masks."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.commands import command
from cli.display import say
from cli.options import image_root_option, path_argument, path_option
from cocolvis.errors import DataError

if TYPE_CHECKING:
    import numpy as np

    from cocolvis.storage.dataset import Dataset


@command(interrupted="the pictures that were drawn are kept; the same command draws all of them again")
@path_argument("dir")
@click.argument("image_ids", metavar="IMAGE_ID...", type=int, nargs=-1, required=True)
@path_option("--out", required=True, help="Folder to write the pictures to.")
@image_root_option
def show(dir: Path, image_ids: tuple[int, ...], out: Path, image_root: Path | None) -> None:
    """Draw the image, its mask, and an overlay with the names of the largest classes: one PNG per image.

    For a data set that was built with --images none, only the mask is drawn. `cocolvis images` lists the ids.

    \b
    Example:
      cocolvis show ~/cocolvis 139 285 --out pictures
    """
    from cocolvis.pictures.encoded import write_png
    from cocolvis.storage.dataset import Dataset

    dataset = Dataset.open(dir, image_root)
    if _has_no_pictures(dataset):
        say(f"{dir}: was built with --images none, so only the masks are drawn; --image-root adds the pictures", err=True)
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


def _drawn(dataset: "Dataset", image_id: int) -> "np.ndarray":
    """The picture to write for an image, (h, w, 3) uint8 RGB."""
    from cocolvis.inspection.render import mask_alone, side_by_side

    sample = dataset.find(image_id)
    if _has_no_pictures(dataset):
        return mask_alone(sample.mask, dataset.vocabulary)
    return side_by_side(sample.image(), sample.mask, dataset.vocabulary)
