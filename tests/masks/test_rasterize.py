"""The pixels of segmentations, compared with pycocotools, and the refusal of input that would crash it."""

import json
import re
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from trees import box, rle

from cocolvis.masks.rasterize import MAX_OUTLINE, BadSegmentation, rasterize, rasterize_all
from cocolvis.masks.reading_kernels import read_all, read_polygons

coordinate = st.floats(-20, 40, allow_nan=False, width=32)
polygon = st.integers(3, 9).flatmap(lambda points: st.lists(coordinate, min_size=2 * points, max_size=2 * points))


def painted(segmentation, height, width):
    """The spans as an (H, W) bool mask, after checking that they are disjoint and sum to their area."""
    spans = rasterize(json.dumps(segmentation).encode(), height, width)
    flat = np.zeros(height * width, bool)
    for start, stop in zip(spans.starts, spans.stops, strict=True):
        assert start < stop and not flat[start:stop].any()
        flat[start:stop] = True
    assert spans.area == flat.sum()
    return flat.reshape(width, height).T


@settings(max_examples=300, deadline=None)
@given(polygons=st.lists(polygon, min_size=1, max_size=4), height=st.integers(20, 40), width=st.integers(20, 40))
def test_polygons_are_painted_as_pycocotools_paints_them(polygons, height, width):
    expected = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
    assert np.array_equal(painted(polygons, height, width), expected > 0)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90), share=st.sampled_from([0, 0.01, 0.5, 1])
)
def test_run_lengths_are_read_in_both_codings(seed, height, width, share):
    mask = np.random.default_rng(seed).random((height, width)) < share
    for compressed in (True, False):
        assert np.array_equal(painted(rle(mask, compressed), height, width), mask)


def test_compressed_counts_of_large_masks():
    mask = np.zeros((3000, 2000), bool)
    mask[100:2900, 3:1999] = True
    mask[5, 5] = True
    assert np.array_equal(painted(rle(mask), *mask.shape), mask)


def test_a_box_covers_its_pixels_and_parts_outside_are_cut():
    expected = np.zeros((8, 8), bool)
    expected[2:5, 1:4] = True
    assert np.array_equal(painted(box(1, 2, 3, 3), 8, 8), expected)
    assert painted(box(-4, -4, 16, 16), 8, 8).all()
    assert not painted(box(10, 10, 3, 3), 8, 8).any()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no polygon"),
        ([[1, 2, 3, 4]], "polygon of 4 numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "polygon of 7 numbers"),
        ([[0, 0, 1, 1, 17, 2]], "outside 8 x 8"),
        ([[0, 0, 1, 1, 1e300, 2]], "outside 8 x 8"),
        ([[[0, 0], [1, 1], [2, 2]]], "neither polygons nor run lengths"),
        ({"counts": [64]}, "neither polygons nor run lengths"),
        (None, "neither polygons nor run lengths"),
        ("5", "neither polygons nor run lengths"),
        ({"size": [8, 9], "counts": [72]}, "run lengths for 8 x 9, the image is 8 x 8"),
        ({"size": [8, 8], "counts": [60]}, "do not fill the image's 64"),
        ({"size": [8, 8], "counts": [60, -4, 8]}, "do not fill"),
        ({"size": [8, 8], "counts": []}, "do not fill"),
        ({"size": [8, 8], "counts": [2**63, 2**63, 64]}, "beyond 64 bits"),
        ({"size": [8, 8], "counts": ""}, "corrupt compressed counts"),
        ({"size": [8, 8], "counts": "P"}, "corrupt compressed counts"),
        ({"size": [8, 8], "counts": "\x7f"}, "corrupt compressed counts"),
        ({"size": [8, 8], "counts": "é"}, "outside ASCII"),
        ({"size": [8, 8], "counts": "ooooooooo1"}, "beyond 40 bits"),
        ({"size": [8, 8], "counts": "`1"}, "do not fill"),
        ({"size": [8, 8], "counts": '01"0'}, "corrupt compressed counts"),
    ],
)
def test_what_would_crash_is_refused_with_the_reason(segmentation, reason):
    with pytest.raises(BadSegmentation, match=reason):
        rasterize(json.dumps(segmentation).encode(), 8, 8)


@pytest.mark.parametrize("text", [b"[[NaN, 0, 1, 1, 2, 2]]", b"[[0, 0, 1", b"\xff", b"[" * 100_000])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(BadSegmentation, match="neither polygons nor run lengths"):
        rasterize(text, 8, 8)


def test_endless_outlines_are_refused():
    zigzag = [[0, 0, 4000, 0] * 2200]
    with pytest.raises(BadSegmentation, match="outline of"):
        rasterize(json.dumps(zigzag).encode(), 4000, 4000)


@pytest.mark.parametrize(("value", "found"), [("1e999", "not a finite number"), ("null", "null"), ('"1"', "the text '1'")])
def test_a_coordinate_that_is_no_number_is_named(value, found):
    with pytest.raises(BadSegmentation, match=rf"a coordinate of a polygon is {found}; expected a number$"):
        rasterize(f"[[0, {value}, 4, 0, 4, 4]]".encode(), 8, 8)


decimal = st.one_of(
    st.floats(-1e4, 1e4).map(repr),
    st.decimals(-1000, 1000, places=2).map(str),
    st.integers(0, 6).flatmap(lambda places: st.decimals(0, 9, places=places).map(str)),
    st.from_regex(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,19})?", fullmatch=True),
    st.sampled_from(
        ["9007199254740992", "9007199254740993", "0.9007199254740993", "-0", "-0.0", "0.000000000000000001", "5e-1"]
    ),
)
blank = st.sampled_from(["", " ", "\n", "\t \r"])


def read(text: str) -> list[list[float]]:
    points, bounds = read_polygons(np.frombuffer(text.encode("latin-1"), np.uint8))  # a byte for each character
    return [points[first:last].reshape(-1).tolist() for first, last in pairwise(bounds)]


@settings(max_examples=300, deadline=None)
@given(polygons=st.lists(st.lists(decimal, min_size=6, max_size=9), min_size=1, max_size=3), between=blank)
def test_polygons_in_json_are_read_to_the_bit_or_left_to_the_other_parser(polygons, between):
    comma = f"{between},{between}"
    text = f"[{between}{comma.join(f'[{between}{comma.join(polygon)}{between}]' for polygon in polygons)}{between}]{between}"
    digits = [number.replace("-", "").replace(".", "") for polygon in polygons for number in polygon]
    plain = all("e" not in number and len(number) <= 18 and int(number) <= 2**53 for number in digits)
    expected = json.loads(text, parse_int=float) if plain and all(len(polygon) % 2 == 0 for polygon in polygons) else []
    assert repr(read(text)) == repr(expected)


NUMBER = re.compile(r"-?(0|[1-9][0-9]*)([.][0-9]+)?")


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("after", ["", ", 12345678, 1234.567"], ids=["last", "in between"])
def test_every_short_text_is_read_as_a_number_or_not_at_all(length, after):
    """In the last place, the table of states reads it; before others, where eight bytes follow, it is read as a word."""
    others = [1.0, 2.0, 3.0, 4.0, 5.0] if not after else [1.0, 2.0, 3.0]
    for symbols in product("09.-e :/°", repeat=length):
        text = "".join(symbols)
        number, filled = text.strip(), f"[[{', '.join(map(repr, others))},{text}{after}]]"
        expected = [[*others, float(number), *([12345678.0, 1234.567] if after else [])]] if NUMBER.fullmatch(number) else []
        assert read(filled) == expected, filled


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_only_json_is_read(data):
    text = [*"[[1.5,20,-3,4,0.5,6], [7,8,90,1,2,3]] "]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(text) - 1))
        text[place : place + data.draw(st.integers(0, 2))] = data.draw(st.text('[],.-0123456789eE+ "{x', max_size=2))
    found = read("".join(text))
    assert not found or found == json.loads("".join(text))


@pytest.mark.parametrize(
    "text", ["", "[", "[[", "[[1", "[[1,2,3,4,5,6", "[[1,2,3,4,5,6]", "[[1,2,3,4,5,", "[]", "[[]]", "[[1,2,3,4]]"]
)
def test_cut_polygons_are_not_read(text):
    assert read(text) == []


def read_by_the_loop(text: str, height: int = 12, width: int = 16) -> tuple[bool, list[int], list[int]]:
    content = np.frombuffer(text.encode(), np.uint8)
    read, starts, stops, ends = read_all(content, np.array([0, len(content)]), MAX_OUTLINE, height, width)
    assert ends.tolist() == [0, len(starts)]
    return bool(read[0]), starts.tolist(), stops.tolist()


@pytest.mark.parametrize(
    "text",
    [
        '{"counts": "48d5", "size": [12, 16]}',
        '{"size":[12,16],"counts":"48d5"}',
        ' {"counts" :\n"48d5"\t, "size": [ 12 , 16.0 ] } '.strip(),
    ],
)
def test_the_compiled_loop_reads_compressed_run_lengths(text):
    assert read_by_the_loop(text) == (True, [4], [12])


@pytest.mark.parametrize(
    "text",
    [
        '{"counts": "48d5"}',
        '{"size": [12, 16]}',
        '{"size": [12, 16], "size": [12, 16]}',
        '{"counts": "48d5", "counts": "48d5"}',
        '{"counts": "48d5", "size": [16, 12]}',
        '{"counts": "48d5", "size": [12, 16, 1]}',
        '{"counts": "48d5", "size": [12, 16], "id": 1}',
        '{"counts": "48d5", "size": [12, 16]',
        '{"counts": "48d5", "size": [12, 16]} 1',
        '{"counts": "48d5, "size": [12, 16]}',
        '{"counts": "\\u0034" "8d5", "size": [12, 16]}',
        '{"counts": "\\u00348d5", "size": [12, 16]}',
        '{"counts": [4, 8, 180], "size": [12, 16]}',
        '{"counts": "48d", "size": [12, 16]}',
        '{"counts": "48d5\\", "size": [12, 16]}',
    ],
)
def test_what_is_not_plain_is_left_to_the_other_parser(text):
    assert read_by_the_loop(text) == (False, [], [])


def test_backslashes_in_compressed_run_lengths():
    """A number of which 5 bits are 12 and more follow is written as a backslash, which JSON writes twice."""
    flat = np.zeros(1600, bool)
    flat[44:88] = True
    text = json.dumps(rle(flat.reshape(40, 40).T))
    assert "\\\\" in text
    read, starts, stops = read_by_the_loop(text, 40, 40)
    assert read and (starts, stops) == ([44], [88])


def test_one_bad_segmentation_does_not_affect_its_neighbours():
    good, other = json.dumps(box(1, 1, 3, 3)).encode(), b'{"size": [8, 8], "counts": [0, 64]}'
    found = rasterize_all([good, b"null", other, b"[[1, 2]]", good], 8, 8)
    assert [isinstance(each, BadSegmentation) for each in found] == [False, True, False, True, False]
    assert found[0].starts.tolist() == found[4].starts.tolist() == [9, 17, 25]
    assert (found[2].starts.tolist(), found[2].stops.tolist()) == ([0], [64])
    assert rasterize_all([], 8, 8) == []


def test_regions_with_more_spans_than_characters_expect():
    """One polygon of few characters covers a span in each of many columns."""
    wide = json.dumps([[0, 0, 3000, 0, 3000, 2, 0, 2]]).encode()
    found = rasterize_all([wide, wide], 4, 3000)
    assert [spans.starts.size for spans in found] == [3000, 3000]
    assert found[1].stops.tolist() == [4 * x + 2 for x in range(3000)]
