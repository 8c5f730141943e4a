"""Annotation files as other programs export them: unusual numbers, ids, names and keys, and clear reasons for refusals."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from trees import Tree, box, faults, five_images

from cli.cocolvis import main
from cocolvis.errors import DataError
from cocolvis.inspection import oracle
from cocolvis.inspection.why import why
from cocolvis.masks.rasterize import BadSegmentation, rasterize
from cocolvis.sources.annotations import AnnotationFile
from cocolvis.sources.picture_names import location
from cocolvis.vocabulary import coco_lvis

IMAGE = {"id": 7, "height": 4, "width": 5, "file_name": "val2017/a.jpg"}
ANNOTATION = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 1, 0, 1, 1]]}
CATEGORY = {"id": 3, "name": "airplane"}
RECORDS = {"images": IMAGE, "annotations": ANNOTATION, "categories": CATEGORY}
FILES = ("lvis_v1_train", "stuff_train2017")


def read(content) -> AnnotationFile:
    return AnnotationFile(content if isinstance(content, bytes) else json.dumps(content).encode(), "file.json", "lvis")


def of(image=IMAGE, annotation=ANNOTATION, category=CATEGORY) -> AnnotationFile:
    return read({"images": [image], "annotations": [annotation], "categories": [category]})


def masks(data) -> dict[int, np.ndarray]:
    return {i: data.find(i).mask for i in range(1, 6)}


def check(tree: Tree, clean: dict[int, np.ndarray], *expected: tuple) -> None:
    """The tree builds the expected masks and faults, and the oracle agrees."""
    data = tree.build()
    assert faults(data) == list(expected)
    assert [i for i, mask in clean.items() if not np.array_equal(data.find(i).mask, mask)] == []
    assert oracle.check(data, tree.coco, tree.lvis).faults() == []


@pytest.fixture
def clean(tree) -> dict[int, np.ndarray]:
    """The masks of five images, one of them with run lengths, before anything is changed."""
    five_images(tree)
    tree.thing(5, 9, {"size": [8, 8], "counts": [20, 20, 24]})
    return masks(tree.build("clean"))


def records(tree: Tree, key: str):
    return [record for file in FILES for record in tree.json[file][key]]


def test_whole_numbers_written_as_floats_are_numbers(tree, clean):
    for image in records(tree, "images"):
        image |= {name: float(image[name]) for name in ("id", "height", "width")}
        image["neg_category_ids"] = [3.0, 5]
    for annotation in records(tree, "annotations"):
        annotation |= {name: float(annotation[name]) for name in ("id", "image_id", "category_id")}
        if isinstance(annotation["segmentation"], dict):
            annotation["segmentation"] = {"size": [8.0, 8.0], "counts": [2e1, 20.0, 24]}
    check(tree, clean)
    assert tree.build().find(1).neg.tolist() == [3, 5]


@pytest.mark.parametrize(("text", "value"), [("139.0", 139), ("1e2", 100), ("-0.0", 0), ("9007199254740993.0", 2**53 + 1)])
def test_floats_are_read_exactly(text, value):
    content = json.dumps({"images": [IMAGE | {"id": 987}], "annotations": []}).replace("987", text).encode()
    assert list(read(content).images) == [value]


@pytest.mark.parametrize("text", ["3.5", "1e19", "-9.3e18", "1e-5", '"139"', '"139.0"', "true", "[139]", "1e400"])
def test_what_is_not_a_whole_number_is_refused(text):
    content = json.dumps({"images": [IMAGE | {"id": 987}], "annotations": []}).replace("987", text).encode()
    file = read(content)
    assert file.images == {} and [fault.kind for fault in file.faults] == ["malformed image"]
    assert file.faults[0].reason.startswith("its id is ") and "; expected a whole number" in file.faults[0].reason


def test_null_for_an_optional_field_means_absent(tree, clean):
    for image in records(tree, "images"):
        image["file_name"] = None
        image |= dict.fromkeys(("neg_category_ids", "not_exhaustive_category_ids", "license", "flickr_url"))
    images = tree.json[FILES[0]]["images"]
    images[2] |= {"coco_url": None, "file_name": images[2]["coco_url"].split("x/")[1]}
    for annotation in records(tree, "annotations"):
        annotation |= dict.fromkeys(("iscrowd", "area", "bbox"))
    for file in FILES:
        tree.json[file]["categories"] = None
    check(tree, clean)


def without_ids(tree: Tree, change) -> None:
    for annotation in records(tree, "annotations"):
        change(annotation)


MISSING = [("missing annotation id", source, None, None) for source in ("lvis", "stuff")]
REPEATED = [("duplicate annotation id", source, None, None) for source in ("lvis", "stuff")]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda annotation: annotation.pop("id"), MISSING),
        (lambda annotation: annotation.update(id=None), MISSING),
        (lambda annotation: annotation.update(id=7), REPEATED),
        (lambda annotation: annotation.update(id=7.0), REPEATED),
    ],
)
def test_masks_need_no_annotation_ids(tree, clean, change, expected):
    without_ids(tree, change)
    check(tree, clean, *expected)
    data = tree.build()
    found = why(data, tree.sources(), data.locate(3), 0, 0)
    assert [layer.source for layer in found.layers] == ["lvis", "stuff"] and found.fault is None and found.left_out == []
    command = ["why", tree.root / "data", 3, 0, 0, "--coco", tree.coco, "--lvis", tree.lvis]
    said = CliRunner().invoke(main, [str(word) for word in command])
    assert said.exit_code == 0 and f"lvis    {'-' if expected is MISSING else 7} " in said.stdout
    assert "None" not in said.stdout


def test_missing_and_repeated_ids_are_counted():
    rows = [ANNOTATION, ANNOTATION, ANNOTATION | {"id": None}, {k: v for k, v in ANNOTATION.items() if k != "id"}]
    file = read({"images": [IMAGE], "annotations": rows})
    assert len(file.segments(7)) == 4
    assert [fault.reason for fault in file.faults] == [
        "annotations without an id: 2, the first in image 7; they are painted anyway",
        "annotations with the id of an earlier one: 1, the first with id 1 in image 7; they are painted anyway",
    ]


OFFICIAL = "http://images.cocodataset.org/train2017/1.jpg"


@pytest.mark.parametrize(
    ("coco_url", "file_name", "found"),
    [
        (None, "./train2017/x.jpg", ("train2017", "x.jpg")),
        (None, ".//train2017//x.jpg", ("train2017", "x.jpg")),
        (None, "train2017/./x.jpg", ("train2017", "x.jpg")),
        (None, "./x.jpg", (None, "x.jpg")),
        (None, "train2017\\x.jpg", ("train2017", "x.jpg")),
        (None, ".\\train2017\\x.jpg", ("train2017", "x.jpg")),
        (None, "train2017/12:30:x.jpg", ("train2017", "12:30:x.jpg")),
        (None, "images/train2017/x.jpg", ("train2017", "x.jpg")),
        (None, "data\\coco\\val2017\\x.jpg", ("val2017", "x.jpg")),
        (None, "./coco//images/train2017/./x.jpg", ("train2017", "x.jpg")),
        (None, "images/elsewhere/x.jpg", ("images/elsewhere", "x.jpg")),
        (None, "train2017/inner/x.jpg", ("train2017/inner", "x.jpg")),
        (None, "train2017/a b%20c#d?.jpg", ("train2017", "a b%20c#d?.jpg")),
        (None, "https://bucket.example/train2017/x%20y.jpg?key=1", ("train2017", "x y.jpg")),
        (OFFICIAL, "val2017/2.jpg", ("train2017", "1.jpg")),
        (OFFICIAL, "../2.jpg", ("train2017", "1.jpg")),
        (OFFICIAL.replace("http:", "https:"), None, ("train2017", "1.jpg")),
        (OFFICIAL + "?download=1", "val2017/2.jpg", ("val2017", "2.jpg")),
        (OFFICIAL + "?download=1", "1.jpg", ("train2017", "1.jpg")),
        (OFFICIAL + "?download=1", None, ("train2017", "1.jpg")),
        (OFFICIAL.replace("1.jpg", "my%201.jpg"), "2.jpg", (None, "2.jpg")),
        (OFFICIAL.replace("1.jpg", "my%201.jpg"), None, ("train2017", "my 1.jpg")),
        ("https://source.example.com/AbC/original.jpg", "train2017/2.jpg", ("train2017", "2.jpg")),
        ("https://source.example.com/AbC/original.jpg", "2.jpg", (None, "2.jpg")),
        ("https://mirror.example.com/val2017/2.jpg", "2.jpg", ("val2017", "2.jpg")),
        ("https://mirror.example.com/val2017/2.jpg", "C:\\2.jpg", ("val2017", "2.jpg")),
        ("", "2.jpg", (None, "2.jpg")),
    ],
)
def test_where_a_picture_is(coco_url, file_name, found):
    assert location(coco_url, file_name) == found


@pytest.mark.parametrize(
    ("file_name", "reason"),
    [
        ("../x.jpg", "leads out of the image folder"),
        ("train2017\\..\\..\\x.jpg", "leads out of the image folder"),
        ("./../x.jpg", "leads out of the image folder"),
        ("train2017/../train2017/x.jpg", "contains '..'"),
        ("..", "leads out of the image folder"),
        ("/data/train2017/x.jpg", "is an absolute path"),
        ("\\data\\train2017\\x.jpg", "is an absolute path"),
        ("images\\..\\train2017\\x.jpg", "contains '..'"),
        ("images/../../train2017/x.jpg", "leads out of the image folder"),
        ("D:\\coco\\train2017\\x.jpg", "names a drive"),
        ("\\\\nas\\share\\x.jpg", "is an absolute path"),
        ("C:\\data\\x.jpg", "names a drive"),
        ("./d:/x.jpg", "names a drive"),
        ("train2017/", "does not name a file"),
        ("./", "does not name a file"),
        ("train2017/.", "does not name a file"),
        ("train2017/a\0.jpg", "contains the character U+0000, which no file name may contain"),
        ("a\n.jpg", "contains the character U+000A"),
        ("a\ufffd.jpg", "contains the character U+FFFD, which replaces bytes that are not UTF-8"),
        ("train2017/" + "é" * 128, "has a part of 256 bytes"),
        ("d/" * 600 + "x.jpg", "has 1205 characters"),
    ],
)
def test_why_a_file_name_is_refused(file_name, reason):
    with pytest.raises(DataError) as error:
        location(None, file_name)
    assert reason in str(error.value) and len(str(error.value).splitlines()) == 1
    assert ("leads out" in str(error.value)) == ("leads out" in reason)


def test_file_names_of_other_systems_are_found(tree, clean):
    names = ("./train2017/{}", "images\\train2017\\{}", ".\\train2017/./{}", "data/coco/train2017//{}", "{}")
    for file in FILES:
        for image, name in zip(tree.json[file]["images"], names, strict=True):
            image["file_name"] = name.format(image["coco_url"].rpartition("/")[2])
            image["coco_url"] = "https://source.example.com/AbC/original.jpg?size=1" if image["id"] % 2 else None
    check(tree, clean)


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpeg", ".JPG", ".tif", ".BMP"])
def test_a_missing_picture_names_the_file_with_another_suffix(tree, suffix):
    five_images(tree)
    tree.picture(3).rename(tree.picture(3).with_suffix(suffix))
    tree.picture(4).unlink()
    data = tree.build()
    assert faults(data) == [("missing image", "image", image_id, None) for image_id in (3, 4)]
    assert [fault["reason"] for fault in data.index["report"]["faults"]] == [
        f"train2017/000000000003.jpg: does not exist; there is 000000000003{suffix}",
        "train2017/000000000004.jpg: does not exist",
    ]


def test_an_image_in_both_splits_is_reported_once_and_kept(tree):
    for split in ("train", "val"):
        tree.image(1, split, "train2017", listed=split == "train")
    tree.stuff(1, 94, box(0, 0, 8, 8))
    data = tree.build()
    assert faults(data) == [("image in two splits", "lvis", 1, None)] and data.splits == {"train": 1, "val": 1}
    assert data.index["report"]["faults"][0]["reason"] == "split train has an image with this id too; both are kept"


def test_a_repeated_category_is_reported():
    file = read({"images": [], "annotations": [], "categories": [CATEGORY, CATEGORY | {"id": 3.0}]})
    assert file.categories == {3: "airplane"}
    assert [fault[:1] + fault[2:] for fault in file.faults] == [
        ("duplicate category", None, None, "category 3 'airplane' is listed more than once")
    ]
    with pytest.raises(DataError, match=r"^file\.json: lists category 3 twice, as 'airplane' and as 'jet'$"):
        read({"images": [], "annotations": [], "categories": [CATEGORY, CATEGORY | {"name": "jet"}]})


@pytest.mark.parametrize("broken", [False, True], ids=["typed", "record by record"])
@pytest.mark.parametrize("key", ["annotations", "images", "categories"])
def test_a_repeated_list_is_reported_and_the_last_one_counts(key, broken):
    lists = {name: [record] for name, record in RECORDS.items()}
    first = {"images": IMAGE | {"height": 9}, "annotations": ANNOTATION | {"category_id": 9}, "categories": CATEGORY}[key]
    text = json.dumps(lists | {"info": {"images": 1, "note": '"annotations"'}})
    text = "{" + json.dumps({key: [first, first | {"id": 99}]})[1:-1] + ", " + text[1:]
    if broken:
        text = text.replace('"info"', '"more": NaN, "info"')
    file = read(text.encode())
    assert [fault.reason for fault in file.faults] == [f"the file has 2 lists {key!r}; the last one counts"]
    assert (file.images[7].height, file.segments(7)[0].category_id, file.count(7)) == (4, 3, 1)
    assert file.categories == {3: "airplane"}


@pytest.mark.parametrize("more", ["", ', "info": NaN'], ids=["typed", "record by record"])
@pytest.mark.parametrize("key", RECORDS)
@pytest.mark.parametrize(
    ("value", "described"), [('{"1": "airplane"}', "an object"), ('"airplane"', "the text 'airplane'"), ("7", "7")]
)
def test_a_list_that_is_something_else_is_refused(key, value, described, more):
    lists = {name: json.dumps([record]) for name, record in RECORDS.items()} | {key: value}
    text = "{" + ", ".join(f'"{name}": {content}' for name, content in lists.items()) + more + "}"
    with pytest.raises(DataError, match=rf"^file\.json: its {key} are {described}; expected a list$"):
        read(text.encode())


def test_categories_may_be_null():
    lists = {name: [record] for name, record in RECORDS.items()} | {"categories": None}
    for more in ({}, {"info": float("nan")}):
        assert read(lists | more).categories == {}


@pytest.mark.parametrize("first", ["9", '"nine"'], ids=["typed", "field by field"])
@pytest.mark.parametrize(("key", "name"), [("images", "height"), ("annotations", "category_id"), ("categories", "id")])
def test_of_a_key_that_a_record_repeats_the_last_one_counts(key, name, first):
    lists = {other: json.dumps([record]) for other, record in RECORDS.items()}
    lists[key] = "[" + json.dumps(RECORDS[key]).replace("{", f'{{"{name}": {first}, ', 1) + "]"
    file = read(("{" + ", ".join(f'"{name}": {content}' for name, content in lists.items()) + "}").encode())
    assert (file.images[7].height, file.segments(7)[0].category_id, file.categories) == (4, 3, {3: "airplane"})


def test_a_key_elsewhere_does_not_count_as_a_list():
    lists = {name: [record | {"images": []}] for name, record in RECORDS.items()}
    assert read(lists | {"info": {"images": [], "annotations": []}}).faults == []


WRONG = {
    "missing": "",
    "null": "null",
    "text": '"139"',
    "long text": '"' + "x" * 300 + '"',
    "NaN": "NaN",
    "infinite": "-Infinity",
    "negative": "-5",
    "fraction": "3.5",
    "huge": "1e300",
    "beyond float": "1e999",
    "many digits": "9" * 5000,
    "true": "true",
    "list": "[1, [2]]",
    "list of texts": '["a\\u2028"]',
    "object": '{"a": {"b": 1}}',
    "nested": "[" * 200 + "]" * 200,
}
FIELDS = [(key, name) for key, record in RECORDS.items() for name in record] + [
    ("images", name) for name in ("coco_url", "neg_category_ids", "not_exhaustive_category_ids")
]


@pytest.mark.parametrize(("key", "name"), FIELDS, ids=[f"{key} {name}" for key, name in FIELDS])
def test_reasons_are_sentences(key, name):
    """For each field and wrong value, the reason is a sentence about this field, on one line, without a parser's jargon."""
    for what, value in WRONG.items():
        record = {field: content for field, content in RECORDS[key].items() if field != name}
        text = json.dumps(record)[:-1] + (f', "{name}": {value}}}' if value else "}")
        lists = {other: json.dumps([RECORDS[other]]) for other in RECORDS if other != key} | {key: f"[{text}]"}
        try:
            file = read("{{{}}}".format(", ".join(f'"{list_}": {content}' for list_, content in lists.items())).encode())
            reasons = [fault.reason for fault in file.faults if not fault.kind.startswith(("unlisted", "missing"))]
            for segment in file.segments(7):
                rasterize(segment.segmentation, 4, 5)
        except (DataError, BadSegmentation) as error:
            reasons = [str(error)]
        for reason in reasons:
            assert len(reason.splitlines()) == 1 and len(reason) < 300 and reason.isprintable(), (what, reason)
            assert not any(word in reason for word in ("`", "$", "Expected", "Object", "Error", "None", "'id'")), (what, reason)
            assert name in reason or (name == "segmentation" and "polygon" in reason), (what, reason)
            assert len(reason.split()) >= 4, (what, reason)
        optional = name in ("coco_url", "file_name", "neg_category_ids", "not_exhaustive_category_ids")
        if what in ("missing", "null") and (optional or (key, name) == ("annotations", "id")):
            assert reasons == [], (what, reasons)
        elif what == "missing":
            assert reasons[0].endswith(f"it has no {name}"), reasons
        elif what in ("object", "infinite", "true"):
            assert reasons != [], what


@pytest.mark.parametrize("key", RECORDS)
@pytest.mark.parametrize("value", ["17", "null", "NaN", "true", '"a"', "[]", "[" * 200 + "]" * 200])
def test_records_other_than_objects_are_described(key, value):
    lists = {other: json.dumps([RECORDS[other]]) for other in RECORDS if other != key} | {key: f"[{value}]"}
    text = "{" + ", ".join(f'"{name}": {content}' for name, content in lists.items()) + "}"
    try:
        reason = next(fault.reason for fault in read(text.encode()).faults if fault.kind.startswith("malformed"))
    except DataError as error:
        reason = str(error)
    assert reason.endswith("; expected an object") and "it is " in reason, reason


def test_a_build_prints_the_reasons(tree):
    five_images(tree)
    for record in records(tree, "images"):
        record["id"] = str(record["id"])
    tree.json[FILES[0]]["annotations"][0].pop("image_id")
    command = ["build", "--coco", tree.coco, "--lvis", tree.lvis, "--out", tree.root / "data", "--allow-missing"]
    said = CliRunner().invoke(main, [str(word) for word in command and tree.write() and command]).output
    assert "lvis: its id is the text '1'; expected a whole number without quotes" in said
    assert "annotation 2 (lvis): it has no image_id" in said
    assert "Expected" not in said and "None" not in said and "`int`" not in said


def test_a_category_with_a_wrong_name_is_refused_with_its_id():
    with pytest.raises(DataError, match=r"file\.json: category 3 cannot be read: its name is 5; expected text"):
        of(category={"id": 3, "name": 5})
    assert coco_lvis().categories("lvis")[3] == "airplane"
