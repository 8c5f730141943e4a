"""Cityscapes with fine annotations: the 19 classes of its benchmark in their order; all other labels are ignored."""

from collections.abc import Collection
from pathlib import Path

from cocolvis.disk.folders import walk
from cocolvis.importers.tables import table
from cocolvis.importers.tree import PICTURES, Findings, Tree, find_root, paired
from cocolvis.sources.locations import SPLITS

EXPECTED = "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png"

_LABEL_IDS, _TRAIN_IDS = "_gtFine_labelIds.png", "_gtFine_labelTrainIds.png"


def find(src: Path, splits: Collection[str]) -> Tree:
    """The tree at ``src``; raises DataError if a folder of one of the ``splits`` is missing.

    Files with label ids are read, or those with train ids if there are none. The split test is not used: its labels are not
    public.
    """
    needed = [f"{kind}/{split}" for split in splits for kind in ("leftImg8bit", "gtFine")]
    root, findings = find_root(src, needed, [], EXPECTED), Findings()
    has_ids = any(path.lower().endswith(_LABEL_IDS.lower()) for split in splits for path in walk(root / "gtFine" / split).files)
    ending, source = (_LABEL_IDS, "cityscapes") if has_ids else (_TRAIN_IDS, "cityscapes_train")
    layout = {
        s: ([f"leftImg8bit/{s}/{{}}_leftImg8bit{end}" for end in reversed(PICTURES)], [f"gtFine/{s}/{{}}{ending}"])
        for s in SPLITS
    }
    return Tree(root, table("cityscapes"), source, paired(root, layout, splits, findings), findings)
