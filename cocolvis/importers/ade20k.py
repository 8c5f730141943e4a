"""ADE20K's scene parsing benchmark (ADEChallengeData2016): 150 classes; 0 is everything else."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.importers.tables import table
from cocolvis.importers.tree import PICTURES, Findings, Tree, find_root, paired

EXPECTED = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, as in ADEChallengeData2016.zip"

_FOLDERS = {"train": "training", "val": "validation"}


def find(src: Path, splits: Collection[str]) -> Tree:
    """The tree at ``src``; raises DataError if a folder of one of the ``splits`` is missing."""
    needed = [f"{kind}/{_FOLDERS[split]}" for split in splits for kind in ("images", "annotations")]
    root, findings = find_root(src, needed, ["ADEChallengeData2016"], EXPECTED), Findings()
    layout = {
        split: ([f"images/{name}/{{}}{ending}" for ending in PICTURES], [f"annotations/{name}/{{}}.png"])
        for split, name in _FOLDERS.items()
    }
    return Tree(root, table("ade20k"), "ade20k", paired(root, layout, splits, findings), findings)
