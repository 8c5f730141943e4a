"""How regions cover each other, in hand-drawn 8 x 8 masks that are built and read back."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from trees import art, box, rle

from cocolvis.masks.merge import Region, merge, merge_at_once
from cocolvis.masks.rasterize import Spans, rasterize_all
from cocolvis.masks.runlength import encode

CLASSES = {"a": 3, "b": 793, "t": 1271, "s": 1261, "C": 181}
"""airplane and person (LVIS 3 and 793), tree and sky-other (stuff 169 and 157), cabinet (both LVIS 181 and stuff 98)."""

TREE, SKY, CABINET, OTHER = 169, 157, 98, 183


def test_things_lie_over_stuff_and_the_first_of_a_source_wins(tree):
    tree.image(1)
    tree.stuff(1, SKY, box(0, 0, 8, 5))
    tree.stuff(1, TREE, box(0, 3, 8, 5))
    tree.thing(1, 793, box(1, 1, 4, 4))
    tree.thing(1, 3, box(3, 3, 4, 4))
    drawn = """
        ssssssss
        sbbbbsss
        sbbbbsss
        sbbbbaas
        sbbbbaas
        tttaaaat
        tttaaaat
        tttttttt
    """
    assert np.array_equal(tree.mask(1), art(drawn, CLASSES))
    assert tree.mask(1).dtype == np.uint16


def test_file_order_decides_not_ids_nor_neighbours_in_the_file(tree):
    tree.image(1), tree.image(2)
    tree.thing(1, 3, box(0, 0, 4, 8))
    tree.thing(2, 793, box(0, 0, 8, 8))
    tree.thing(1, 793, box(0, 0, 8, 8))
    tree.json["lvis_v1_train"]["annotations"][0]["id"] = 99
    assert np.array_equal(tree.mask(1), art("aaaabbbb " * 8, CLASSES))


def test_a_shared_class_is_one_class_as_thing_and_as_stuff(tree):
    tree.image(1)
    tree.stuff(1, CABINET, box(0, 0, 4, 8))
    tree.thing(1, 181, box(6, 0, 2, 8))
    assert np.array_equal(tree.mask(1), art("CCCC..CC " * 8, CLASSES))


def test_a_single_stuff_annotation_keeps_its_class(tree):
    tree.image(1)
    tree.stuff(1, TREE, box(0, 0, 8, 4))
    assert np.array_equal(tree.mask(1), art("tttttttt " * 4 + "........ " * 4, CLASSES))


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_with_holes(tree, compressed):
    drawn = """
        ........
        .tttttt.
        .t....t.
        .t.tt.t.
        .t.tt.t.
        .t....t.
        .tttttt.
        ........
    """
    expected = art(drawn, CLASSES)
    tree.image(1)
    tree.stuff(1, TREE, rle(expected > 0, compressed))
    assert np.array_equal(tree.mask(1), expected)


def test_several_polygons_are_one_region(tree):
    tree.image(1)
    tree.thing(1, 3, box(0, 0, 3, 8) + box(2, 0, 2, 8) + box(6, 0, 2, 8))
    assert np.array_equal(tree.mask(1), art("aaaa..aa " * 8, CLASSES))


def test_stuff_other_hides_what_lies_under_it_and_is_unlabelled(tree):
    tree.image(1)
    tree.stuff(1, OTHER, box(2, 0, 4, 8))
    tree.stuff(1, SKY, box(0, 0, 8, 8))
    assert np.array_equal(tree.mask(1), art("ss....ss " * 8, CLASSES))


def test_images_with_nothing_without_stuff_or_unlisted_there_have_a_mask(tree):
    tree.image(1)
    tree.image(2)
    tree.image(3, listed=False)
    tree.thing(2, 3, box(0, 0, 4, 8))
    tree.thing(3, 793, box(0, 0, 4, 8))
    data = tree.build()
    assert not data.find(1).mask.any()
    assert np.array_equal(data.find(2).mask, art("aaaa.... " * 8, CLASSES))
    assert np.array_equal(data.find(3).mask, art("bbbb.... " * 8, CLASSES))
    assert data.index["report"]["counts"] == {"no stuff": 3}


def test_val_takes_stuff_and_pictures_where_the_url_says(tree):
    tree.image(1, "val", "train2017")
    tree.image(2, "val", "val2017")
    tree.stuff(1, TREE, box(0, 0, 8, 8), "train2017")
    tree.stuff(2, SKY, box(0, 0, 8, 8), "val2017")
    data = tree.build()
    assert [data.find(i).path for i in (1, 2)] == ["train2017/000000000001.jpg", "val2017/000000000002.jpg"]
    assert [int(data.find(i).mask[0, 0]) for i in (1, 2)] == [CLASSES["t"], CLASSES["s"]]


def test_small_on_top_goes_by_painted_area_ties_by_file_order(tree):
    tree.image(1)
    tree.stuff(1, SKY, box(0, 0, 8, 8))
    tree.stuff(1, TREE, box(0, 0, 2, 8))
    tree.thing(1, 793, box(1, 0, 5, 8))
    tree.thing(1, 3, box(1, 0, 2, 8))
    tree.thing(1, 181, box(2, 0, 2, 8))
    assert np.array_equal(tree.mask(1), art("sbbbbbss " * 8, CLASSES))
    assert np.array_equal(tree.mask(1, overlap="small-on-top"), art("taaCbbss " * 8, CLASSES))


def test_small_on_top_counts_pixels_once_where_polygons_overlap(tree):
    tree.image(1)
    tree.thing(1, 3, box(0, 0, 4, 8))
    tree.thing(1, 793, box(2, 0, 3, 8) + box(2, 0, 3, 8))
    assert np.array_equal(tree.mask(1, overlap="small-on-top"), art("aabbb... " * 8, CLASSES))


def test_merge_is_column_major_in_and_row_major_out():
    region = Region(5, Spans(np.array([1, 6]), np.array([3, 7])))
    runs = merge([], [region], height=3, width=4)
    assert runs.mask().tolist() == [[0, 0, 5, 0], [5, 0, 0, 0], [5, 0, 0, 0]]
    assert (runs.classes.tolist(), runs.lengths.tolist()) == ([0, 5, 0, 5, 0, 5, 0], [2, 1, 1, 1, 3, 1, 3])


def naively_merged(regions, height, width):
    flat = np.zeros(height * width, np.uint16)
    for class_id, (starts, stops) in reversed(regions):
        for start, stop in zip(starts, stops, strict=True):
            flat[start:stop] = class_id
    return flat.reshape(width, height).T


@pytest.mark.parametrize(
    ("height", "width"),
    [
        (1, 1),
        (1, 40_000),
        (40_000, 1),
        (2, 9000),
        (9000, 2),
        (7, 3),
        (8, 16),
        (9, 17),
        (63, 70),
        (64, 70),
        (65, 70),
        (90, 200),
        (640, 480),
        (4096, 2),
        (8193, 1),
        (1030, 1030),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 3, 40, 64, 65, 200])
def test_runs_are_those_of_a_mask_that_is_painted_whole(height, width, count):
    """Of all shapes, because the compiled loop takes 64 regions at a time, and 2**20 pixels if there are no more."""
    rng = np.random.default_rng((height, width, count))
    regions = []
    for _ in range(count):
        cuts = np.unique(rng.integers(0, height * width + 1, 2 * int(rng.integers(0, 60))))
        cuts = cuts[: len(cuts) // 2 * 2]
        regions.append(Region(int(rng.choice([0, 1, 1, 2, 1284, 65_535])), Spans(cuts[::2], cuts[1::2])))
    expected = naively_merged([region[:2] for region in regions], height, width)
    runs = merge(regions[count // 2 :], regions[: count // 2], height, width)
    assert np.array_equal(runs.mask(), expected)
    classes, lengths = encode(expected)
    assert np.array_equal(runs.classes, classes) and np.array_equal(runs.lengths, lengths)
    assert runs.classes.dtype == runs.lengths.dtype == np.uint16


def test_masks_of_noise_have_more_runs_than_the_list_has_room_for():
    pixels = np.random.default_rng(0).permutation(96 * 64)[: 96 * 32]
    starts = np.sort(pixels)
    regions = [Region(3, Spans(starts, starts + 1))]
    assert np.array_equal(merge(regions, [], 96, 64).mask(), naively_merged([regions[0][:2]], 96, 64))


def segmentations_of(rng, count: int, height: int, width: int) -> list[bytes]:
    """As annotation files have them: polygons, of which some leave the image and some cover nothing, and run lengths."""
    found = []
    for _ in range(count):
        if rng.random() < 0.5:
            low, high = rng.uniform(-4, [width, height], (2, 2))
            corners = (low, high) if rng.random() < 0.9 else (low, low)
            (x0, y0), (x1, y1) = np.round(corners, 2).tolist()
            found.append(json.dumps([[x0, y0, x1, y0, x1, y1], [x0, y1, x1, y0, x0, y0]]).encode())
        else:
            coded = coco_mask.encode(np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.1, 0.9]), np.uint8))
            found.append(json.dumps({"size": coded["size"], "counts": coded["counts"].decode()}).encode())
    return found


@pytest.mark.parametrize("count", [0, 1, 5, 20, 70])
def test_at_once_is_what_rasterize_and_merge_find(count):
    rng = np.random.default_rng(count)
    segmentations, ids = segmentations_of(rng, count, 30, 50), rng.integers(0, 1285, count).tolist()
    runs, painted = merge_at_once(segmentations, ids, 30, 50)
    spans = rasterize_all(segmentations, 30, 50)
    expected = merge([], [Region(*pair) for pair in zip(ids, spans, strict=True)], 30, 50)
    assert all(np.array_equal(*pair) for pair in zip(runs, expected, strict=True))
    assert painted == [each.area > 0 for each in spans] and (count < 20 or not all(painted))
    for unusual in (b"[[0, 0, 2e0, 0, 2, 2]]", b"null", b'{"size": [2, 2], "counts": "04"}'):
        assert merge_at_once([*segmentations, unusual], [*ids, 1], 30, 50) is None
