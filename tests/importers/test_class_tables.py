"""The class tables of the data sets that can be imported, compared with published lists."""

import pytest
from import_trees import CITYSCAPES
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights

from cocolvis.importers.tables import table
from cocolvis.vocabulary import KINDS, Vocabulary, coco_lvis

COCO_STUFF_MISSING = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
"""The thing categories that COCO numbered and then dropped."""


@pytest.mark.parametrize(("name", "classes"), [("ade20k", 150), ("cityscapes", 19), ("voc", 21), ("cocostuff10k", 182)])
def test_the_tables_are_vocabularies(name, classes):
    vocabulary = table(name)
    assert len(vocabulary) == classes
    assert {c.kind for c in vocabulary} == {"thing", "stuff"} < set(KINDS) and not any(c.group for c in vocabulary)
    assert Vocabulary.from_json(vocabulary.to_json()).digest == vocabulary.digest


def test_names_match_the_published_ones():
    voc = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]
    assert [c.name for c in table("voc")] == ["background", *voc[1:]]
    coco = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    things, stuff = [c.name for c in table("cocostuff10k")][:91], [c.name for c in table("cocostuff10k")][91:]
    assert {i for i in range(1, 91) if coco[i] == "N/A"} | {91} == COCO_STUFF_MISSING
    assert all(things[i - 1] == coco[i] for i in range(1, 91) if i not in COCO_STUFF_MISSING)
    assert [things[i - 1] for i in sorted(COCO_STUFF_MISSING)] == [
        "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush",
    ]  # fmt: skip
    assert all(stuff[c.sources["stuff"] - 92] == c.name for c in coco_lvis() if c.kind == "stuff")


def test_labels_of_cityscapes():
    vocabulary = table("cityscapes")
    known, train = vocabulary.lookup("cityscapes"), vocabulary.lookup("cityscapes_train")
    assert {label: c for label, c in known.items() if c} == CITYSCAPES and set(known) == set(range(34))
    assert train == {n: n + 1 for n in range(19)} | {255: 0}
    things = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
    assert [c.name for c in vocabulary if c.kind == "thing"] == things


def test_labels_of_the_others():
    assert table("ade20k").lookup("ade20k") == {n: n for n in range(151)}
    assert sum(c.kind == "thing" for c in table("ade20k")) == 100
    assert [table("ade20k").name(n) for n in (1, 13, 21, 75, 150)] == ["wall", "person", "car", "computer", "flag"]
    assert table("voc").lookup("voc") == {n: n + 1 for n in range(21)} | {255: 0}
    assert table("cocostuff10k").lookup("cocostuff10k") == {n: n for n in range(183)}
