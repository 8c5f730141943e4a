"""Bootstrap intervals, compared with drawing pictures one by one, and with what statistics promises of them."""

import json
import tracemalloc

import numpy as np
import pytest

from ess.evaluation import bootstrap
from ess.evaluation.bootstrap import difference_intervals, drawn_miou, draws, miou_intervals
from ess.evaluation.metrics import Confusion
from ess.evaluation.picture_counts import PictureCounts

CLASSES = 300  # more than a block of classes


def pictures(seed=0, count=12, classes=CLASSES, right=0.5):
    """Image id -> (3, C) counts of a picture of a few classes; how difficult a picture is does not depend on ``seed``."""
    rng, found = np.random.default_rng(seed), {}
    scenes = np.random.default_rng(99)
    for image in scenes.permutation(1000)[:count].tolist():
        confusion = Confusion(classes)
        truth = scenes.choice(scenes.integers(0, classes - 20, 6), 200)
        hit = rng.random(200) < right * scenes.random()
        confusion.update(truth, np.where(hit, truth, rng.integers(0, classes, 200)))
        found[image] = confusion.pixels.numpy()
    return found


def groups(classes=CLASSES):
    first = np.arange(classes) < 40
    return {
        "all": np.ones(classes, bool),
        "first": first,
        "none": np.zeros(classes, bool),
        "unseen": np.arange(classes) == classes - 1,
    }


def naive_miou(counts, ids, members):
    """The mIoU of a list of pictures, in which one may occur several times, class by class."""
    ious = []
    for c in np.flatnonzero(members):
        truth, predicted, both = (sum(int(counts[image][part, c]) for image in ids) for part in range(3))
        if truth:
            ious.append(both / (truth + predicted - both))
    return np.mean(ious) if ious else np.nan


def test_drawn_scores_are_those_of_the_listed_pictures():
    counts = pictures()
    found = PictureCounts.of(CLASSES, counts)
    assert found.ids.tolist() == sorted(counts)
    ((everything, *drawn),) = draws(len(counts), 5, seed=1)
    drawn = np.array(drawn)
    assert (everything == 1).all()
    assert drawn.shape == (5, 12) and (drawn.sum(axis=1) == 12).all() and (drawn == 0).any() and (drawn > 1).any()
    scores = drawn_miou(found, drawn, groups())
    for number, times in enumerate(drawn):
        ids = np.repeat(found.ids, times).tolist()
        for name, members in groups().items():
            assert scores[name][number] == pytest.approx(naive_miou(counts, ids, members), nan_ok=True)
    assert np.isnan(scores["none"]).all() and np.isnan(scores["unseen"]).all() and not np.isnan(scores["all"]).any()


def test_an_interval_holds_the_middle_of_the_draws():
    found = PictureCounts.of(CLASSES, pictures())
    interval = miou_intervals([found], groups(), resamples=500, seed=4)
    scores = drawn_miou(found, next(draws(12, 500, seed=4))[1:], groups())
    for name in ("all", "first"):
        value, low, high = interval[name]
        assert value == pytest.approx(naive_miou(pictures(), found.ids.tolist(), groups()[name]))
        shifted = scores[name] + value - scores[name].mean()
        assert ((shifted >= low) & (shifted <= high)).mean() == pytest.approx(0.95, abs=0.005)
    assert np.isnan(interval["none"]).all()
    assert miou_intervals([found], groups(), resamples=500, seed=4)["all"] == interval["all"]
    assert miou_intervals([found], groups(), resamples=500, seed=5)["all"] != interval["all"]


def test_draws_in_parts_are_those_of_one_call_and_bound_the_memory(monkeypatch):
    runs = [PictureCounts.of(CLASSES, pictures(seed, 100)) for seed in (0, 1)]
    whole = np.random.default_rng(3).multinomial(100, np.full(100, 1 / 100), size=2000)
    before = difference_intervals(runs[:1], runs[1:], groups(), resamples=2000, seed=3)
    for name, size in (("_DRAWS", 77), ("_NUMBERS", 1234)):
        monkeypatch.setattr(bootstrap, name, size, raising=False)
    np.testing.assert_array_equal(np.concatenate([*draws(100, 2000, 3)]), [np.ones(100), *whole])
    tracemalloc.start()
    after = difference_intervals(runs[:1], runs[1:], groups(), resamples=2000, seed=3)
    assert tracemalloc.get_traced_memory()[1] < whole.nbytes
    tracemalloc.stop()
    for name, interval in before.items():
        assert after[name] == pytest.approx(interval, rel=1e-12, nan_ok=True)


def test_the_width_is_the_standard_error_of_a_mean():
    """One class in every picture, never predicted elsewhere: its IoU is the mean of the shares that are right."""
    rng = np.random.default_rng(0)
    right = rng.integers(20, 80, 400)
    counts = {image: np.array([[100], [n], [n]]) for image, n in enumerate(right)}
    value, low, high = miou_intervals([PictureCounts.of(1, counts)], {"all": np.ones(1, bool)}, resamples=4000)["all"]
    assert value == pytest.approx(right.mean() / 100)
    assert high - low == pytest.approx(2 * 1.96 * right.std() / 100 / 20, rel=0.05)


def test_intervals_hold_the_score_of_other_pictures_as_often_as_they_say():
    """The expected mIoU of a model on 60 pictures, estimated on many sets of 60, is in the intervals of most sets."""
    rng, everything = np.random.default_rng(3), {"all": np.ones(40, bool)}

    def picture():
        truth = rng.choice(rng.integers(0, 40, 4), 100)
        return np.stack(
            [
                np.bincount(each, minlength=40)
                for each in (truth, np.where(rng.random(100) < rng.random(), truth, rng.integers(0, 40, 100)))
            ]
        )

    intervals = []
    for _ in range(80):
        pairs = [picture() for _ in range(60)]
        counts = {n: np.stack([*pair, np.minimum(*pair)]) for n, pair in enumerate(pairs)}
        intervals.append(miou_intervals([PictureCounts.of(40, counts)], everything, resamples=200)["all"])
    expected = np.mean([each.value for each in intervals])
    assert np.mean([each.low <= expected <= each.high for each in intervals]) == pytest.approx(0.95, abs=0.08)


def test_several_runs_are_averaged():
    one, two = (PictureCounts.of(CLASSES, pictures(seed, right=right)) for seed, right in ((1, 0.2), (2, 1.0)))
    both, alone = (
        miou_intervals([one, two], groups(), resamples=50)["all"],
        miou_intervals([one], groups(), resamples=50)["all"],
    )
    other = miou_intervals([two], groups(), resamples=50)["all"]
    assert both.value == pytest.approx((alone.value + other.value) / 2) and alone.high < both.low < both.high < other.low


def test_the_difference_is_paired():
    better, worse = (PictureCounts.of(CLASSES, pictures(7, right=right)) for right in (0.9, 0.8))
    difference = difference_intervals([better], [worse], groups())["all"]
    single = [miou_intervals([each], groups())["all"] for each in (better, worse)]
    assert difference.value == pytest.approx(single[0].value - single[1].value)
    assert difference.low > 0 and difference.excludes_zero
    assert single[1].high > single[0].low  # the pictures differ more than the models do
    assert difference_intervals([worse], [worse], groups())["all"] == (0, 0, 0)
    same = PictureCounts.of(CLASSES, pictures(8, right=0.8))
    assert not difference_intervals([same], [worse], groups())["all"].excludes_zero
    opposite = difference_intervals([worse], [better], groups())["all"]
    assert opposite.excludes_zero and opposite.high < 0


def test_folds_are_joined_in_the_order_of_their_pictures():
    counts = pictures(count=9)
    ids = [*counts]
    parts = [PictureCounts.of(CLASSES, {image: counts[image] for image in ids[start::3]}) for start in range(3)]
    whole, joined = PictureCounts.of(CLASSES, counts), PictureCounts.joined(parts)
    assert joined.ids.tolist() == whole.ids.tolist()
    np.testing.assert_array_equal(joined.dense(), whole.dense())
    np.testing.assert_array_equal(whole.dense(), np.stack([counts[image] for image in sorted(counts)]))
    np.testing.assert_array_equal(whole.dense(100, 130), whole.dense()[:, :, 100:130])
    again = PictureCounts.from_json(json.loads(json.dumps(joined.to_json())))
    np.testing.assert_array_equal(again.dense(), whole.dense())
    with pytest.raises(ValueError, match="share a picture"):
        PictureCounts.joined([whole, parts[0]])
    with pytest.raises(ValueError, match="expected one number of classes"):
        PictureCounts.joined([parts[0], PictureCounts.of(7, {})])


def test_evaluations_that_cannot_be_compared_are_refused():
    whole = PictureCounts.of(CLASSES, pictures())
    for others in ([PictureCounts.of(CLASSES, pictures(count=5))], [PictureCounts.of(301, pictures(classes=301))]):
        with pytest.raises(ValueError, match="different pictures or classes"):
            difference_intervals([whole], others, groups())
    with pytest.raises(ValueError, match="no pictures"):
        miou_intervals([], groups())


def test_an_interval_has_no_impossible_scores_but_a_difference_may_be_negative():
    """A class in two pictures, with many false positives in another one: the draws without that picture score much higher."""
    seen, wrong, none = ([[100], [60], [60]], [[0], [1000], [0]], [[0], [0], [0]])
    counts = PictureCounts.of(1, {n: np.array(([seen, seen, wrong] + 37 * [none])[n]) for n in range(40)})
    nothing = PictureCounts.of(1, {n: np.array([[100 * (n < 2)], [0], [0]]) for n in range(40)})
    everything = {"all": np.ones(1, bool), "none": np.zeros(1, bool)}
    found = miou_intervals([counts], everything)
    value, low, high = found["all"]
    assert (value, low) == (pytest.approx(0.1), 0) and 0.3 < high < 0.6 and np.isnan(found["none"]).all()
    difference = difference_intervals([counts], [nothing], everything)["all"]
    assert difference.low < -0.1 and difference.high == pytest.approx(high)
