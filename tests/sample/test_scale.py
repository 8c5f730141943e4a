"""The scale sample: the same pictures with any number of classes, and labels that nest."""

import csv
import errno
import os

import cv2
import numpy as np
import pytest
from sample_trees import contents

from cocolvis.errors import DataError
from cocolvis.importers import folder
from cocolvis.sample import scale
from cocolvis.sample.attributes import HUES, MOST, SIZES, coarsened, hierarchy
from cocolvis.sample.processes import in_order
from cocolvis.sample.scale import write_scale

IMAGES = {"train": 18, "val": 4}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The same pictures with 100, 777 and 10,000 classes."""
    root = tmp_path_factory.mktemp("scale")
    for classes in (100, 777, MOST):
        write_scale(root / str(classes), classes=classes, images=IMAGES)
    return root


def masks(root):
    return [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(root.glob("masks/*/*.png"))]


def pictures(root):
    return {path: data for path, data in contents(root).items() if path.endswith(".jpg")}


def names(root):
    return list(csv.DictReader((root / "classes.csv").read_text().splitlines()))


def test_pictures_do_not_depend_on_the_number_of_classes(trees):
    coarse, middle, fine = (pictures(trees / str(classes)) for classes in (100, 777, MOST))
    assert coarse == middle == fine
    assert len(set(coarse.values())) == len(coarse) == 22


def test_labels_nest(trees):
    """A label among fewer classes is a function of that among more: its nearest ancestor by the column "parent"."""
    parents = [int(row["parent"] or 0) for row in names(trees / str(MOST))]
    for classes in (100, 777):
        for coarse, fine in zip(masks(trees / str(classes)), masks(trees / str(MOST)), strict=True):
            assert coarse.dtype == fine.dtype == np.uint16 and coarse.max() <= classes
            for label in np.unique(fine).tolist():
                ancestor = label
                while ancestor > classes:
                    ancestor = parents[ancestor - 1]
                assert set(coarse[fine == label].tolist()) == {ancestor}
    assert max(mask.max() for mask in masks(trees / str(MOST))) > 9000


def test_the_importer_reads_the_tree(trees):
    tree = folder.find(trees / "777", ("train", "val"))
    assert [c.name for c in tree.vocabulary] == [row["name"] for row in names(trees / "777")]
    assert len(tree.vocabulary) == 777 and not tree.findings.notes


def test_attributes_are_visible(trees):
    """Hue and size of a class, measured in pictures and masks, are those in its name."""
    rows = names(trees / "100")
    hues, areas, right, total = {}, {size: [] for size in SIZES}, 0, 0
    for path, mask in zip(sorted(pictures(trees / "100")), masks(trees / "100"), strict=True):
        lab = cv2.cvtColor(cv2.imread(str(trees / "100" / path)).astype(np.float32) / 255, cv2.COLOR_BGR2LAB)
        for label in np.unique(mask[mask > 0]).tolist():
            size, hue, _ = rows[label - 1]["name"].split()
            a, b = lab[mask == label][:, 1:].mean(axis=0)
            hues.setdefault(hue, []).append(np.exp(1j * np.arctan2(b, a)))
            areas[size].append((mask == label).sum())
    centres = {hue: np.mean(found) for hue, found in hues.items()}
    for hue, found in hues.items():
        for one in found:
            right += max(centres, key=lambda other: (centres[other] * one.conjugate()).real / abs(centres[other])) == hue
            total += 1
    assert set(hues) == set(HUES) and right > 0.85 * total
    assert np.median(areas["large"]) > 1.8 * np.median(areas["small"])


def test_every_finest_class_is_painted():
    for split, times in (("train", 4), ("val", 1)):
        planned = [c for task in scale._plan(split, scale.IMAGES[split], 0) for c in task.classes]
        assert np.bincount(planned, minlength=MOST + 1)[1:].tolist() == [times] * MOST


@pytest.mark.parametrize("classes", [100, 101, 3000, MOST])
def test_classes(classes):
    labels = coarsened(classes)
    assert labels.dtype == np.uint16 and labels[0] == 0
    assert np.array_equal(np.unique(labels[1:]), np.arange(1, classes + 1))
    assert len(set(hierarchy().names)) == len(set(hierarchy().bins)) == MOST


def test_bytes_do_not_depend_on_processes_and_seeds_share_no_picture(trees, tmp_path):
    write_scale(tmp_path / "two", classes=100, images=IMAGES, workers=2)
    assert contents(tmp_path / "two") == contents(trees / "100")
    write_scale(tmp_path / "other", classes=100, images=IMAGES, seed=1)
    assert not set(pictures(tmp_path / "other").values()) & set(pictures(trees / "100").values())


def test_nothing_is_left_of_an_interrupted_run(tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_scale(tmp_path / "new", images=IMAGES, progress=stop)
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_an_error():
    with pytest.raises(DataError, match="a worker process died"):
        list(in_order(os._exit, [1, 1], 2))


@pytest.mark.parametrize("place", ["synchronize.SemLock.__init__", "context.SpawnProcess._Popen"])
def test_processes_that_cannot_start_are_an_error(place, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(f"multiprocessing.{place}", refuse)
    with pytest.raises(DataError, match="cannot start a worker process: Resource temporarily unavailable; try fewer --workers"):
        list(in_order(abs, [1, 1], 2))


@pytest.mark.parametrize(
    ("arguments", "words"), [({"classes": 99}, "classes is 99, expected 100..10000"), ({"seed": -1}, "seed is -1")]
)
def test_arguments_out_of_range(tmp_path, arguments, words):
    with pytest.raises(DataError, match=words):
        write_scale(tmp_path / "out", **arguments)
    assert not list(tmp_path.iterdir())
