"""The masks of the published generator: its known defects, and its in-place remapping carried out literally."""

import numpy as np
import pytest
from trees import box

from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.inspection import oracle
from cocolvis.masks.compat import essnet_lookup

ORDER = (165, 98, 93, 168, 92, 141, 153, 109, 137, 108)
TARGETS = (1050, 181, 110, 1108, 50, 804, 904, 350, 713, 346)


@pytest.mark.parametrize(("eight_bits", "dtype"), [(False, np.int64), (True, np.uint8)])
def test_lookup_equals_moving_ids_in_place(eight_bits, dtype):
    ids = np.arange(92, 184)
    mask = ids.astype(dtype)
    targets = dict(zip(ORDER, TARGETS, strict=True))
    targets |= dict(zip((i for i in range(92, 183) if i not in ORDER), range(1204, 1285), strict=True))
    for old, new in (targets | {183: 0, 255: 0}).items():
        mask[mask == old] = np.array(new).astype(dtype)
    assert essnet_lookup(eight_bits=eight_bits) == dict(zip(ids.tolist(), mask.tolist(), strict=True))


def test_two_shared_classes_are_wrong_and_eight_are_right(tree):
    expected = dict(zip(ORDER, TARGETS, strict=True)) | {93: 1217, 98: 1283, 97: 1207, 183: 0}
    assert {i: essnet_lookup(eight_bits=False)[i] for i in expected} == expected
    tree.image(1)
    tree.stuff(1, 93, box(0, 0, 4, 8))
    tree.stuff(1, 98, box(4, 0, 2, 8))
    tree.thing(1, 110, box(7, 0, 1, 8))
    assert tree.mask(1, compat="essnet")[0].tolist() == [1217] * 4 + [1283] * 2 + [0, 110]
    assert tree.mask(1)[0].tolist() == [110] * 4 + [181] * 2 + [0, 110]


@pytest.mark.parametrize(("category", "published"), [(97, 0), (98, 3), (94, 2), (165, 1050 % 256), (183, 0)])
def test_a_single_stuff_annotation_wraps_at_eight_bits(tree, category, published):
    tree.image(1)
    tree.stuff(1, category, box(0, 0, 8, 8))
    tree.thing(1, 300, box(0, 0, 1, 8))
    assert tree.mask(1, compat="essnet")[0].tolist() == [300] + [published] * 7


def test_two_annotations_of_one_category_do_not_wrap(tree):
    tree.image(1)
    tree.stuff(1, 94, box(0, 0, 4, 8))
    tree.stuff(1, 94, box(4, 0, 4, 8))
    assert (tree.mask(1, compat="essnet") == 1204).all()


def test_an_annotation_that_is_skipped_does_not_count(tree):
    tree.image(1)
    tree.stuff(1, 94, box(0, 0, 8, 8))
    tree.stuff(1, 95, [[1, 2]])
    data = tree.build(compat="essnet")
    assert (data.find(1).mask == 2).all()
    assert oracle.check(data, tree.coco, tree.lvis).faults() == []


def test_images_that_the_published_lists_lack_are_left_out(tree):
    tree.image(429995)
    tree.image(1)
    tree.image(2, listed=False)
    tree.image(3)
    tree.image(4)
    for image_id in (429995, 4):
        tree.stuff(image_id, 94, box(0, 0, 8, 8))
    for image_id in (2, 3):
        tree.thing(image_id, 3, box(0, 0, 8, 8))
    assert tree.build(compat="essnet", images="none").split("train").image_ids().tolist() == [3, 4]
    assert len(tree.build(images="none").split("train")) == 5


def test_small_on_top_is_refused():
    with pytest.raises(DataError, match="the published masks know only 'first'"):
        CocoLvisOptions(compat="essnet", overlap="small-on-top")
