"""Hostile input, one case at a time and all together: a build reports exactly what is wrong, and nothing else changes."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from click.testing import CliRunner
from hostile_annotations import ANNOTATION, ANNOTATIONS, IMAGE, NAME, STUFF, THING, Case
from hostile_images import FILES, IMAGES
from pycocotools import mask as coco_mask
from trees import Tree, box, five_images

from cli.cocolvis import main
from cocolvis.building.build import build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.shard_reader import ShardReader
from cocolvis.vocabulary import Vocabulary, coco_lvis

CASES = ANNOTATIONS + IMAGES
TARGET = 3
"""The image of :func:`five_images` that a case is added to, or that the image of a case is a copy of."""

LVIS_FILE, STUFF_FILE = "lvis_v1_train", "stuff_train2017"
GUARD = 60
"""Seconds after which a separate process counts as hanging."""


class HostileTree(Tree):
    """A tree with records given as literal text that no JSON library would write."""

    def __init__(self, root):
        super().__init__(root)
        self._texts: list[str] = []

    def put(self, case: Case, image_id: int) -> dict:
        """Add a case to an image that has one thing and one stuff annotation; returns symbol -> id."""
        ids = {IMAGE: image_id, ANNOTATION: 10_000 + image_id, NAME: f"{image_id:012d}"}
        for symbol, file in ((THING, LVIS_FILE), (STUFF, STUFF_FILE)):
            ids[symbol] = next(a["id"] for a in self.json[file]["annotations"] if a["image_id"] == image_id)
        for file, annotation, own, added in (
            (LVIS_FILE, case.thing, case.image, case.added_image),
            (STUFF_FILE, case.stuff, case.listing, case.added_listing),
        ):
            images = self.json[file]["images"]
            if own:
                images[[image["id"] for image in images].index(image_id)] = self._held(own, ids)
            images += [self._held(added, ids)] if added else []
            self.json[file]["annotations"] += [self._held(annotation, ids)] if annotation else []
        if case.picture:
            case.picture(self.picture(image_id))
        return ids

    def _held(self, text: str, ids: dict) -> dict:
        """A record that is replaced by the text when the files are written."""
        self._texts.append(re.sub(r"\$[A-Z]+", lambda found: str(ids[found[0]]), text))
        return {"id": None, "image_id": None, "held": len(self._texts) - 1}

    def write(self):
        super().write()
        for file in (LVIS_FILE, STUFF_FILE):
            held = r'\{"id": null, "image_id": null, "held": (\d+)\}'
            text = re.sub(held, lambda found: self._texts[int(found[1])], self.path(file).read_text())
            self.path(file).write_bytes(text.encode("utf-8", "surrogateescape"))
        return self

    def command(self) -> list[str]:
        """The command line that builds the tree."""
        return ["build", *map(str, ("--coco", self.coco, "--lvis", self.lvis, "--out", self.root / "data", "--workers", 1))]


def masks(shards: list[Path]) -> dict[int, np.ndarray]:
    readers = [ShardReader(path) for path in shards]
    return {image_id: r.runs(row).mask() for r in readers for row, image_id in enumerate(r.image_ids().tolist())}


@pytest.fixture
def tree(tmp_path) -> HostileTree:
    return five_images(HostileTree(tmp_path))


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> dict[int, np.ndarray]:
    """The masks of the five images without any hostile case."""
    data = five_images(Tree(tmp_path_factory.mktemp("clean"))).build()
    assert data.index["report"]["faults"] == []
    return masks(data.shard_paths("train"))


def painted(text: str) -> np.ndarray:
    """(8, 8) bool: the segmentation in the text of a record, as pycocotools paints it."""
    found = json.JSONDecoder().raw_decode(text, text.index('"segmentation": ') + len('"segmentation": '))[0]
    if isinstance(found, dict):
        found = {k: [int(n) for n in found[k]] if isinstance(found[k], list) else found[k] for k in ("size", "counts")}
    if isinstance(found, list) or isinstance(found["counts"], list):
        found = coco_mask.frPyObjects(found, 8, 8)
        found = coco_mask.merge(found) if isinstance(found, list) else found
    return coco_mask.decode(found) > 0


def expected(case: Case, before: np.ndarray) -> np.ndarray | None:
    """The expected mask of the image of a case, given its mask ``before``; None if the image is left out."""
    things = before == TARGET
    if case.left == "painted":
        source, category, free = ("lvis", 7, ~things) if case.thing else ("stuff", 99, before == 0)
        return np.where(free & painted(case.thing or case.stuff), coco_lvis().lookup(source)[category], before)
    return {"all": before, "things": np.where(things, before, 0), "nothing": None}[case.left]


def check(report: dict, found: dict[int, np.ndarray], clean: dict[int, np.ndarray], cases: list[tuple[Case, dict]]) -> None:
    """Check that the faults, with their ids and one-line reasons, and the masks are exactly those of the cases."""
    faults = [(kind, source, ids.get(i, i), ids.get(a, a)) for case, ids in cases for kind, source, i, a in case.faults]
    of_files = {fault for fault in faults if fault[0].endswith(" annotation id")}  # one for all such annotations
    faults = [fault for fault in faults if fault not in of_files] + list(of_files)
    assert Counter((f["kind"], f["source"], f["image_id"], f["annotation_id"]) for f in report["faults"]) == Counter(faults)
    assert report["counts"] == Counter(kind for kind, *_ in faults)
    for fault in report["faults"]:
        assert {type(fault["image_id"]), type(fault["annotation_id"])} <= {int, type(None)}, fault
        assert fault["reason"].strip() and len(fault["reason"].splitlines()) == 1, fault
    wanted = clean | {ids[IMAGE]: expected(case, clean[TARGET]) for case, ids in cases}
    wanted = {image_id: mask for image_id, mask in wanted.items() if mask is not None}
    assert found.keys() == wanted.keys()
    assert [i for i in wanted if not np.array_equal(found[i], wanted[i])] == []


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_case_is_reported_and_affects_nothing_else(case, tree, clean):
    ids = tree.put(case, TARGET)
    tree.write()
    with patch.object(Vocabulary, "to_json", lambda vocabulary: {}):  # it would take most of the time
        index = build(tree.sources(), tree.root / "data", CocoLvisOptions())
    check(index["report"], masks([tree.root / "data" / shard["file"] for shard in index["shards"]]), clean, [(case, ids)])


def crowd(tree: HostileTree) -> list[tuple[Case, dict]]:
    """Add an image for each case; returns the cases with their ids."""
    for image_id in range(100, 100 + len(CASES)):
        tree.image(image_id)
        tree.stuff(image_id, 90 + 2 * TARGET, box(0, 0, 8, TARGET))
        tree.thing(image_id, TARGET, box(0, 0, TARGET, 8))
    return [(case, tree.put(case, image_id)) for image_id, case in enumerate(CASES, 100)]


def test_all_cases_at_once_in_two_processes(tree, clean):
    cases = crowd(tree)
    data = tree.build(workers=2, shard_size=40, allow_missing=True)
    check(data.index["report"], masks(data.shard_paths("train")), clean, cases)


def shell(tree: HostileTree, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cli.cocolvis", *tree.command(), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=GUARD)


def test_all_cases_at_once_through_the_command_line(tree, clean):
    cases = crowd(tree)
    process = shell(tree.write(), "--allow-missing")
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr and process.stderr.splitlines()[-1].startswith("build: ")
    data = Dataset.open(tree.root / "data")
    check(data.index["report"], masks(data.shard_paths("train")), clean, cases)


def test_a_named_pipe_in_place_of_a_picture_is_unreadable(tree):
    tree.picture(TARGET).unlink()
    os.mkfifo(tree.picture(TARGET))
    assert shell(tree.write()).returncode == 0
    report = Dataset.open(tree.root / "data").index["report"]
    assert [(fault["kind"], fault["image_id"]) for fault in report["faults"]] == [("unreadable image", TARGET)]


def break_file(tree: Tree, name: str, file: str) -> None:
    """Replace an annotation file with one of ``FILES``."""
    tree.write().path(file).unlink()
    if FILES[name] is None:
        tree.path(file).mkdir()
    else:
        tree.path(file).write_bytes(FILES[name])


def assert_refused(tree: Tree, code: int, stdout: str, stderr: str) -> None:
    assert (code, stdout) == (1, "")
    *before, last = stderr.splitlines()
    assert last.startswith("Error: ") and all("read record by record" in line for line in before)
    assert not (tree.root / "data").exists()


@pytest.mark.parametrize("file", [LVIS_FILE, STUFF_FILE])
@pytest.mark.parametrize("name", FILES)
def test_a_file_other_than_an_annotation_file_ends_the_build(tree, name, file):
    break_file(tree, name, file)
    result = CliRunner().invoke(main, tree.command())
    assert isinstance(result.exception, SystemExit), result.exception or "was accepted"
    assert_refused(tree, result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize("name", ["empty", "cut in the middle", "binary junk"])
def test_a_file_other_than_an_annotation_file_leaves_no_traceback(tree, name):
    break_file(tree, name, LVIS_FILE)
    process = shell(tree)
    assert_refused(tree, process.returncode, process.stdout, process.stderr)


def test_there_are_many_cases_with_unique_names():
    assert len({case.name for case in CASES}) == len(CASES) > 250
