"""PASCAL VOC 2012: 21 classes, of which background is the first; 255 is void. Also with the annotations of SBD, as usual."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.errors import DataError
from cocolvis.importers.tables import table
from cocolvis.importers.tree import Tree, find_root, listed

EXPECTED = "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt, as in VOCdevkit/VOC2012"

_LISTS = "ImageSets/Segmentation"
_AUGMENTED = "SegmentationClassAug"
_AUGMENTED_LISTS = tuple(f"{_LISTS}/{name}.txt" for name in ("train_aug", "trainaug"))

_NAME = r"(\d{4})_(\d{6})"


def find(src: Path, splits: Collection[str], augmented: bool = False) -> Tree:
    """The tree at ``src``; a DataError where a folder, or the list of one of the ``splits``, is missing.

    ``augmented`` takes the images of train from train_aug.txt (trainaug.txt), and their labels from SegmentationClassAug.
    """
    needed = ["JPEGImages", "SegmentationClass", *(f"{_LISTS}/{split}.txt" for split in splits)]
    root = find_root(src, needed, ["VOC2012", "VOCdevkit/VOC2012"], EXPECTED)
    lists, labels = (
        {split: f"{_LISTS}/{split}.txt" for split in splits},
        {split: ["SegmentationClass/{}.png"] for split in splits},
    )
    there = next((name for name in _AUGMENTED_LISTS if (root / name).exists() and (root / _AUGMENTED).exists()), None)
    if augmented and there is None:
        raise DataError(f"{root}: {_AUGMENTED}/ or {' or '.join(_AUGMENTED_LISTS)} is missing; leave out --augmented")
    if augmented and "train" in splits:
        lists["train"], labels["train"] = there, [f"{_AUGMENTED}/{{}}.png", "SegmentationClass/{}.png"]
    notes = [f"{there} is left aside; --augmented takes it"] if there and not augmented else []
    faults = []
    images = {split: listed(root, lists[split], _NAME, "JPEGImages/{}.jpg", labels[split], faults) for split in splits}
    return Tree("voc", root, table("voc"), "voc", images, faults, notes)
