"""What may be in the folder of a build: damaged state files, shards of other builds and versions, and files of others."""

import json
import os
import re
import shutil
import sys
from functools import partial
from itertools import cycle
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner
from instances import without_instances
from trees import five_images
from victims import contents

from cli.cocolvis import main
from cocolvis.building import index, resume, shard_plan, shard_task, state
from cocolvis.building.build import Mode, Part, build, join
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.inspection.stats import statistics
from cocolvis.inspection.verify import verify
from cocolvis.masks.merge import MASK_RULE
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.storage.index import VERSION
from cocolvis.vocabulary import Vocabulary, coco_lvis

SHARDS = 20


@pytest.fixture(scope="module")
def finished(sample, tmp_path_factory):
    """A folder with the sample's data set in 20 shards, and the folder of the same build just before its index."""
    root = tmp_path_factory.mktemp("finished")
    sample.rebuild(root / "whole", shard_size=2)

    def killed(state, reports):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index, "write", killed)
        sample.rebuild(root / "begun", shard_size=2)
    assert len(list((root / "begun" / ".build").iterdir())) == SHARDS + 1
    return root


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of the build that lacks only dataset.json."""
    return Path(shutil.copytree(finished / "begun", tmp_path / "data"))


def resumed(sample, out, mode=Mode.RESUME, **how):
    return build(Sources(sample.coco, sample.lvis, coco_lvis()), out, CocoLvisOptions(shard_size=2), mode=mode, **how)


def changed(path: Path, **values) -> None:
    """Give keys of a JSON file other values; None removes one."""
    content = json.loads(path.read_text()) | values
    gone = [key for key, value in values.items() if value is None]
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in gone}))


def instead(make):
    """Replace a file with something else of the same name."""

    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def keys(**values):
    return lambda path: changed(path, **values)


def text(content: str | bytes):
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


ANY_FILE = [
    text(""),
    cut,
    text("[]"),
    text("5"),
    text("null"),
    text("{}"),
    text(b'{"images": "\xff\xfe"}'),
    text(bytes(500)),
    text("[" * 100_000),
    text('{"images": ' + "9" * 5000 + "}"),
    instead(Path.mkdir),
    instead(os.mkfifo),
    instead(lambda path: path.symlink_to(path.name)),
    instead(lambda path: path.symlink_to("/dev/zero")),
    instead(lambda path: path.symlink_to("absent")),
]
if sys.platform == "linux":
    ANY_FILE.append(instead(lambda path: path.symlink_to("/proc/self/mem")))

REPORTS = [
    *(keys(images=value) for value in ("2", -1, 2.5, [], None)),
    *(keys(bytes=value) for value in ("2", -1, 10**30, None)),
    *(keys(checksum=value) for value in (5, "0" * 63, "0" * 64, None)),
    *(keys(hdf5=value) for value in (5, "9" * 999, None)),
    *(keys(faults=value) for value in ({}, 5, [5], [["kind"]], [["a", "b", "c", None, "e"]], [{}], None)),
    *(keys(build=value) for value in (5, "", None)),
    *(keys(mask_rule=value) for value in ("1", None)),
    *(keys(version=value) for value in ([], None)),
]

PLANS = [
    *(keys(description=value) for value in (5, {}, {"mask_rule": MASK_RULE, "version": VERSION}, None)),
    *(keys(shards=value) for value in (5, [], {"train-00000": 2}, {"../../x": {"images": 1, "rows": "0" * 64}}, None)),
    *(keys(faults=value) for value in (5, {}, [5], None)),
    *(keys(vocabulary=value) for value in (5, [], None)),
]


@pytest.mark.parametrize("first", range(0, len(ANY_FILE + REPORTS), SHARDS))
def test_a_shard_whose_report_is_broken_is_built_again(sample, finished, begun, first):
    reports = sorted((begun / ".build").glob("*-*.json"))
    shards = {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (begun / "shards").iterdir()}
    damages = dict(zip(reports, (ANY_FILE + REPORTS)[first : first + SHARDS], strict=False))
    for path, damage in damages.items():
        damage(path)
    with pytest.raises(DataError, match=f"{len(damages)} of 20 shards are missing or damaged: train-00000, train-00001, "):
        join(begun)
    resumed(sample, begun)
    assert contents(begun) == contents(finished / "whole")
    after = {path.stem: (path.stat().st_ino, path.stat().st_mtime_ns) for path in (begun / "shards").iterdir()}
    assert {name for name in shards if after[name] != shards[name]} == {path.stem for path in damages}


def test_a_broken_plan_is_reported_in_one_line(sample, begun):
    plan, kept = begun / ".build" / "plan.json", contents(begun / "shards")
    whole = plan.read_bytes()
    attempts = cycle([partial(join, begun), partial(resumed, sample, begun), partial(resumed, sample, begun, Part(1, 2))])
    for damage, attempt in zip(ANY_FILE + PLANS, attempts, strict=False):
        damage(plan)
        with pytest.raises(DataError) as raised:
            attempt()
        assert str(begun) in str(raised.value) and "`cocolvis build --overwrite`" in str(raised.value)
        assert len(str(raised.value).splitlines()) == 1
        assert contents(begun / "shards") == kept
        plan.rmdir() if plan.is_dir() and not plan.is_symlink() else plan.unlink()
        plan.write_bytes(whole)


def without(shards: dict) -> dict:
    return {name: shard for name, shard in shards.items() if name != "train-00003"}


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda shards: {}, "does not list the finished shard train-00000"),
        (without, "does not list the finished shard train-00003"),
        (lambda shards: shards | {"other-00000": shards["train-00000"]}, "does not list the shards of this build"),
    ],
)
def test_a_plan_of_other_shards_is_reported_in_one_line(sample, begun, edit, reason):
    plan, kept = begun / ".build" / "plan.json", contents(begun / "shards")
    changed(plan, shards=edit(json.loads(plan.read_text())["shards"]))
    with pytest.raises(DataError, match=rf"plan\.json: is damaged: {reason}; .*`cocolvis build --overwrite`"):
        resumed(sample, begun)
    with pytest.raises(DataError):
        join(begun)
    assert contents(begun / "shards") == kept and not (begun / "dataset.json").exists()


def test_a_plan_that_could_not_be_read_again_is_refused_before_any_work(tree, monkeypatch):
    five_images(tree).build()
    before = contents(tree.root / "data")
    monkeypatch.setattr(state, "MAX_INDEX", 100)
    tree.thing(99, 1, [])  # the file lists no image 99
    with pytest.raises(DataError, match=r"plan\.json: would have .* bytes, .*: the input has too many faults, 1; repair"):
        tree.build()
    assert contents(tree.root / "data") == before


def test_a_broken_plan_is_overwritten(sample, finished, begun):
    for damage in (cut, instead(Path.mkdir)):
        damage(begun / ".build" / "plan.json")
        build(Sources(sample.coco, sample.lvis, coco_lvis()), begun, CocoLvisOptions(shard_size=2), mode=Mode.OVERWRITE)
        assert contents(begun) == contents(finished / "whole")
        shutil.rmtree(begun)
        shutil.copytree(finished / "begun", begun)


NO_CLASSES = Vocabulary([]).to_json()


@pytest.mark.parametrize("vocabulary", [{}, {"digest": 5, "classes": [], "ignored": {}}, NO_CLASSES])
def test_broken_classes_are_reported_in_one_line(begun, vocabulary):
    changed(begun / ".build" / "plan.json", vocabulary=vocabulary)
    with pytest.raises(DataError, match=r"plan.json: .*vocabulary.*`cocolvis build --overwrite`"):
        join(begun)
    assert not (begun / "dataset.json").exists()


def test_options_that_were_edited_are_of_another_build(begun):
    plan = begun / ".build" / "plan.json"
    description = json.loads(plan.read_text())["description"]
    description["options"]["overlap"] = "small-on-top"
    changed(plan, description=description)
    with pytest.raises(DataError, match="20 of 20 shards were built from other inputs or options: train-00000, "):
        join(begun)
    assert not (begun / "dataset.json").exists()


@pytest.mark.parametrize("going_on", [lambda sample, out: join(out), resumed])
def test_shards_of_another_build_are_refused(sample, finished, begun, tmp_path, going_on):
    """The same images with other options: names, images and faults are the same."""
    other = tmp_path / "other"

    def killed(state, reports):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(index, "write", killed)
        sample.rebuild(other, shard_size=2, overlap="small-on-top")
    for name in ("train-00001", "val-00002"):
        shutil.copy(other / ".build" / f"{name}.json", begun / ".build")
        shutil.copy(other / "shards" / f"{name}.h5", begun / "shards")
    with pytest.raises(DataError, match="2 of 20 shards were built from other inputs or options: train-00001, val-00002"):
        going_on(sample, begun)
    for kept in ("shards/{}.h5", ".build/{}.json"):  # nor are shards from another place in the same build
        shutil.copy(finished / "begun" / kept.format("train-00003"), begun / kept.format("train-00001"))
        shutil.copy(finished / "begun" / kept.format("val-00002"), begun / kept.format("val-00002"))
    with pytest.raises(DataError, match="1 of 20 shards were built from other inputs or options: train-00001"):
        going_on(sample, begun)
    assert not (begun / "dataset.json").exists()


def test_a_shard_that_is_not_what_its_report_says_is_not_indexed(begun):
    """Its size and checksum are as reported, but it is another shard."""
    ours, other = json.loads((begun / ".build/train-00000.json").read_text()), begun / "shards/val-00000.h5"
    theirs = json.loads((begun / ".build/val-00000.json").read_text())
    shutil.copy(other, begun / "shards/train-00000.h5")
    (begun / ".build/train-00000.json").write_text(json.dumps(theirs | {"build": ours["build"]}))
    with pytest.raises(DataError, match=r"train-00000.h5: does not match the report of the shard"):
        join(begun)
    assert not (begun / "dataset.json").exists()


@pytest.mark.parametrize("going_on", [lambda sample, out: join(out), resumed])
def test_shards_of_another_rule_or_version_are_refused(sample, begun, monkeypatch, going_on):
    for name in ("train-00001", "train-00002", "val-00000"):
        changed(begun / ".build" / f"{name}.json", mask_rule=MASK_RULE + 1)
    advice = r"continue with the version of cocolvis that began it, or replace it with `cocolvis build --overwrite`"
    other = f"mask rule {MASK_RULE + 1} and format version {VERSION}"
    with pytest.raises(DataError, match=rf"3 of 20 shards were built by {other}, .*{advice}"):
        going_on(sample, begun)
    modules = (state, resume, shard_plan, shard_task)
    for module in modules:
        monkeypatch.setattr(module, "MASK_RULE", MASK_RULE + 1)
    with pytest.raises(DataError, match=rf"was begun, with 20 finished shards, by mask rule {MASK_RULE} .*{advice}"):
        going_on(sample, begun)
    for module in modules:
        monkeypatch.setattr(module, "MASK_RULE", MASK_RULE)
        monkeypatch.setattr(module, "VERSION", VERSION + 1)
    with pytest.raises(DataError, match=rf"was begun, with 20 .* and format version {VERSION}, .*{advice}"):
        going_on(sample, begun)
    assert not (begun / "dataset.json").exists()


def test_a_build_that_an_older_version_began_is_refused(sample, begun):
    plan = json.loads((begun / ".build" / "plan.json").read_text())
    description = {key: value for key, value in plan["description"].items() if key not in ("mask_rule", "version")}
    shards = {name: shard["images"] for name, shard in plan["shards"].items()}
    (begun / ".build" / "plan.json").write_text(json.dumps({"description": description, "shards": shards, "faults": []}))
    with pytest.raises(DataError, match=r"20 finished shards, by mask rule not recorded .*`cocolvis build --overwrite`"):
        resumed(sample, begun)


def test_a_worker_of_another_version_is_refused(sample, begun, monkeypatch):
    (begun / ".build" / "train-00000.json").unlink()
    monkeypatch.setattr(shard_task, "MASK_RULE", MASK_RULE + 1)
    with pytest.raises(DataError, match=rf"train-00000.h5: was built by a worker by mask rule {MASK_RULE + 1}"):
        resumed(sample, begun)


def test_builds_with_and_without_instances_are_never_mixed(sample, finished, begun, tmp_path):
    with without_instances():
        sample.rebuild(tmp_path / "earlier", shard_size=2, splits=("val",))
        (begun / ".build" / "train-00000.json").unlink()
        with pytest.raises(DataError, match=r"was begun with other inputs or options"):
            resumed(sample, begun)

    def written_by_an_earlier_version(*task):
        with without_instances():
            return write(*task)

    with pytest.MonkeyPatch.context() as patch:
        write = shard_task._write_shard
        patch.setattr(shard_task, "_write_shard", written_by_an_earlier_version)
        with pytest.raises(DataError, match=r"train-00000\.h5: was built by a worker that does not record instances; all need"):
            resumed(sample, begun)
    resumed(sample, begun)
    assert contents(begun) == contents(finished / "whole")
    shutil.copy(tmp_path / "earlier" / "shards" / "val-00001.h5", begun / "shards")
    wrong = r"val-00001\.h5: does not record instances, dataset\.json says otherwise"
    with pytest.raises(DataError, match=wrong):
        statistics(Dataset.open(begun))
    assert any(re.search(wrong, fault) for fault in verify(Dataset.open(begun)))


def test_an_unfinished_build_without_instances_is_joined_but_not_resumed(sample, tmp_path):
    out, lines = tmp_path / "data", []
    with without_instances():
        resumed(sample, out, Part(1, 2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CocoLvisOptions, "records_instances", True)
            with pytest.raises(DataError, match="was begun by a version of cocolvis that does not record instances; resume"):
                resumed(sample, out, Part(2, 2))
            with pytest.raises(DataError, match="was begun with other inputs or options; resume with the same"):
                sample.rebuild(out, shard_size=2, compat="essnet", mode=Part(2, 2))
        resumed(sample, out, Part(2, 2))
    index = join(out)
    assert "instances" not in index and verify(Dataset.open(out)) == []
    assert resumed(sample, out, announce=lines.append) == index
    assert lines == [f"{out}: was finished before instances were recorded; --overwrite builds the same masks with instances"]


def test_the_index_has_the_rule_and_one_without_it_opens_but_is_not_resumed(sample, finished, tmp_path):
    out = Path(shutil.copytree(finished / "whole", tmp_path / "data"))
    assert Dataset.open(out).index["mask_rule"] == MASK_RULE
    changed(out / "dataset.json", mask_rule=None)
    assert len(Dataset.open(out).split("train")) and "mask_rule" not in Dataset.open(out).index
    reason = rf"its 20 shards have mask rule not recorded, .* {MASK_RULE}; .*`cocolvis build --overwrite`"
    with pytest.raises(DataError, match=reason):
        resumed(sample, out)
    changed(out / "dataset.json", mask_rule="one")
    with pytest.raises(DataError, match="mask_rule"):
        Dataset.open(out)


def test_each_shard_records_the_version_of_hdf5_that_wrote_it(sample, finished, begun):
    index = Dataset.open(finished / "whole").index
    assert {entry["hdf5"] for entry in index["shards"]} == {h5py.version.hdf5_version} and "hdf5" not in index
    changed(begun / ".build" / "train-00003.json", hdf5="1.8.0")
    lines = []
    index = join(begun, lines.append)
    assert [entry["hdf5"] == "1.8.0" for entry in index["shards"]] == [number == 3 for number in range(SHARDS)]
    said = f"1.8.0 (1 shards), {h5py.version.hdf5_version} (19 shards)"
    assert len(lines) == 1 and lines[0].startswith(f"different versions of HDF5 wrote the shards: {said}; ")
    assert Dataset.open(begun).index == index


FOREIGN = {
    "thesis.txt": b"mine",
    ".ssh/id": b"mine",
    ".notes.tmp": b"mine",
    ".build/debug.yaml": b"mine",
    ".build/sub/plan.json": b"mine",
    "shards/notes.txt": b"mine",
    "shards/train-1.h5": b"mine",
    "shards/old/train-00000.h5": b"mine",
}


def put(out: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)


def overwritten(tree, out: Path, **options) -> list[str]:
    lines: list[str] = []
    build(tree.write().sources(), out, CocoLvisOptions(**options), mode=Mode.OVERWRITE, announce=lines.append)
    return lines


@pytest.mark.parametrize("there", ["nothing", "a data set", "a begun one", "a broken index", "no index"])
def test_overwrite_keeps_the_files_of_others(tree, tmp_path, there):
    out = tmp_path / "data"
    five_images(tree)
    if there != "nothing":
        tree.build(shard_size=1)
    if there == "a broken index":
        cut(out / "dataset.json")
    if there in ("a begun one", "no index"):
        (out / "dataset.json").unlink()
    if there == "a begun one":
        plan = {"description": {"options": {}}, "shards": {f"train-{number:05d}": {} for number in range(5)}}
        put(out, {".build/plan.json": json.dumps(plan).encode(), ".build/train-00000.json": b"{}"})
    put(out, FOREIGN)
    lines = overwritten(tree, out, shard_size=3)
    assert {name: content for name, content in contents(out).items() if name in FOREIGN} == FOREIGN
    ours = {"dataset.json", "shards/train-00000.h5", "shards/train-00001.h5"}
    assert contents(out).keys() == FOREIGN.keys() | ours
    named = ".notes.tmp, .ssh, thesis.txt, shards/notes.txt, shards/old, ... (8 in all)"
    assert f"--overwrite leaves alone what cocolvis did not write: {named}" in lines
    assert Dataset.open(out).splits["train"] == 5


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"dataset.json": b'{"name": "my photos"}'}, "dataset.json"),
        ({"dataset.json": b"my notes"}, "dataset.json"),
        ({"faults.jsonl": b"mine"}, "faults.jsonl"),
        ({"shards/train-00000.h5": b"mine"}, "shards/train-00000.h5"),
        ({"dataset.json/mine": b""}, "dataset.json"),
        ({".build/plan.json/mine": b""}, ".build/plan.json"),
        ({"shards": b"mine"}, "shards"),
        ({".build": b"mine"}, ".build"),
    ],
)
def test_overwrite_refuses_to_replace_what_is_not_known_to_be_ours(tree, tmp_path, files, named):
    out = tmp_path / "data"
    put(out, files)
    with pytest.raises(DataError) as raised:
        overwritten(five_images(tree), out)
    assert str(raised.value).startswith(f"{out / named}: ") and "move it away, or choose another --out" in str(raised.value)
    assert contents(out) == files


@pytest.mark.parametrize("name", ["shards", ".build"])
def test_overwrite_follows_no_link_out_of_the_folder(tree, tmp_path, name):
    out = tmp_path / "data"
    five_images(tree).build()
    shutil.copytree(out / "shards", tmp_path / "elsewhere")
    shutil.rmtree(out / name, ignore_errors=True)
    (out / name).symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere") | contents(out)
    with pytest.raises(DataError, match=f"{out / name}: is a symbolic link, which --overwrite does not follow; "):
        overwritten(tree, out)
    assert contents(tmp_path / "elsewhere") | contents(out) == before


def test_overwrite_removes_a_link_and_not_what_it_leads_to(tree, tmp_path):
    out = tmp_path / "data"
    five_images(tree).build()
    shard = out / "shards" / "train-00000.h5"
    before = shard.read_bytes()
    shutil.move(shard, tmp_path / "large.h5")
    shard.symlink_to(tmp_path / "large.h5")
    overwritten(tree, out, limit=2)
    assert not shard.is_symlink() and (tmp_path / "large.h5").read_bytes() == before


def test_no_file_but_a_shard_is_removed_because_an_index_lists_it(tree, tmp_path):
    out = tmp_path / "data"
    five_images(tree).build()
    put(out, {"thesis.txt": b"mine", "shards/thesis.txt": b"mine"})
    index = json.loads((out / "dataset.json").read_text())
    for file in ("thesis.txt", "shards/thesis.txt", "shards/../thesis.txt", "../coco/train2017/000000000001.jpg"):
        index["shards"].append(index["shards"][0] | {"file": file})
    (out / "dataset.json").write_text(json.dumps(index))
    overwritten(tree, out)
    assert (out / "thesis.txt").exists() and (out / "shards" / "thesis.txt").exists()
    assert tree.picture(1).exists()


def test_a_finished_build_leaves_the_files_of_others_in_its_folders(tree, tmp_path):
    out = tmp_path / "data"

    def leave(done, total):
        put(out, {".build/debug.yaml": b"mine", "notes.txt": b"mine"})

    build(five_images(tree).write().sources(), out, CocoLvisOptions(), progress=leave)
    assert contents(out).keys() == {".build/debug.yaml", "notes.txt", "dataset.json", "shards/train-00000.h5"}


def test_join_of_a_folder_that_is_not_there_makes_none(tmp_path):
    done = CliRunner().invoke(main, ["join", str(tmp_path / "data")])
    assert done.exit_code == 1 and "holds no shards of `cocolvis build --shard I/N`" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [text(""), cut, text("[]"), instead(Path.mkdir), instead(os.mkfifo)])
def test_a_broken_index_is_reported_in_one_line(sample, finished, begun, damage):
    shutil.copy(finished / "whole" / "dataset.json", begun)
    damage(begun / "dataset.json")
    for attempt in (partial(join, begun), partial(resumed, sample, begun)):
        with pytest.raises(DataError, match=r"dataset.json: .*; build it again with `cocolvis build --overwrite`"):
            attempt()
    assert len(list((begun / ".build").iterdir())) == SHARDS + 1
