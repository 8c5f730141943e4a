"""`cocolvis stats --figures`: the numbers next to each figure compared with a naive count over masks and annotation files."""

import csv
import json
import re
import sys
from collections import defaultdict

import cv2
import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from cli.cocolvis import main
from cocolvis.figures.collection import write_figures
from cocolvis.inspection.stats import read_counts, summarise
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

SHARED = {50: 92, 110: 93, 181: 98, 346: 108, 350: 109, 713: 137, 804: 141, 904: 153, 1050: 165, 1108: 168}
"""Class -> its category in COCO-Stuff."""


def read(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(sample, tmp_path_factory):
    """The folder of figures that the command wrote."""
    folder = tmp_path_factory.mktemp("figures")
    words = ["stats", sample.data, "--figures", folder, "--coco", sample.coco, "--lvis", sample.lvis]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0 and "left out" not in result.stderr, result.output
    return folder


def test_each_figure_has_a_png_an_svg_with_a_background_and_its_numbers(written):
    for name in ("images_per_class", "word_cloud", "shared_classes"):
        assert {path.suffix for path in written.glob(f"{name}.*")} == {".png", ".svg", ".csv"}
    assert len(list(written.iterdir())) == 9
    for path in written.glob("*.png"):
        assert min(cv2.imread(str(path)).shape[:2]) > 500
    for path in written.glob("*.svg"):
        content = path.read_text()
        assert "fill: #ffffff" in content or "fill:white" in content, "the text would be unreadable on a dark page"


def test_images_per_class(written, sample):
    data = Dataset.open(sample.data)
    rows = read(written / "images_per_class.csv")
    for name in data.splits:
        images = np.zeros(1285, int)
        for row in range(len(data.split(name))):
            images[np.setdiff1d(data.split(name).mask(row), [0])] += 1
        here = [row for row in rows if row["split"] == name]
        assert {int(row["class"]): int(row["images"]) for row in here} == {c: n for c, n in enumerate(images) if n}
        assert [int(row["images"]) for row in here] == sorted(images[images > 0].tolist(), reverse=True)
        assert [int(row["rank"]) for row in here] == list(range(1, len(here) + 1))
        assert all(row["name"] == coco_lvis().name(int(row["class"])) for row in here)


def test_the_word_cloud_is_sized_by_pixel_ratio(written, sample):
    split = Dataset.open(sample.data).split("train")
    pixels = sum(np.bincount(split.mask(row).ravel(), minlength=1285) for row in range(len(split)))
    rows = read(written / "word_cloud.csv")
    assert {int(row["class"]): int(row["pixels"]) for row in rows} == {c: pixels[c] for c in range(1, 1285) if pixels[c]}
    sizes = [int(row["font_size"] or 0) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    for row, size in zip(rows, sizes, strict=True):
        ratio = pixels[int(row["class"])] / pixels[1:].sum()
        assert float(row["pixel_ratio"]) == pytest.approx(ratio)
        height = round(sizes[0] * (pixels[int(row["class"])] / pixels[1:].max()) ** 0.5)
        assert size == (height if height >= 9 else 0)
    named = (written / "word_cloud.svg").read_text()
    assert all(f">{row['name']}</text>" in named for row in rows[:10])


def naive_examples(sample):
    """(class, source) -> the (pixels, split, image id) of all images in which only this source annotates the class."""
    data, found = Dataset.open(sample.data), defaultdict(list)
    stuff = defaultdict(set)
    for folder in ("train2017", "val2017"):
        for record in json.loads((sample.coco / "annotations" / f"stuff_{folder}.json").read_text())["annotations"]:
            stuff[record["image_id"]].add(record["category_id"])
    for name in data.splits:
        things = defaultdict(set)
        for record in json.loads((sample.lvis / f"lvis_v1_{name}.json").read_text())["annotations"]:
            things[record["image_id"]].add(record["category_id"])
        for row, image_id in enumerate(data.split(name).image_ids().tolist()):
            pixels = np.bincount(data.split(name).mask(row).ravel(), minlength=1285)
            for c, category in SHARED.items():
                thing, as_stuff = c in things[image_id], category in stuff[image_id]
                if pixels[c] and thing != as_stuff:
                    found[c, "lvis" if thing else "stuff"].append((int(pixels[c]), name, image_id))
    return found


def test_shared_classes_are_shown_where_only_one_source_annotates_them(written, sample):
    expected, rows = naive_examples(sample), read(written / "shared_classes.csv")
    assert [(int(row["class"]), row["source"]) for row in rows] == [(c, s) for c in SHARED for s in ("stuff", "lvis")]
    shown = 0
    for row in rows:
        examples = expected[int(row["class"]), row["source"]]
        assert bool(examples) == bool(row["image"])
        if examples:
            shown += 1
            assert (int(row["pixels"]), row["split"], int(row["image"])) in examples
            assert int(row["pixels"]) == max(pixels for pixels, *_ in examples)
            assert row["path"].endswith(f"{int(row['image']):012d}.jpg")
    assert shown > 10


def test_what_cannot_be_drawn_is_left_out_with_a_sentence(sample, tmp_path, monkeypatch):
    data = Dataset.open(sample.data)
    counts = read_counts(data)
    stats = summarise(data.vocabulary, counts)
    monkeypatch.setitem(sys.modules, "wordcloud", None)
    first, second = write_figures(tmp_path, data, counts, stats, None)
    assert "wordcloud is not installed: pip install" in first and "needs --coco and --lvis" in second
    assert {path.stem for path in tmp_path.iterdir()} == {"images_per_class"}
    nothing = {"splits": {"train": stats["splits"]["train"] | {"classes": []}}}
    assert write_figures(tmp_path, data, counts, nothing, None) == [
        "all figures were left out, because no class occurs in any split"
    ]


def test_zeros_of_a_damaged_shard_are_dashes_and_leave_out_the_word_cloud(sample, tmp_path):
    data = sample.rebuild(tmp_path / "data", splits=("train",))
    with h5py.File(data.shard_paths("train")[0], "r+") as file:
        file["present/pixels"][...] = 0
    result = CliRunner().invoke(main, ["stats", str(data.folder), "--figures", str(tmp_path / "figures")])
    assert result.exit_code == 0, result.output
    for measure in ("Gini coefficient of all classes", "largest class / smallest present"):
        assert re.search(rf"^{measure} +[\d.]+ +-$", result.stdout, re.MULTILINE)
    assert "word_cloud was left out, because the shards of split train record no pixel of any class" in result.stderr
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"images_per_class"}


def test_annotations_of_another_data_set_are_refused(sample, tree, tmp_path):
    tree.image(1)
    tree.write()
    words = ["stats", sample.data, "--figures", tmp_path / "f", "--coco", tree.coco, "--lvis", tree.lvis]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 1 and "is not the file that" in result.stderr
    assert not list((tmp_path / "f").glob("shared*"))
    assert CliRunner().invoke(main, ["stats", str(sample.data), "--coco", "x"]).exit_code == 2
