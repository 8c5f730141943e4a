"""The comparison of two data sets: images, pixels and pairs of classes that differ, and progress while it runs."""

import pytest
from click.testing import CliRunner
from import_trees import folder_of_export
from instances import without_instances
from trees import box

from cli import display
from cli.cocolvis import main
from cocolvis.inspection.diff import Pair, diff
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader


def test_diff_of_equal_builds_is_empty(sample, tmp_path):
    found = diff(Dataset.open(sample.data), sample.rebuild(tmp_path / "data", shard_size=7))
    assert (found.common, found.differing, found.pairs, found.only_a, found.only_b, found.resized) == (40, [], [], [], [], [])
    assert found.pixels == sum(int(m.size) for m in map(Dataset.open(sample.data).split("train").mask, range(30))) + sum(
        int(m.size) for m in map(Dataset.open(sample.data).split("val").mask, range(10))
    )


def test_diff_counts_images_pixels_and_pairs(tree):
    for image_id in (1, 2, 3, 4):
        tree.image(image_id)
    tree.stuff(1, 93, box(0, 0, 8, 2))
    tree.stuff(1, 98, box(0, 2, 8, 3))
    tree.stuff(2, 97, box(0, 0, 2, 8))
    tree.thing(3, 5, box(0, 0, 8, 8))
    found = diff(tree.build("a"), tree.build("b", compat="essnet"))
    assert found.only_a == [("train", 4)] and found.only_b == []
    assert found.common == 3
    assert found.differing == [("train", 1, 40), ("train", 2, 16)]
    assert found.pairs == [Pair(181, 1283, 24), Pair(110, 1217, 16), Pair(1207, 0, 16)]
    assert (found.pixels, found.differing_pixels, found.classes) == (192, 56, [110, 181, 1207, 1217, 1283])


def test_diff_finds_other_numbers_of_instances_under_equal_masks(tree):
    for image_id in (1, 2):
        tree.image(image_id)
        tree.thing(image_id, 5, box(0, 0, 8, 8))
    a = tree.build("a")
    tree.thing(2, 5, box(0, 0, 8, 4))
    b = tree.build("b")
    found = diff(a, b)
    assert (found.differing, found.recounted, diff(a, a).recounted) == ([], [("train", 2)], [])
    with without_instances():
        earlier = tree.build("c")
    assert diff(a, earlier).recounted is None
    said = CliRunner().invoke(main, ["diff", str(a.folder), str(b.folder)]).stdout
    assert "1 image with other numbers of instances" in said
    assert "instances" not in CliRunner().invoke(main, ["diff", str(a.folder), str(earlier.folder)]).stdout


def test_diff_of_other_splits_and_sizes(tree):
    tree.image(1)
    tree.image(2, "val", "val2017")
    a = tree.build("a")
    tree.json["lvis_v1_train"]["images"][0]["width"] = 9
    found = diff(a, tree.build("b", splits=("train",), images="none"))
    assert (found.resized, found.only_a, found.pixels) == ([("train", 1)], [("val", 2)], 0)


def test_progress_covers_both_the_image_ids_and_the_masks(sample, tmp_path):
    calls, phases = [], []
    other = sample.rebuild(tmp_path / "data", shard_size=10)
    diff(Dataset.open(sample.data), other, lambda *call: calls.append(call), lambda *call: phases.append(call))
    assert calls == [(done, 40) for done in range(41)]
    shards = sum(len(data.shard_paths(name)) for data in (Dataset.open(sample.data), other) for name in data.splits)
    assert phases == [("reading the image ids", 0, 0)] * shards


@pytest.mark.parametrize("slow", ["image_ids", "runs"])
def test_the_command_prints_lines_while_a_slow_disk_is_read(sample, monkeypatch, slow):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    read = getattr(ShardReader, slow)

    def read_slowly(reader, *row):
        now[0] += 3
        return read(reader, *row)

    monkeypatch.setattr(ShardReader, slow, read_slowly)
    lines = CliRunner().invoke(main, ["diff", str(sample.data), str(sample.data)]).stderr.splitlines()
    expected = "diff: reading the image ids" if slow == "image_ids" else "diff: 1/40 images"
    assert expected in lines and lines[-1].startswith("diff: 40/40 images in ")


def test_the_command_reports_data_sets_without_common_images(tree):
    tree.image(1)
    tree.image(2, "val", "val2017")
    tree.build("a", splits=("train",))
    tree.build("b", splits=("val",))
    result = CliRunner().invoke(main, ["diff", str(tree.root / "a"), str(tree.root / "b")])
    assert result.exit_code == 0 and result.stderr.startswith("diff: 0/0 images in ")


def test_class_ids_with_other_names_are_pointed_out(tmp_path):
    for name, classes in (("a", "cat\ndog\nZoë\n"), ("b", "dog\ncat\nZoe\u0308\n"), ("c", "cat\ndog\n")):
        made = folder_of_export(tmp_path / name)
        (made.src / "classes.csv").unlink()
        (made.src / "classes.txt").write_text(classes, encoding="utf-8")
        command = made.arguments(tmp_path / f"data-{name}", "--workers", 1)
        assert CliRunner().invoke(main, [str(word) for word in command]).exit_code == 0
    for other, told in (("b", True), ("c", False), ("a", False)):
        said = CliRunner().invoke(main, ["diff", str(tmp_path / "data-a"), str(tmp_path / f"data-{other}")])
        line = "2 class ids have other names in the second data set: 1 is 'cat' in the first, 'dog' in the second"
        assert said.exit_code == 0 and (f"{line}; masks are compared by class id" in said.stderr) == told
        assert ("class id" in said.output) == told
