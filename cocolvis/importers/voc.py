"""PASCAL VOC 2012: 21 classes, the first is background; 255 is void. Optionally with the annotations of SBD."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.disk import reading
from cocolvis.errors import DataError
from cocolvis.importers.tables import table
from cocolvis.importers.tree import PICTURES, Findings, Names, Tree, find_root, listed

EXPECTED = "JPEGImages/*.jpg, SegmentationClass/*.png and ImageSets/Segmentation/{train,val}.txt, as in VOCdevkit/VOC2012"

_LISTS = "ImageSets/Segmentation"
_AUGMENTED = "SegmentationClassAug"
_AUGMENTED_LISTS = tuple(f"{_LISTS}/{name}.txt" for name in ("train_aug", "trainaug"))

_NAMES = Names("PASCAL VOC", r"(\d{4})_(\d{6})", "2007_000032")


def find(src: Path, splits: Collection[str], augmented: bool = False) -> Tree:
    """The tree at ``src``; raises DataError if a folder, or the list of one of the ``splits``, is missing.

    With ``augmented``, train_aug.txt or trainaug.txt lists the images of train, and SegmentationClassAug has their labels; they
    are only needed if train is one of the ``splits``.
    """
    needed = ["JPEGImages", "SegmentationClass", *(f"{_LISTS}/{split}.txt" for split in splits)]
    root = find_root(src, needed, ["VOC2012", "VOCdevkit/VOC2012"], EXPECTED)
    pictures = [f"JPEGImages/{{}}{ending}" for ending in PICTURES]
    lists = {split: (f"{_LISTS}/{split}.txt", (pictures, ["SegmentationClass/{}.png"])) for split in splits}
    findings = Findings()
    if "train" in splits:
        usable = [name for name in _AUGMENTED_LISTS if reading.exists(root / name) and reading.exists(root / _AUGMENTED)]
        if augmented and not usable:
            raise DataError(f"{root}: holds no {_AUGMENTED}/ with {' or '.join(_AUGMENTED_LISTS)}; leave out --augmented")
        if augmented:
            lists["train"] = usable[0], (pictures, [f"{_AUGMENTED}/{{}}.png", "SegmentationClass/{}.png"])
        elif usable:
            findings.notes.append(f"{usable[0]} is not used; --augmented takes it")
    return Tree(root, table("voc"), "voc", listed(root, lists, _NAMES, findings), findings)
