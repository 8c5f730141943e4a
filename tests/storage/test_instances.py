"""The recorded numbers of instances: those of lvis, by the documented rule, in no digest, and absent where nothing has any."""

import json

import pytest
from click.testing import CliRunner
from import_trees import folder_of_export
from instances import counted, without_instances
from trees import box

from cli.cocolvis import main
from cocolvis.inspection import oracle
from cocolvis.inspection.stats import statistics
from cocolvis.inspection.verify import verify
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


@pytest.mark.parametrize("source", ["sample", "real"])
def test_every_image_has_the_instances_that_lvis_counts(source, request):
    built = request.getfixturevalue(source)
    data = Dataset.open(built.data)
    for name in data.splits:
        split, expected = data.split(name), counted(data, built.lvis, name)
        for row, image_id in enumerate(split.image_ids().tolist()):
            assert split.instances_of(row) == split[row].instances == expected[image_id]
        assert split.instances().tolist() == [n for of_image in expected.values() for n in of_image.values()]
        assert sum(map(bool, split.instances())) > 20 and 0 in split.instances()


SHARED = next(c for c in coco_lvis() if c.kind == "both")
STUFF_OF = {class_id: category for category, class_id in coco_lvis().lookup("stuff").items()}


@pytest.mark.parametrize("options", [{}, {"overlap": "small-on-top"}, {"compat": "essnet"}], ids=str)
def test_what_counts_as_an_instance(tree, options):
    """Everything painted counts, seen or hidden; what covers nothing or is left out does not, nor does stuff."""
    for image_id in (1, 2):
        tree.image(image_id)
        tree.stuff(image_id, STUFF_OF[SHARED.id], box(0, 0, 8, 1))
        tree.stuff(image_id, 169, box(0, 1, 8, 1))
    tree.thing(1, 3, box(0, 2, 8, 2))
    tree.thing(1, 3, box(1, 2, 2, 1))  # hidden by the one before, or hides a part of it
    tree.thing(1, 3, box(9, 9, 4, 4))  # outside the picture
    tree.thing(1, 3, [[1, 2]])  # malformed
    tree.thing(1, 5000, box(0, 0, 1, 1))  # of no known category
    tree.thing(1, 7, box(0, 4, 4, 4))
    records = tree.json["lvis_v1_train"]["annotations"]
    records[-1]["iscrowd"] = 1
    records.append(dict(records[-1]))  # repeated, with the same id
    tree.thing(1, 8, box(4, 4, 4, 4))
    tree.thing(1, 9, box(4, 4, 4, 4))  # covered completely, so its class is not in the mask
    tree.thing(2, SHARED.id, box(0, 7, 8, 1))
    data = tree.build(**options)
    masks = {image_id: data.find(image_id).mask for image_id in (1, 2)}
    expected = {1: {3: 2, 7: 2, 8: 1}, 2: {SHARED.id: 1}}
    for image_id, counts in expected.items():
        present = sorted({*masks[image_id].ravel().tolist()} - {0})
        assert data.find(image_id).instances == {c: counts.get(c, 0) for c in present}
        assert 9 not in present and len(present) > len(counts)
    assert oracle.check(data, tree.coco, tree.lvis).faults() == [] == verify(data)


def test_digests_are_the_same_with_and_without_instances(sample, tmp_path):
    whole = Dataset.open(sample.data)
    with without_instances():
        earlier = sample.rebuild(tmp_path / "data", shard_size=15)
    assert earlier.index["digest"] == whole.index["digest"]
    for name in whole.splits:
        for one, other in zip(earlier.split(name).shards(), whole.split(name).shards(), strict=True):
            assert one.digests().tolist() == other.digests().tolist()
            assert [one.digest(row) for row in range(len(one))] == [other.digest(row) for row in range(len(other))]
    hashes = [[entry["checksum"] for entry in data.index["shards"]] for data in (whole, earlier)]
    assert not {*hashes[0]} & {*hashes[1]}
    assert whole.records_instances and not earlier.records_instances and "instances" not in earlier.index
    assert earlier.split("val").instances() is earlier.split("val")[0].instances is None
    assert verify(earlier) == [] == oracle.check(earlier, sample.coco, sample.lvis).faults()


def test_an_import_has_none_and_the_summary_says_so(sample, tmp_path):
    made = folder_of_export(tmp_path / "src")
    command = [*map(str, made.arguments(tmp_path / "data", "--workers", 1))]
    assert "instances not recorded" in CliRunner().invoke(main, command).stdout
    data = Dataset.open(tmp_path / "data")
    assert not data.records_instances and verify(data) == []
    assert {split["instances"] for split in statistics(data)["splits"].values()} == {None}
    assert "instances: not recorded in this data set" in CliRunner().invoke(main, ["stats", str(data.folder)]).stdout
    said = CliRunner().invoke(main, ["info", str(sample.data)]).stdout
    assert "instances recorded" in said
    assert json.loads(CliRunner().invoke(main, ["info", "--json", str(sample.data)]).stdout)["instances"] is True
    said = CliRunner().invoke(main, ["stats", str(sample.data), "--class", "1"]).stdout
    counts = {name: split["instances"] for name, split in statistics(Dataset.open(sample.data))["splits"].items()}
    shown = CliRunner().invoke(main, ["stats", str(sample.data)]).stdout
    assert f"instances: train {counts['train']:,}, val {counts['val']:,}" in shown
