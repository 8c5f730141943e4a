"""PASCAL VOC 2012: 21 classes, of which background is the first; 255 is void. Also with the annotations of SBD, as usual."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.importers.tables import table
from cocolvis.importers.tree import OWN_DATA, PICTURES, Told, Tree, find_root, listed

EXPECTED = "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt, as in VOCdevkit/VOC2012"

_LISTS = "ImageSets/Segmentation"
_AUGMENTED = "SegmentationClassAug"
_AUGMENTED_LISTS = tuple(f"{_LISTS}/{name}.txt" for name in ("train_aug", "trainaug"))

_NAME = r"(\d{4})_(\d{6})"
_ADVICE = f"images of PASCAL VOC have names such as 2007_000032, and its 21 classes; {OWN_DATA}"


def find(src: Path, splits: Collection[str], augmented: bool = False) -> Tree:
    """The tree at ``src``; a DataError where a folder, or the list of one of the ``splits``, is missing.

    ``augmented`` takes the images of train from train_aug.txt (trainaug.txt), and their labels from SegmentationClassAug.
    """
    needed = ["JPEGImages", "SegmentationClass", *(f"{_LISTS}/{split}.txt" for split in splits)]
    root = find_root(src, needed, ["VOC2012", "VOCdevkit/VOC2012"], EXPECTED)
    pictures = [f"JPEGImages/{{}}{ending}" for ending in PICTURES]
    lists = {split: (f"{_LISTS}/{split}.txt", (pictures, ["SegmentationClass/{}.png"])) for split in splits}
    there = next((name for name in _AUGMENTED_LISTS if reading.exists(root / name) and reading.exists(root / _AUGMENTED)), None)
    if augmented and there is None:
        raise DataError(f"{root}: holds no {_AUGMENTED}/ with {' or '.join(_AUGMENTED_LISTS)}; leave out --augmented")
    if augmented and "train" in splits:
        lists["train"] = there, (pictures, [f"{_AUGMENTED}/{{}}.png", "SegmentationClass/{}.png"])
    told = Told(notes=[f"{there} is left aside; --augmented takes it"] if there and not augmented else [])
    return Tree(root, table("voc"), "voc", listed(root, lists, _NAME, _ADVICE, told), told)
