"""Cityscapes with fine annotations: the 19 classes of its benchmark in their order, all other labels unlabelled."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.importers.tables import table
from cocolvis.importers.tree import Tree, find_root, paired
from cocolvis.locations import SPLITS

EXPECTED = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"

_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def find(src: Path, splits: Collection[str]) -> Tree:
    """The tree at ``src``; a DataError where a folder of ``splits`` is missing.

    Where no file has label ids, those with train ids are read. The split test has no labels that are of use.
    """
    needed = [f"{kind}/{split}" for split in splits for kind in ("leftImg8bit", "gtFine")]
    root, faults = find_root(src, needed, [], EXPECTED), []
    has_ids = any(next((root / "gtFine" / split).glob(f"*/*{_LABEL_IDS}"), None) for split in SPLITS)
    ending, source = (_LABEL_IDS, "cityscapes") if has_ids else (_TRAIN_IDS, "cityscapes_train")
    layout = {s: ([f"leftImg8bit/{s}/{{}}_leftImg8bit.png"], [f"gtFine/{s}/{{}}{ending}"]) for s in SPLITS}
    return Tree(root, table("cityscapes"), source, paired(root, layout, faults), faults)
