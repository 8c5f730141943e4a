"""The catalog and the scores agree with the decoded masks, pixel by pixel, and survive whatever is in the cache."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from instances import counted, totals, without_instances
from predictions import shifted, write_predictions

from cocolvis.errors import DataError
from cocolvis.explorer import queries
from cocolvis.explorer.cache import Tables, Thumbnails, cache_folder, write_tables
from cocolvis.explorer.scores import compare, iou
from cocolvis.explorer.workspace import Workspace
from cocolvis.masks.runlength import Runs
from cocolvis.storage.dataset import Dataset


@pytest.fixture(scope="module")
def masks(dataset) -> list[tuple[str, int, np.ndarray]]:
    """(split, id, mask) of every image in the order of the catalog."""
    splits = [dataset.split(name) for name in dataset.splits]
    return [(split.name, split[i].image_id, split.mask(i)) for split in splits for i in range(len(split))]


def test_every_class_has_the_images_and_pixels_that_the_masks_show(workspace, masks):
    catalog = workspace.catalog
    assert len(catalog) == len(masks) == 40
    assert catalog.ids().tolist() == [image_id for _, image_id, _ in masks]
    for c in range(len(workspace.vocabulary) + 1):
        pixels = [int((mask == c).sum()) for _, _, mask in masks] if c else [0] * len(masks)
        images, counts = catalog.showing(c)
        assert images.tolist() == [i for i, count in enumerate(pixels) if count]
        assert counts.tolist() == [count for count in pixels if count]
        for split in (None, "train", "val"):
            inside = [count for count, (name, _, _) in zip(pixels, masks, strict=True) if split in (None, name)]
            assert (catalog.images(split)[c], catalog.pixels(split)[c]) == (sum(map(bool, inside)), sum(inside))


def test_every_class_has_the_instances_that_lvis_annotated(workspace, dataset, sample, tmp_path):
    expected = {name: totals(counted(dataset, sample.lvis, name)) for name in dataset.splits}
    expected[None] = expected["train"] + expected["val"]
    for split, of_split in expected.items():
        assert workspace.catalog.instances(split) == [of_split[c] for c in range(len(dataset.vocabulary) + 1)]
    assert expected[None].total() > 50
    with without_instances():
        sample.rebuild(tmp_path / "data", splits=("val",), images="none")
    earlier = Workspace(tmp_path / "data")
    earlier.prepare()
    assert earlier.catalog.instances() is earlier.catalog.instances("val") is None


def test_and_or_not_select_what_the_masks_show(workspace, masks):
    rng, catalog = np.random.default_rng(0), workspace.catalog
    shown = [set(np.unique(mask).tolist()) - {0} for _, _, mask in masks]
    common = [c for c in range(1, 1285) if sum(c in classes for classes in shown) > 3]
    found = 0
    for _ in range(60):
        every, some, none = (rng.choice(common, rng.integers(0, 3), replace=False).tolist() for _ in range(3))
        split = [None, "train", "val"][rng.integers(3)]
        expected = [
            i
            for i, (classes, (name, _, _)) in enumerate(zip(shown, masks, strict=True))
            if classes.issuperset(every) and (not some or classes & {*some}) and not classes & {*none} and split in (None, name)
        ]
        assert queries.select(catalog, every, some, none, split).tolist() == expected
        found += len(expected)
    assert found > 50


def test_areas_and_places_are_those_of_the_images(workspace, masks, dataset):
    images = np.arange(len(masks))
    classes = [int(c) for c in np.unique(masks[0][2]) if c]
    expected = [np.isin(mask, classes).mean() for _, _, mask in masks]
    np.testing.assert_allclose(queries.areas(workspace.catalog, classes, images), expected)
    for image, (split, image_id, mask) in enumerate(masks):
        place = workspace.catalog.place(image)
        assert place.split == split and dataset.split(split)[place.row].image_id == image_id
        assert workspace.catalog.sizes()[image].tolist() == list(mask.shape)
        assert queries.find(workspace.catalog, image_id, split) == queries.find(workspace.catalog, image_id) == image
    assert queries.find(workspace.catalog, masks[0][1], "val" if masks[0][0] == "train" else "train") is None


def naive(truth: np.ndarray, predicted: np.ndarray) -> dict[int, float]:
    labelled = truth > 0
    return {
        int(c): ((truth == c) & (predicted == c)).sum() / (((truth == c) | (predicted == c)) & labelled).sum()
        for c in np.unique(truth[labelled])
    }


def test_runs_are_compared_as_pixels_are():
    rng = np.random.default_rng(1)
    for height, width in ((1, 1), (1, 9), (7, 5), (40, 33), (300, 400)):
        truth, predicted = (rng.integers(0, 4, (height, width)).astype(np.uint16) for _ in range(2))
        pairs = compare(Runs.of(truth), Runs.of(predicted))
        for t, p, pixels in zip(*pairs, strict=True):
            assert pixels == ((truth == t) & (predicted == p)).sum() and t > 0
        assert pairs.pixels.sum() == (truth > 0).sum()
        assert iou(pairs) == pytest.approx(naive(truth, predicted))
    with pytest.raises(ValueError, match="the prediction is 3 x 4, its mask 4 x 3"):
        compare(Runs.of(np.ones((4, 3), np.uint16)), Runs.of(np.ones((3, 4), np.uint16)))


def test_runs_of_no_pixel_change_nothing():
    truth = Runs(np.array([9, 1, 2, 3], np.uint16), np.array([0, 3, 0, 3], np.uint16), 2, 3)
    predicted = Runs(np.array([1, 3], np.uint16), np.array([4, 2], np.uint16), 2, 3)
    assert [column.tolist() for column in compare(truth, predicted)] == [[1, 3, 3], [1, 1, 3], [3, 1, 2]]


def test_the_scores_of_a_run_are_those_of_its_pixels(workspace, masks):
    (run,), catalog = workspace.runs.values(), workspace.catalog
    scores, size = run.scores, len(workspace.catalog)
    inside = [(i, mask, shifted(image_id, mask.copy())) for i, (split, image_id, mask) in enumerate(masks) if split == "val"]
    assert scores.images.tolist() == [i for i, _, _ in inside]
    truth, predicted = (np.concatenate([one[part].ravel() for one in inside]) for part in (1, 2))
    per_class = naive(truth, predicted)
    assert scores.facts["miou"] == pytest.approx(np.mean([*per_class.values()]))
    assert scores.facts["accuracy"] == pytest.approx((truth == predicted)[truth > 0].mean())
    assert {c: v for c, v in enumerate(scores.facts["iou"]) if v is not None} == pytest.approx(per_class)
    by_image = scores.image_scores(size)
    for i, mask, prediction in inside:
        of_image = naive(mask, prediction)
        assert by_image[i] == pytest.approx(np.mean([*of_image.values()]), rel=1e-6) if of_image else math.isnan(by_image[i])
        assert iou(compare(Runs.of(mask), Runs.of(prediction))) == pytest.approx(of_image)
    assert np.isnan(by_image[[i for i in range(size) if i not in scores.images]]).all()
    for c in [*per_class][:5]:
        ours = scores.class_scores(c, size)
        for i, mask, prediction in inside:
            either = (((mask == c) | (prediction == c)) & (mask > 0)).sum()
            assert ours[i] == pytest.approx(((mask == c) & (prediction == c)).sum() / either) if either else math.isnan(ours[i])
    pairs = scores.confusion
    t, p, pixels = (int(column[int(pairs.pixels.argmax())]) for column in pairs)
    assert pixels == ((truth == t) & (predicted == p)).sum()
    images, counts = scores.confused(t, p)
    assert dict(zip(images.tolist(), counts.tolist(), strict=True)) == {
        i: n for i, mask, prediction in inside if (n := int(((mask == t) & (prediction == p)).sum()))
    }
    assert not len(scores.confused(1283, 1)[0])
    assert catalog.unreadable == []


def test_a_broken_shard_is_reported_and_the_others_are_shown(sample, tmp_path, cache):
    shutil.copytree(sample.data, tmp_path / "data")
    shards = sorted((tmp_path / "data" / "shards").glob("train-*.h5"))
    whole = Workspace(tmp_path / "data")
    whole.prepare()
    shutil.rmtree(cache)
    shards[0].write_bytes(shards[0].read_bytes()[:5000])
    broken = Workspace(tmp_path / "data")
    broken.prepare()
    assert len(broken.catalog.unreadable) == 1 and shards[0].name in broken.catalog.unreadable[0]
    assert len(broken.catalog) == len(whole.catalog) - 15
    assert broken.catalog.ids().tolist() == whole.catalog.ids()[15:].tolist()
    place = broken.catalog.place(0)
    assert broken.dataset.split(place.split)[place.row].image_id == broken.catalog.ids()[0]
    assert not list(cache.rglob("*.tables"))  # the next start looks again: the shard may be repaired


def test_a_prepared_catalog_is_found_again_unless_it_was_damaged(sample_dataset, cache):
    first = Workspace(sample_dataset)
    assert first.catalog is None
    first.prepare()
    (path,) = cache.rglob("*.tables")
    again = Workspace(sample_dataset)
    assert again.catalog.images() == first.catalog.images()
    common = int(np.argmax(first.catalog.images()))
    assert again.catalog.showing(common)[0].tolist() == first.catalog.showing(common)[0].tolist() != []
    content = path.read_bytes()
    for damaged in (b"", content[:50], content[:-8], b"x" + content[1:], content[:24] + b"\xff" * 60 + content[84:]):
        path.write_bytes(damaged)
        assert Workspace(sample_dataset).catalog is None


def test_another_folder_cannot_bring_its_catalog_under_the_same_digest(sample_dataset, tmp_path):
    Workspace(sample_dataset).prepare()
    shutil.copytree(sample_dataset, tmp_path / "forged")
    assert Workspace(tmp_path / "forged").catalog is None


def test_without_a_writable_cache_everything_is_kept_in_memory(sample_dataset, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COCOLVIS_CACHE", str(tmp_path / "file" / "below"))
    found = Workspace(sample_dataset)
    found.prepare()
    common = int(np.argmax(found.catalog.images()))
    assert len(found.catalog) == 40 and len(found.catalog.showing(common)[0]) == found.catalog.images()[common] > 0
    found.thumbnails.put("ab12", b"picture")
    assert found.thumbnails.get("ab12") is None


def test_predictions_of_another_data_set_or_none_at_all_are_refused(dataset, sample_dataset, predictions, tmp_path):
    with pytest.raises(DataError, match="does not hold predictions; write them with `ess predict RUN DATA --format shards`"):
        Workspace(sample_dataset, [sample_dataset])
    other = write_predictions(dataset, tmp_path / "other", shifted, of="0" * 64)
    with pytest.raises(DataError, match="holds predictions for another data set"):
        Workspace(sample_dataset, [other])
    twice = Workspace(sample_dataset, [predictions, predictions])
    assert [*twice.runs] == ["shifted", "shifted-2"]


def test_predictions_of_another_size_are_left_out_and_listed(dataset, sample_dataset, tmp_path):
    first = dataset.split("val")[0].image_id
    made = write_predictions(dataset, tmp_path / "made", lambda i, mask: mask[:-1] if i == first else mask)
    found = Workspace(sample_dataset, [made])
    found.prepare()
    facts = found.runs["made"].scores.facts
    assert len(facts["unreadable"]) == 1 and "the prediction is" in facts["unreadable"][0]
    assert facts["images"] == len(dataset.split("val")) - 1 and facts["miou"] == 1


def test_tables_keep_every_array_and_only_the_newest_files(tmp_path):
    arrays = {"a": np.arange(7, dtype=np.uint16), "empty": np.zeros((0, 2)), "b": np.ones((3, 2), np.int64)}
    for number in range(30):
        write_tables(tmp_path / f"{number:02d}.tables", {"number": number}, arrays)
        os.utime(tmp_path / f"{number:02d}.tables", (number + 1, number + 1))
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert len(kept) <= 25 and kept[-1] == "29.tables" and "00.tables" not in kept
    found = Tables.open(tmp_path / "29.tables")
    assert found.facts == {"number": 29}
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
        assert not found[name].flags.writeable


def test_thumbnails_stay_below_their_limit_and_lose_the_oldest(tmp_path):
    kept = Thumbnails(tmp_path, most=256 * 1000)
    for number in range(8):
        kept.put(f"aa{number}", bytes([number]) * 300)
        path = tmp_path / "aa" / f"{number}.jpg"
        if path.exists():
            os.utime(path, (number + 1, number + 1))
    assert kept.get("aa0") is None and kept.get("aa7") == b"\7" * 300
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jpg")) <= 1000


def test_a_read_only_data_set_stays_as_it_is(sample_dataset):
    before = {path: path.stat().st_mtime_ns for path in sample_dataset.rglob("*")}
    Workspace(sample_dataset).prepare()
    assert {path: path.stat().st_mtime_ns for path in sample_dataset.rglob("*")} == before
    assert Dataset.open(sample_dataset).splits


def test_a_user_without_a_home_has_no_cache(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    for name in ("COCOLVIS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    write_tables(cache_folder() / "a.tables", {"number": 1}, {})
    assert Tables.open(cache_folder() / "a.tables") is None
