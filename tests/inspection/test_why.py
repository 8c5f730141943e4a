"""Explanations of pixels: hand-made overlaps, and comparison with the annotations that cover a pixel by pycocotools."""

import json
import re
import zipfile
from functools import cache

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools import mask as coco_mask
from trees import box

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.inspection import why as module
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

TREE, SKY, OTHER = 169, 157, 183
"""Stuff categories: tree and sky-other, which are the classes 1271 and 1261, and "other", which has no class."""


def why(data, sources, image_id, x, y):
    """The explanation of a pixel of the first image with this id."""
    return module.why(data, sources, data.locate(image_id), x, y)


def covering(found):
    """The annotation ids from top to bottom, after a check that only the first one shows."""
    assert [layer.shows for layer in found.layers] == [place == 0 for place in range(len(found.layers))]
    return [layer.annotation_id for layer in found.layers]


@pytest.fixture
def overlapping(tree):
    """Image 1: a large and a small thing over a large and a small stuff region, all of which cover x 3, y 2."""
    tree.image(1)
    ids = [tree.stuff(1, SKY, box(0, 0, 8, 4)), tree.stuff(1, TREE, box(2, 1, 3, 3))]
    return [*ids, tree.thing(1, 793, box(1, 0, 6, 6)), tree.thing(1, 3, box(3, 2, 2, 1))]


@pytest.mark.parametrize(("overlap", "order"), [("first", (2, 3, 0, 1)), ("small-on-top", (3, 2, 1, 0))])
def test_layers_are_in_the_order_of_the_build(tree, overlapping, overlap, order):
    data = tree.build(overlap=overlap)
    found = why(data, tree.sources(), 1, 3, 2)
    assert covering(found) == [overlapping[i] for i in order]
    assert found.stored == found.derived == found.layers[0].class_id == data.find(1).mask[2, 3] and found.fault is None
    assert (found.split, found.path, found.height, found.width) == ("train", "train2017/000000000001.jpg", 8, 8)
    by_id = {layer.annotation_id: layer for layer in found.layers}
    described = [(x.source, x.category_id, x.category, x.class_id, x.class_name, x.area) for x in map(by_id.get, overlapping)]
    assert described == [
        ("stuff", SKY, "sky-other", 1261, "sky-other", 32),
        ("stuff", TREE, "tree", 1271, "tree", 9),
        ("lvis", 793, "person", 793, "person", 36),
        ("lvis", 3, "airplane", 3, "airplane", 2),
    ]


def test_the_instances_of_the_class_are_those_of_the_image(tree, overlapping):
    tree.thing(1, 793, box(7, 7, 1, 1))
    data = tree.build()
    assert [why(data, tree.sources(), 1, *at).instances for at in ((3, 1), (3, 2), (0, 0), (0, 7))] == [2, 2, 0, None]
    command = ["why", data.folder, 1, 3, 1, "--coco", tree.coco, "--lvis", tree.lvis]
    said = CliRunner().invoke(main, [*map(str, command)]).stdout
    assert "x 3, y 1: 793 person, 2 instances in this image\n" in said


def test_ties_of_area_go_by_file_order(tree):
    tree.image(1)
    first, second = (tree.thing(1, category, box(x, 0, 4, 4)) for category, x in ((7, 1), (3, 0)))
    assert covering(why(tree.build(overlap="small-on-top"), tree.sources(), 1, 2, 2)) == [first, second]


def test_x_is_the_column_and_y_the_row_and_the_edges_are_exact(tree):
    tree.image(1, size=(6, 8))
    only = tree.thing(1, 3, box(5, 1, 2, 3))
    data, sources = tree.build(), tree.sources()
    covered = {(x, y) for x in range(8) for y in range(6) if covering(why(data, sources, 1, x, y)) == [only]}
    assert covered == {(x, y) for x in (5, 6) for y in (1, 2, 3)}


def test_a_pixel_without_annotations(tree, overlapping):
    found = why(tree.build(), tree.sources(), 1, 7, 7)
    assert (found.layers, found.stored, found.derived, found.fault) == ([], 0, 0, None)


def test_stuff_other_hides_what_lies_below_and_shows_no_class(tree):
    tree.image(1)
    other, sky = tree.stuff(1, OTHER, box(0, 0, 8, 8)), tree.stuff(1, SKY, box(0, 0, 8, 8))
    found = why(tree.build(), tree.sources(), 1, 0, 0)
    assert covering(found) == [other, sky] and found.stored == 0
    assert (found.layers[0].category, found.layers[0].class_id, found.layers[0].class_name) == ("other", 0, "unlabelled")


@pytest.mark.parametrize(("regions", "published"), [(1, 1050 % 256), (2, 1050)])
def test_compat_gives_the_published_classes_also_in_8_bits(tree, regions, published):
    tree.image(1)
    table = tree.stuff(1, 165, box(0, 0, 8, 8))
    for _ in range(regions - 1):
        tree.stuff(1, 94, box(0, 0, 1, 1))
    found = why(tree.build(compat="essnet"), tree.sources(), 1, 4, 4)
    assert covering(found) == [table] and found.layers[0].category == "table"
    assert found.stored == found.layers[0].class_id == published and found.fault is None


def test_annotations_that_no_build_paints_are_left_out(tree):
    tree.image(1), tree.image(2)
    good = tree.stuff(1, 94, box(0, 0, 8, 8))
    unknown, malformed = tree.thing(1, 5000, box(0, 0, 8, 8)), tree.stuff(1, 95, [[1, 2]])
    tree.thing(2, 3, [[1]])
    unsegmented = [{"id": 899 + image_id, "image_id": image_id, "category_id": 3} for image_id in (1, 2)]
    tree.json["lvis_v1_train"]["annotations"] += unsegmented
    data = tree.build(compat="essnet")
    found = why(data, tree.sources(), 1, 0, 0)
    assert covering(found) == [good] and found.stored == 2  # one stuff annotation is left: 8 bits
    assert {(fault.kind, fault.source, fault.annotation_id) for fault in found.left_out} == {
        ("malformed annotation", "lvis", 900),
        ("unknown category", "lvis", unknown),
        ("malformed annotation", "stuff", malformed),
    }


def test_only_the_files_of_the_image_are_read(tree):
    tree.image(1, "val", "train2017")
    stuff, thing = tree.stuff(1, TREE, box(0, 0, 8, 8)), tree.thing(1, 3, box(0, 0, 4, 4), "val")
    data = tree.build()
    for needless in ("lvis_v1_train", "stuff_val2017"):
        tree.path(needless).write_text("no JSON")
    tree.picture(1).unlink()
    sources = tree.sources()
    found = why(data, sources, 1, 0, 0)
    assert covering(found) == [thing, stuff] and (found.split, found.path) == ("val", "train2017/000000000001.jpg")
    assert set(sources.digests()) == {"lvis_v1_val.json", "stuff_train2017.json"}


def test_annotations_may_lie_in_a_zip(tree, overlapping):
    data = tree.build()
    with zipfile.ZipFile(tree.lvis / "lvis_v1_train.json.zip", "w") as archive:
        archive.write(tree.path("lvis_v1_train"), "lvis_v1_train.json")
    tree.path("lvis_v1_train").unlink()
    assert len(why(data, tree.sources(), 1, 3, 2).layers) == 4


@pytest.mark.parametrize("file", ["lvis_v1_train", "stuff_train2017"])
def test_other_annotation_files_are_refused(tree, overlapping, file):
    data = tree.build()
    tree.path(file).write_text(tree.path(file).read_text().replace('"annotations"', ' "annotations"'))
    with pytest.raises(DataError, match=f"{file}.json is not the file that .* was built from; check --coco and --lvis"):
        why(data, tree.sources(), 1, 0, 0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ((2, 0, 0), "holds no image 2"),
        ((1, 8, 0), r"image 1 has no pixel x 8, y 0: x is 0\.\.7, y is 0\.\.5"),
        ((1, 0, 6), r"image 1 has no pixel x 0, y 6: x is 0\.\.7, y is 0\.\.5"),
        ((1, -1, 0), "image 1 has no pixel x -1, y 0"),
        ((1, 0, -1), "image 1 has no pixel x 0, y -1"),
    ],
)
def test_images_and_pixels_that_do_not_exist_are_refused(tree, where, message):
    tree.image(1, size=(6, 8))
    data = tree.build()
    with pytest.raises(DataError, match=message) as error:
        why(data, tree.sources(), *where)
    assert "\n" not in str(error.value)


def test_an_image_without_annotations_record_is_refused(tree, overlapping):
    data = tree.build()
    with h5py.File(data.shard_paths("train")[0], "r+") as file:
        file["id"][0] = 5
    with pytest.raises(DataError, match="image 5 is 8 x 8 in the data set, the annotations do not list it"):
        why(Dataset.open(data.folder), tree.sources(), 5, 0, 0)
    with h5py.File(data.shard_paths("train")[0], "r+") as file:
        file["id"][0], file["size"][0] = 1, (4, 16)
    with pytest.raises(DataError, match="image 1 is 4 x 16 in the data set, the annotations say 8 x 8"):
        why(Dataset.open(data.folder), tree.sources(), 1, 0, 0)


def test_another_vocabulary_is_refused(tree, overlapping):
    data = tree.build()
    place = data.locate(1)
    data.vocabulary.classes = data.vocabulary.classes[:-1]
    del data.vocabulary.__dict__["digest"]
    with pytest.raises(DataError, match="does not have the vocabulary of COCO"):
        module.why(data, tree.sources(), place, 0, 0)


def repainted(data):
    """Give all pixels of the first image another class."""
    with h5py.File(data.shard_paths("train")[0], "r+") as file:
        file["mask/class"][...] = 17
    return Dataset.open(data.folder)


def test_a_mask_that_disagrees_is_a_fault(tree, overlapping):
    data = repainted(tree.build())
    name = coco_lvis().name(17)
    for (x, y), derived in {(3, 2): "793 person", (7, 7): "0 unlabelled"}.items():
        found = why(data, tree.sources(), 1, x, y)
        assert found.fault.startswith(
            f"image 1, x {x}, y {y}: the mask has class 17 {name}, but the annotations give {derived};"
        )


def naive(content, image_id, size, overlap):
    """The (annotation id, (H, W) bool) of an image in one file from top to bottom, from pycocotools."""
    regions = []
    for record in content["annotations"]:
        if record["image_id"] == image_id:
            runs = record["segmentation"]
            if isinstance(runs, list):
                runs = coco_mask.merge(coco_mask.frPyObjects(runs, *size))
            elif isinstance(runs["counts"], list):
                runs = coco_mask.frPyObjects(runs, *size)
            regions.append((record["id"], coco_mask.decode(runs) > 0))
    return sorted(regions, key=lambda region: region[1].sum()) if overlap == "small-on-top" else regions


def compare(built, data, images, step):
    """Explain a grid of pixels of some images; return how many were explained, and the most layers of one pixel."""
    files = {path.name: json.loads(path.read_text()) for path in (*built.lvis.glob("*.json"), *built.coco.glob("*/*.json"))}
    sources = Sources(built.coco, built.lvis, coco_lvis())
    data.split = cache(data.split)  # its shards stay open
    overlap, pixels, most = data.index["options"]["overlap"], 0, 0
    for split, image_id in images:
        sample = data.find(image_id)
        stuff, things = files[f"stuff_{sample.path.split('/')[0]}.json"], files[f"lvis_v1_{split}.json"]
        layers = [layer for content in (things, stuff) for layer in naive(content, image_id, sample.mask.shape, overlap)]
        for y, x in np.ndindex(*(-(-side // step) for side in sample.mask.shape)):
            found = why(data, sources, image_id, x * step, y * step)
            assert covering(found) == [i for i, where in layers if where[y * step, x * step]]
            assert found.fault is None and found.stored == sample.mask[y * step, x * step]
            pixels, most = pixels + 1, max(most, len(found.layers))
    return pixels, most


@pytest.mark.parametrize("options", [{}, {"overlap": "small-on-top"}, {"compat": "essnet"}], ids=str)
def test_layers_match_pycocotools(sample, tmp_path, options):
    data = sample.rebuild(tmp_path / "data", images="none", **options)
    images = [(split, int(i)) for split in data.splits for i in data.split(split).image_ids()[:6]]
    pixels, most = compare(sample, data, images, 6)
    assert pixels > 1000 and most >= 3


def test_layers_match_pycocotools_on_real_data(real):
    data = Dataset.open(real.data)
    images = [(split, int(i)) for split in data.splits for i in data.split(split).image_ids()[::20]]
    pixels, most = compare(real, data, images, 97)
    assert pixels > 200 and most >= 3


def run(data, tree, *where, code=0):
    """Run `cocolvis why` in this process and return its result."""
    command = ["why", data.folder, *where, "--coco", tree.coco, "--lvis", tree.lvis]
    result = CliRunner().invoke(main, [str(argument) for argument in command])
    assert result.exit_code == code, result.output
    return result


def test_the_command_prints_a_table(tree, overlapping):
    malformed = tree.thing(1, 9, [[1, 2]])
    lines = run(tree.build(), tree, 1, 3, 2).stdout.splitlines()
    stuff, _, person, plane = overlapping
    assert lines[0] == "train image 1: train2017/000000000001.jpg, 8 x 8 pixels"
    assert lines[1] == "x 3, y 2: 793 person, 1 instance in this image"
    assert re.split("  +", lines[3].strip()) == ["source", "annotation", "category", "class", "pixels"]
    assert re.split("  +", lines[4]) == ["shows", "lvis", str(person), "793 person", "793 person", "36"]
    assert [re.split("  +", line)[:3] for line in lines[5:7]] == [
        ["hidden", "lvis", str(plane)],
        ["hidden", "stuff", str(stuff)],
    ]
    assert lines[-1].startswith(
        f"left out: annotation {malformed} (lvis), malformed annotation: the segmentation has a polygon"
    )
    assert run(tree.build(), tree, 1, 7, 7).stdout.splitlines()[1] == "x 7, y 7: unlabelled: no annotation covers it"


def test_the_command_prints_json(tree, overlapping):
    found = json.loads(run(tree.build(), tree, 1, 3, 2, "--json").stdout)
    assert [layer["annotation_id"] for layer in found["layers"]] == [overlapping[i] for i in (2, 3, 0, 1)]
    assert (found["stored"], found["stored_name"], found["derived"], found["fault"]) == (793, "person", 793, None)
    assert found["layers"][0].keys() >= {"source", "category_id", "category", "class_id", "class_name", "area", "shows"}
    assert found.keys() >= {"split", "image_id", "path", "height", "width", "x", "y", "left_out"}


def test_the_command_exits_with_1_if_mask_and_annotations_disagree(tree, overlapping):
    data = repainted(tree.build())
    result = run(data, tree, 1, 7, 7, code=1)
    assert "x 7, y 7: 17 " in result.stdout and "no annotation covers it" in result.stdout
    assert result.stderr.startswith("Error: image 1, x 7, y 7: the mask has class 17") and len(result.stderr.splitlines()) == 1
    assert json.loads(run(data, tree, 1, 3, 2, "--json", code=1).stdout)["fault"].startswith("image 1, x 3, y 2: the mask has")


def test_errors_of_the_command_are_one_line(tree, overlapping):
    data = tree.build()
    for where, message in (((9, 0, 0), "holds no image 9"), ((1, 8, 8), "image 1 has no pixel x 8, y 8")):
        result = run(data, tree, *where, code=1)
        assert result.stdout == "" and message in result.stderr and len(result.stderr.splitlines()) == 1
    assert "'one' is not a valid integer" in run(data, tree, "one", 0, 0, code=2).stderr
    assert "Missing argument 'Y'" in run(data, tree, 1, 0, code=2).stderr
