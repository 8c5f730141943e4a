"""Annotation files: what is required, what is skipped, and that a bad record affects no other."""

import json

import pytest

from cocolvis.disk.archives import Place
from cocolvis.errors import DataError
from cocolvis.sources.annotations import AnnotationFile, ImageRecord

IMAGE = {"id": 7, "height": 4, "width": 5, "coco_url": "http://x/val2017/a.jpg"}
ANNOTATION = {"id": 1, "image_id": 7, "category_id": 3, "segmentation": [[0, 0, 1, 0, 1, 1]]}


def load(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    place = Place(str(path))
    return AnnotationFile(place.map(), str(place), "lvis")


def faults(file):
    return [(f.kind, f.image_id, f.annotation_id) for f in file.faults]


def test_segments_keep_file_order_and_raw_bytes(tmp_path):
    rows = [ANNOTATION | {"id": i, "category_id": c, "image_id": m} for i, c, m in ((5, 9, 7), (2, 8, 8), (4, 7, 7))]
    file = load(tmp_path, {"images": [IMAGE, IMAGE | {"id": 8}], "annotations": rows})
    assert [(s.annotation_id, s.category_id) for s in file.segments(7)] == [(5, 9), (4, 7)]
    assert [s.annotation_id for s in file.segments(8)] == [2]
    assert file.segments(99) == []
    assert json.loads(bytes(file.segments(8)[0].segmentation)) == ANNOTATION["segmentation"]
    assert file.faults == [] and file.categories == {}


def test_only_the_documented_keys_are_required(tmp_path):
    for key in ("id", "height", "width"):
        file = load(tmp_path, {"images": [{k: v for k, v in IMAGE.items() if k != key}], "annotations": []})
        assert [f.kind for f in file.faults] == ["malformed image"], key
    for key in ANNOTATION.keys() - {"id"}:
        file = load(tmp_path, {"images": [IMAGE], "annotations": [{k: v for k, v in ANNOTATION.items() if k != key}]})
        assert [f.kind for f in file.faults] == ["malformed annotation"], key


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity"])
def test_nan_and_infinity_only_affect_their_own_record(tmp_path, literal):
    good = json.dumps(ANNOTATION | {"id": 2})
    bad = json.dumps(ANNOTATION).replace('"id": 1', f'"id": {literal}')
    kept = json.dumps(ANNOTATION | {"id": 3, "area": "x"}).replace('"x"', literal)
    file = load(tmp_path, f'{{"images": [{json.dumps(IMAGE)}], "annotations": [{bad}, {good}, {kept}]}}')
    assert [s.annotation_id for s in file.segments(7)] == [2, 3]
    assert faults(file) == [("malformed annotation", 7, None)]


@pytest.mark.parametrize("wrong", [ANNOTATION | {"image_id": "7"}, ANNOTATION | {"category_id": 1.5}, 17, None, []])
def test_a_wrong_type_only_affects_its_own_record(tmp_path, wrong):
    file = load(tmp_path, {"images": [IMAGE], "annotations": [wrong, ANNOTATION | {"id": 2}]})
    assert [s.annotation_id for s in file.segments(7)] == [2]
    assert [f.kind for f in file.faults] == ["malformed annotation"]


def test_numbers_beyond_64_bits_only_affect_their_own_record(tmp_path):
    file = load(tmp_path, {"images": [IMAGE], "annotations": [ANNOTATION | {"image_id": 2**70}, ANNOTATION | {"id": 2}]})
    assert [s.annotation_id for s in file.segments(7)] == [2]
    assert faults(file) == [("unlisted image", 2**70, 1)]


def test_duplicate_images_and_unlisted_images_are_reported(tmp_path):
    rows = [ANNOTATION, ANNOTATION | {"category_id": 5}, ANNOTATION | {"id": 2, "image_id": 99}]
    file = load(tmp_path, {"images": [IMAGE, IMAGE | {"height": 9}], "annotations": rows})
    assert file.images[7].height == 4
    assert [s.category_id for s in file.segments(7)] == [3, 5]
    assert faults(file) == [("duplicate image", 7, None), ("unlisted image", 99, 2), ("duplicate annotation id", None, None)]


@pytest.mark.parametrize("wrong", [{"height": 0}, {"width": -3}, {"height": 2**20, "width": 2**20}, {"id": -1}, {"id": 2**62}])
def test_impossible_images_are_reported(tmp_path, wrong):
    file = load(tmp_path, {"images": [IMAGE | wrong], "annotations": []})
    assert file.images == {} and [f.kind for f in file.faults] == ["malformed image"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"images": [',
        '{"images": [{}',
        '{"images": []',
        '{"images": [], "annotations": [1 2]}',
        '{"images" []}',
        "\0",
    ],
)
def test_text_other_than_an_annotation_file_is_an_error(tmp_path, text):
    with pytest.raises(DataError, match=r"file\.json: (cannot be read|has no list)"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"images": [],\n "annotations": [None]}', "line 2, byte 32: 'None]}' is not expected there"),
        (b'[{"id": 1}]', """it begins with '[{"id": 1}'; expected one JSON object"""),
        (b" \n", "it is empty; expected one JSON object"),
        (b"\x1f\x8b\x08\0\0", "it is a gzip file"),
        (b"<!DOCTYPE html>", "it is a web page or an XML file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a pointer of Git LFS, "),
        (b'{"images": []', "it is cut short"),
    ],
)
def test_why_a_text_is_not_json(content, reason):
    with pytest.raises(DataError) as error:
        AnnotationFile(content, "a.json", "lvis")
    assert str(error.value).startswith(f"a.json: cannot be read as JSON: {reason}")


def test_missing_lists_and_files_are_errors(tmp_path):
    with pytest.raises(DataError, match="has no list 'annotations'"):
        load(tmp_path, {"images": []})
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Place(str(tmp_path / "absent.json")).map()
    (tmp_path / "empty.json").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.json: cannot be read: the file is empty$"):
        Place(str(tmp_path / "empty.json")).map()
    deep = '{"images": [' + "[" * 100_000 + "]" * 100_000 + '], "annotations": []}'
    assert [f.kind for f in load(tmp_path, deep).faults] == ["malformed image"]


def test_the_location_is_the_end_of_the_url_or_the_file_name():
    def location(**record):
        return ImageRecord(id=1, height=1, width=1, **record).location()

    assert location(coco_url="http://images.cocodataset.org/val2017/000.jpg") == ("val2017", "000.jpg")
    assert location(file_name="000.jpg") == (None, "000.jpg")
    assert location(file_name="train2017/000.jpg") == ("train2017", "000.jpg")
    official = "http://images.cocodataset.org/val2017/a.jpg"
    assert location(coco_url=official, file_name="train2017/b.jpg") == ("val2017", "a.jpg")
    with pytest.raises(DataError, match="it has neither coco_url nor file_name"):
        location()
