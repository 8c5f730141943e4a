"""The 1284 classes, compared with the category lists of LVIS v1 and COCO-Stuff."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cocolvis.errors import DataError
from cocolvis.vocabulary import GROUPS, Vocabulary, coco_lvis

DATA = Path(__file__).parents[1] / "reference"
LVIS = json.loads((DATA / "lvis_v1_categories.json").read_text())
STUFF = dict(json.loads((DATA / "coco_stuff_categories.json").read_text()))
OTHER = 183

SHARED = {
    92: ("banner", 50),
    93: ("blanket", 110),
    98: ("cabinet", 181),
    108: ("cupboard", 346),
    109: ("curtain", 350),
    137: ("napkin", 713),
    141: ("pillow", 804),
    153: ("salad", 904),
    165: ("table", 1050),
    168: ("towel", 1108),
}


def test_ids_follow_from_the_category_lists():
    lvis = {name: category for category, name, *_ in LVIS}
    shared = {category: lvis[name] for category, name in STUFF.items() if name in lvis}
    own = [category for category in sorted(STUFF) if category not in shared and category != OTHER]
    expected = shared | dict(zip(own, range(1204, 1285), strict=True)) | {OTHER: 0}
    assert (len(lvis), len(STUFF) - 1, len(shared)) == (1203, 91, 10)
    assert coco_lvis().lookup("stuff") == expected
    assert coco_lvis().lookup("lvis") == {category: category for category in range(1, 1204)}
    assert len(coco_lvis()) == 1203 + 91 - 10 == 1284


def test_the_shared_classes_are_the_ten_published_ones():
    lookup = coco_lvis().lookup("stuff")
    for category, (name, class_id) in SHARED.items():
        assert (lookup[category], coco_lvis().name(class_id), coco_lvis()[class_id].kind) == (class_id, name, "both")
    assert [c.id for c in coco_lvis() if c.kind == "both"] == sorted(class_id for _, class_id in SHARED.values())
    assert (lookup[94], lookup[182]) == (1204, 1284)


def test_names_synsets_and_groups_match_the_sources():
    groups = {"r": "rare", "c": "common", "f": "frequent"}
    for info, (category, name, synset, frequency, images) in zip(coco_lvis(), LVIS, strict=False):
        found = (info.id, info.name, info.synset, info.group, info.images)
        assert found == (category, name, synset, groups[frequency], images)
    for info in list(coco_lvis())[1203:]:
        assert (info.name, info.kind, info.group, info.synset) == (STUFF[info.sources["stuff"]], "stuff", "stuff", None)
    assert coco_lvis().categories("stuff") == STUFF
    assert {c.group for c in coco_lvis()} == set(GROUPS)


def test_search_covers_names_and_synsets():
    assert [c.name for c in coco_lvis().search("CABINET")] == ["cabinet", "locker", "file_cabinet"]
    assert coco_lvis().search("no such thing") == []
    with pytest.raises(DataError, match=r"did you mean .*banana"):
        coco_lvis().id_of("bananna")
    assert coco_lvis().id_of("banner") == 50


def test_json_round_trip_and_edited_vocabularies():
    data = json.loads(json.dumps(coco_lvis().to_json()))
    assert Vocabulary.from_json(data).classes == coco_lvis().classes
    data["classes"][4]["name"] = "water"
    with pytest.raises(DataError, match="the classes were edited"):
        Vocabulary.from_json(data)
    with pytest.raises(DataError, match="malformed vocabulary"):
        Vocabulary.from_json({"classes": [{"class": 1}]})


def test_ids_must_have_no_gaps_and_names_must_be_unique():
    first, second = list(coco_lvis())[:2]
    with pytest.raises(DataError, match="without gaps"):
        Vocabulary([first, replace(second, id=3)])
    with pytest.raises(DataError, match="unique"):
        Vocabulary([first, replace(second, name=first.name)])
    for wrong in (0, 1285):
        with pytest.raises(DataError, match=r"ids are 1\.\.1284"):
            coco_lvis()[wrong]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names | {92: "flag"}, "category 92 is 'flag', the vocabulary has 'banner'"),
        (lambda names: names | {184: "glass"}, "category 184 is 'glass', the vocabulary has no category of this id;"),
        (lambda names: {k: v for k, v in names.items() if k != 100}, "lists 91 categories, expected 92; .* missing one is 100"),
    ],
)
def test_other_category_lists_are_refused(change, message):
    coco_lvis().check_categories("stuff", STUFF, "here")
    with pytest.raises(DataError, match=message):
        coco_lvis().check_categories("stuff", change(STUFF), "here")
