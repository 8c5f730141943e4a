"""The long-tailed sample: LVIS's frequencies, scenes, and objects that are hidden or cut, measured in the written trees."""

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sample_trees import SampleTree, contents, off_line

from cocolvis.sample import longtail
from cocolvis.sample.families import looks_of_families, stuff_table
from cocolvis.sample.longtail import LONG_TAILS, LongTail, used_classes, write_long_tail
from cocolvis.vocabulary import GROUPS, coco_lvis

TINY = LongTail(classes=40, scale=0.01, size=40)
BOTH = ("train", "val")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("long") / "tree"
    write_long_tail(root, TINY)
    return SampleTree(root)


def presence(tree, split):
    """(images, classes + 1) bool: which classes have a pixel in the masks."""
    return np.array([np.bincount(tree.mask(i).ravel(), minlength=1285) > 0 for i in tree.images(split)])


def planned(sample, split):
    """(images, classes + 1) bool: which classes an image is planned to show."""
    scenes = [s for s in longtail._plan(used_classes(sample.classes), sample, (0, 1)) if s.split == split]
    shown = np.zeros((len(scenes), 1285), bool)
    for row, scene in zip(shown, scenes, strict=True):
        row[[c.id for c in scene.things + scene.stuff]] = True
    return shown


def ranks(values):
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def correlation(a, b):
    """Spearman's rank correlation."""
    return np.corrcoef(ranks(a), ranks(b))[0, 1]


def test_every_class_is_in_both_splits_as_often_as_in_lvis(tree):
    used = used_classes(TINY.classes)
    train, val = (presence(tree, split).sum(axis=0) for split in BOTH)
    assert set(np.flatnonzero(train[1:]) + 1) == set(np.flatnonzero(val[1:]) + 1) == {c.id for c in used}
    things = [c for c in used if c.images]
    expected = np.array([math.ceil(max(0.01 * c.images, c.images**0.5)) for c in things])
    found = train[[c.id for c in things]]
    assert (found <= expected).all() and found.sum() >= 0.98 * expected.sum()
    assert correlation(found, [c.images for c in things]) > 0.97
    assert {c.group for c in used} == set(GROUPS)
    assert all(1 <= train[c.id] <= 10 for c in used if c.group == "rare")


def test_classes_come_together():
    """Lifts of pairs of classes vary far more than when each class is dealt to the images at random."""
    shown = planned(LONG_TAILS["longtail-tiny"], "train")
    rng = np.random.default_rng(0)
    shuffled = np.stack([rng.permutation(column) for column in shown.T], axis=1)
    assert spread_of_lift(shown) > 2 * spread_of_lift(shuffled)


def spread_of_lift(shown):
    """Standard deviation of the lift over all pairs of classes that would meet in three images by chance."""
    shown = shown[:, shown.sum(axis=0) > 0].astype(float)
    together, alone = shown.T @ shown, shown.sum(axis=0)
    expected = np.outer(alone, alone) / len(shown)
    pairs = np.triu(expected >= 3, 1)
    assert pairs.sum() > 20
    return (together[pairs] / expected[pairs]).std()


def test_objects_are_hidden_in_part_and_cut_by_the_border(tree):
    cut = hidden = total = 0
    for image in tree.images():
        masks = [mask for _, mask in tree.thing_masks(image)]
        for k, mask in enumerate(masks):
            cut += bool(mask[[0, -1]].any() or mask[:, [0, -1]].any())
            visible = (mask & ~np.any(masks[:k], axis=0)).sum() if k else mask.sum()
            hidden += bool(0 < visible < 0.9 * mask.sum())
            total += 1
    assert 0.1 < cut / total < 0.7 and 0.1 < hidden / total < 0.8


def test_same_seed_same_bytes_and_no_picture_twice(tree, tmp_path):
    less = replace(TINY, classes=20, size=32)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_long_tail(tmp_path / name, less, seed=seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    pictures = [data for files in (a, c, contents(tree.root)) for path, data in files.items() if path.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures)


def test_federated_lists(tree):
    for image in tree.images():
        shown = {coco_lvis()[c].sources.get("lvis") for c in np.unique(tree.mask(image)).tolist() if c}
        assert image["neg_category_ids"] and not shown & set(image["neg_category_ids"])
        assert set(image["not_exhaustive_category_ids"]) <= {a["category_id"] for a in tree.things[image["id"]]}
    assert any(image["not_exhaustive_category_ids"] for image in tree.images())


def test_pictures_match_the_masks(tree):
    """The visible pixels of a thing fit the two colours of its class better than those of another family."""
    looks = looks_of_families(used_classes(TINY.classes), TINY.size)
    near = total = 0
    for image in tree.images("val"):
        picture = cv2.imread(str(tree.path(image)))[..., ::-1].astype(float)
        mask = tree.mask(image)
        for category in {category for category, _ in tree.thing_masks(image)}:
            region, look = picture[mask == category], looks[category]
            others = [other for other in looks.values() if (other.base != look.base).any()]
            if len(region) >= 40:
                near += off_line(region, look) < off_line(region, others[total % len(others)])
                total += 1
    assert total > 40 and near > 0.96 * total


def test_families_differ_in_detail_only():
    used = used_classes(1284)
    looks = looks_of_families(used, 96)
    assert {c.name for c in coco_lvis() if "stuff" in c.sources} == set(stuff_table()) - {"other"}
    ranked = [c for c in sorted(used, key=lambda c: (-(c.images or 0), c.id)) if c.images and c.kind == "thing"]
    families = {}
    for c in ranked:
        look = looks[c.id]
        families.setdefault((*look.base.tolist(), look.shape, look.texture), []).append(c)
    assert len(families) > 290 and sorted(map(len, families.values()))[20] == 4
    for members in families.values():
        details = {(round(looks[c.id].period, 3), looks[c.id].corners) for c in members}
        assert len(details) == len(members)
    quarter = len(ranked) // 4
    assert np.mean([len({ranked.index(c) // quarter for c in m}) == len(m) for m in families.values()]) > 0.9


@pytest.mark.long
@pytest.mark.parametrize("name", LONG_TAILS)
def test_plans_of_all_sizes(name):
    sample = LONG_TAILS[name]
    used = used_classes(sample.classes)
    train, val = (planned(sample, split).sum(axis=0) for split in BOTH)
    for c in used:
        assert val[c.id] >= 1 and train[c.id] >= 1
        if c.images:
            assert train[c.id] == math.ceil(max(sample.scale * c.images, c.images**0.5))
            assert c.group != "rare" or train[c.id] <= 10
    if sample.scale == 1:
        assert all(train[c.id] == c.images for c in used if c.images)
    assert correlation([train[c.id] for c in used if c.images], [c.images for c in used if c.images]) > 0.99
    assert gini([train[c.id] for c in used]) > 0.65


def gini(values):
    values = np.sort(np.array(values, float))
    return np.abs(values[:, None] - values).mean() / (2 * values.mean())


@pytest.mark.long
def test_the_whole_tiny_sample(tmp_path):
    write_long_tail(tmp_path / "tree", LONG_TAILS["longtail-tiny"], workers=2)
    tree = SampleTree(tmp_path / "tree")
    train, val = (presence(tree, split).sum(axis=0) for split in BOTH)
    used = used_classes(300)
    assert all(train[c.id] >= 1 and val[c.id] >= 1 for c in used)
    assert all(train[c.id] <= 10 for c in used if c.group == "rare")
    found = [train[c.id] for c in used if c.images]
    assert correlation(found, [c.images for c in used if c.images]) > 0.98
