"""Cityscapes with fine annotations: the 19 classes of its benchmark in their order, all other labels unlabelled."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.disk.folders import walk
from cocolvis.importers.tables import table
from cocolvis.importers.tree import PICTURES, Told, Tree, find_root, paired
from cocolvis.sources.locations import SPLITS

EXPECTED = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"

_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def find(src: Path, splits: Collection[str]) -> Tree:
    """The tree at ``src``; a DataError where a folder of ``splits`` is missing.

    Where no file has label ids, those with train ids are read. The split test has no labels that are of use.
    """
    needed = [f"{kind}/{split}" for split in splits for kind in ("leftImg8bit", "gtFine")]
    root, told = find_root(src, needed, [], EXPECTED), Told()
    has_ids = any(path.lower().endswith(_LABEL_IDS.lower()) for split in splits for path in walk(root / "gtFine" / split).files)
    ending, source = (_LABEL_IDS, "cityscapes") if has_ids else (_TRAIN_IDS, "cityscapes_train")
    layout = {
        s: ([f"leftImg8bit/{s}/{{}}_leftImg8bit{end}" for end in reversed(PICTURES)], [f"gtFine/{s}/{{}}{ending}"])
        for s in SPLITS
    }
    return Tree(root, table("cityscapes"), source, paired(root, layout, splits, told), told)
