"""COCO-Stuff 10k, version 1.1: 91 thing classes, 11 of which never occur, and 91 stuff classes; its split test becomes val."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.importers.tables import table
from cocolvis.importers.tree import PICTURES, Findings, Names, Tree, find_root, listed

EXPECTED = "images/*.jpg, annotations/*.mat (or .png) and imageLists/{train,test}.txt, as in cocostuff-10k-v1.1.zip"

_LISTS = {"train": "imageLists/train.txt", "val": "imageLists/test.txt"}

_NAMES = Names("COCO-Stuff 10k", r"COCO_(?:train|val)2014_(\d{12})", "COCO_train2014_000000000077")


def find(src: Path, splits: Collection[str]) -> Tree:
    """The tree at ``src``; raises DataError if a folder, or the list of one of the ``splits``, is missing."""
    root = find_root(src, ["images", "annotations", *(_LISTS[split] for split in splits)], ["cocostuff-10k-v1.1"], EXPECTED)
    layout = [f"images/{{}}{ending}" for ending in PICTURES], ["annotations/{}.mat", "annotations/{}.png"]
    findings = Findings()
    images = listed(root, {split: (_LISTS[split], layout) for split in splits}, _NAMES, findings)
    return Tree(root, table("cocostuff10k"), "cocostuff10k", images, findings)
