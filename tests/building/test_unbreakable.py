"""Builds that are killed at any moment, or that a disk or the input ends: all can be resumed and keep their finished shards."""

import os
import random
import re
import time
from types import SimpleNamespace

import pytest
import small_disk
from click.testing import CliRunner
from trees import faults, five_images
from victims import Victim, check_unfinished, contents, halves, kept, reports, until

from cli.cocolvis import main
from cocolvis.building.build import Mode, Part, build
from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
from cocolvis.disk.files import write_aside
from cocolvis.errors import DataError
from cocolvis.sample.writer import write_sample
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis


@pytest.fixture(scope="module")
def small(sample, tmp_path_factory):
    """The sample, built in 40 shards of one image each."""
    built = sample._replace(data=tmp_path_factory.mktemp("small") / "data")
    built.rebuild(built.data, shard_size=1)
    return built


@pytest.fixture(scope="module")
def large(sample, tmp_path_factory):
    """A larger sample, built in 120 shards of one image each."""
    root = tmp_path_factory.mktemp("large")
    write_sample(root, images=120, classes=60, size=48, seed=5)
    built = sample._replace(coco=root / "coco", lvis=root / "lvis", data=root / "data")
    built.rebuild(built.data, shard_size=1)
    return built


class Chase:
    """One data set whose build is killed several times; ``deaths`` has the number of finished shards at each kill."""

    def __init__(self, tree, out, workers: int):
        self.tree, self.out, self.workers = tree, out, workers
        self.deaths: list[int] = []
        self._finished, self._victims = {}, []

    def run(self, ready, whom: str, *, at_once: bool = False) -> bool:
        """Start or resume the build, and kill it when ``ready(shards finished since)`` says so; False if it was done before."""
        before = len(reports(self.out))
        victim = Victim(self.tree, self.out, "--shard-size", 1, "--workers", self.workers, "--resume")
        self._victims.append(victim)
        if not victim.wait_for(lambda: ready(len(reports(self.out)) - before)) or (whom == "worker" and not victim.workers()):
            victim.ended()
            return not (self.out / "dataset.json").exists()
        victim.kill(whom)
        code = victim.ended()
        if not at_once:
            until(victim.gone)
        if (self.out / "dataset.json").exists():
            return False
        if whom == "worker":
            assert code == 1 and victim.error().endswith("finished shards are kept: continue with --resume")
        self.deaths.append(len(reports(self.out)))
        check_unfinished(self.out)
        self.check_kept()
        self._finished = kept(self.out)
        return True

    def check_kept(self) -> None:
        """Check that the shards that were finished at the last kill are still the same files."""
        for name, identity in self._finished.items():
            status = (self.out / "shards" / f"{name}.h5").stat()
            assert (status.st_ino, status.st_mtime_ns) == identity, name

    def finish(self, whole) -> None:
        """Complete the data set; it must equal one that was built undisturbed, and no process may be left."""
        self.tree.rebuild(self.out, mode=Mode.RESUME, shard_size=1)
        self.check_kept()
        assert contents(self.out) == whole
        until(lambda: all(victim.gone() for victim in self._victims))


def moment(out, kind: str, rng: random.Random):
    """A function of the number of shards finished since the start that says when to kill."""
    least, end = rng.randint(1, 4), time.monotonic() + rng.uniform(0.05, 2.5)
    return {
        "shards": lambda new: new >= least,
        "half a shard": lambda new: new > 25 or (new >= least and halves(out / "shards")),
        "half a report": lambda new: new > 25 or (new >= least and halves(out / ".build")),
        "any time": lambda new: time.monotonic() > end,
    }[kind]


def chased(tree, root, workers: int, kills: int, seed: int) -> list[int]:
    """Kill builds ``kills`` times in all, and complete each data set; the number of shards finished at each kill."""
    rng, whole, deaths = random.Random(seed), contents(tree.data), []
    kinds = ("shards", "half a shard", "half a report", "any time", "half a shard")
    whoms = ("parent", "worker", "all") if workers > 1 else ("all",)
    for number in range(kills // 2):
        chase = Chase(tree, root / f"data{number}", workers)
        left = range(len(deaths), kills)
        for turn in left:
            kind, whom = kinds[turn % len(kinds)], whoms[turn % len(whoms)]
            ready = moment(chase.out, "shards" if whom == "worker" else kind, rng)
            if not chase.run(ready, whom, at_once=rng.random() < 0.3):
                break
        chase.finish(whole)
        deaths += chase.deaths
        if len(deaths) >= kills:
            return deaths
    raise AssertionError(f"{len(deaths)} kills where {kills} were wanted")


@pytest.mark.linux
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_survives_any_kill(large, tmp_path, workers):
    deaths = chased(large, tmp_path, workers, 18, seed=workers)
    assert len([done for done in deaths if 0 < done < 120]) >= len(deaths) / 2, deaths


@pytest.mark.linux
@pytest.mark.parametrize(
    ("workers", "whom", "kind"),
    [pytest.param(1, "all", "half a shard", marks=pytest.mark.long), (2, "worker", "shards")],
)
def test_a_killed_build_goes_on(small, tmp_path, workers, whom, kind):
    chase, rng = Chase(small, tmp_path / "data", workers), random.Random(7)
    assert chase.run(moment(chase.out, kind, rng), whom)
    assert chase.run(moment(chase.out, "shards", rng), "all" if workers == 1 else "parent", at_once=True)
    assert all(0 < done < 40 for done in chase.deaths)
    chase.finish(contents(small.data))


def build_line(built, out, *options, code=0):
    """Run `cocolvis build` in this process; its last line."""
    arguments = ["build", "--coco", built.coco, "--lvis", built.lvis, "--out", out, "--workers", 1, *options]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output.splitlines()[-1]


@pytest.mark.parametrize("there", ["absent", "empty", "finished"])
def test_resume_whatever_is_there(sample, tmp_path, there):
    out = tmp_path / "data"
    if there == "empty":
        out.mkdir()
    if there == "finished":
        sample.rebuild(out, shard_size=15)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*.*")}
    build_line(sample, out, "--resume", "--shard-size", 15)
    assert contents(out) == contents(sample.data)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in before} == before


def test_half_written_files_are_swept_and_nothing_else(tree, tmp_path):
    five_images(tree).write()
    out = tmp_path / "data"
    mine = [out / ".notes.tmp", out / "sub" / ".dataset.json.0123456789ab.tmp"]
    theirs = [out / ".build" / ".x.json.0123456789ab.tmp", out / "shards" / ".train-00000.h5.ba9876543210.tmp"]

    def leave(done, total):
        for path in (*mine, *theirs):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    build(tree.sources(), out, CocoLvisOptions(), progress=leave)
    assert [path.exists() for path in (*mine, *theirs)] == [True, True, False, False]
    assert sorted(path.name for path in out.iterdir()) == [".notes.tmp", "dataset.json", "shards", "sub"]


@pytest.mark.linux
def test_a_file_has_its_name_once_it_is_whole_and_synced(tmp_path, monkeypatch):
    path, synced = tmp_path / "file", []

    def fsync(handle):
        synced.append((os.readlink(f"/proc/self/fd/{handle}"), path.exists()))

    monkeypatch.setattr("cocolvis.disk.files.os.fsync", fsync)
    with write_aside(path) as aside:
        aside.write_text("whole")
        assert not path.exists() and not synced
    assert synced == [(str(aside), False), (str(tmp_path), True)]
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), write_aside(path) as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def on_small_disk(scenario: str, tmp_path, built):
    facts = small_disk.run(scenario, tmp_path / "disk", built)
    return facts if facts is not None else pytest.skip("nobody may mount here, neither as root nor with unshare")


@pytest.mark.linux
def test_a_disk_that_is_too_small_is_refused_before_any_work(sample, tmp_path):
    facts = on_small_disk("too_small", tmp_path, sample)
    sizes = r"about \d+ kB in {}, where \d+ kB are free"
    assert re.fullmatch(rf"Error: the build needs {sizes.format(tmp_path / 'disk/data')}; make room, .*\n", facts["said"])
    assert (facts["code"], facts["there"]) == (1, [])
    facts = on_small_disk("overwrites", tmp_path, sample)
    assert re.match(rf"the build needs {sizes.format(tmp_path / 'disk/data/shards')}", facts.pop("small"))
    assert facts == {"same": True, "first": None, "room for two": False, "second": None}


def test_the_disk_that_must_have_room_is_that_of_the_shards(tree, tmp_path, monkeypatch):
    out, lines = tmp_path / "data", []
    (tmp_path / "large").mkdir()

    def usage(path):
        return SimpleNamespace(total=10**9, free=10**9 if path.resolve() == tmp_path / "large" else 10)

    def resumed():
        build(tree.sources(), out, CocoLvisOptions(), mode=Mode.RESUME, announce=lines.append)

    five_images(tree).write()
    monkeypatch.setattr("cocolvis.building.build.shutil.disk_usage", usage)
    with pytest.raises(DataError, match=rf"the build needs about .* in {out}, where 10 bytes are free"):
        resumed()
    out.mkdir()
    (out / "shards").symlink_to(tmp_path / "large")
    resumed()
    assert re.fullmatch(rf"needs about .* in {out}/shards, where 1\.0+ GB are free", lines[0])
    assert (tmp_path / "large" / "train-00000.h5").exists()


FULL = "No space left on device"


@pytest.mark.linux
@pytest.mark.parametrize(
    ("scenario", "file", "reason"),
    [
        ("fills_up 0", "shards/train-00001.h5", FULL),
        ("fills_up 40000", "shards/train-00001.h5", FULL),
        ("fills_up 4096", "shards/train-00001.h5", FULL),
        ("read_only", "shards/train-00001.h5", "Read-only file system"),
    ],
)
def test_a_disk_that_fails_in_mid_build_costs_no_finished_work(sample, tmp_path, scenario, file, reason):
    facts = on_small_disk(scenario, tmp_path, sample)
    advice = "finished shards are kept: continue with --resume"
    assert facts["said"] == f"{tmp_path}/disk/data/{file}: cannot be written: {reason}; {advice}"
    assert (facts["finished"], facts["left"], facts["indexed"]) == (["train-00000"], [], False)
    assert (facts["again"], facts["kept"]) == (None, True)
    assert facts["contents"] == small_disk.digests(sample.data)
    if scenario == "read_only":
        assert facts["new"] == f"{tmp_path}/disk/new: cannot be written: Read-only file system"
        assert facts["over"] == f"{tmp_path}/disk/data: cannot be written: Read-only file system"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file", "is a file; expected a folder to write the data set to"),
        ("file/below", "cannot be written: Not a directory"),
        ("n" * 300, "cannot be a folder: File name too long"),
        pytest.param("/proc/nowhere", "cannot be written: No such file or directory", marks=pytest.mark.linux),
    ],
)
def test_an_impossible_out_is_reported_in_one_line(sample, tmp_path, place, reason):
    (tmp_path / "file").touch()
    assert build_line(sample, tmp_path / place, code=1) == f"Error: {tmp_path / place}: {reason}"


@pytest.mark.parametrize("name", [".build", "shards"])
@pytest.mark.parametrize("how", [{}, {"mode": Mode.RESUME}, {"mode": Mode.OVERWRITE}, {"mode": Part(1, 2)}], ids=str)
def test_a_file_in_the_place_of_a_folder_is_reported_in_one_line(sample, tmp_path, name, how):
    (tmp_path / name).touch()
    with pytest.raises(DataError) as raised:
        sample.rebuild(tmp_path, **how)
    advice = "move it away, or choose another --out"
    assert str(raised.value) == f"{tmp_path / name}: is not a folder, but a build needs one there; {advice}"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_shard_that_cannot_take_its_name_is_reported_in_one_line(sample, tmp_path, workers):
    blocked = tmp_path / "data" / "shards" / "train-00002.h5" / "in the way"
    calls = iter([lambda: blocked.mkdir(parents=True)])

    def block(done, total):
        next(calls, int)()

    with pytest.raises(DataError) as raised:
        sample.rebuild(tmp_path / "data", shard_size=10, workers=workers, progress=block)
    reason = "cannot be written: Is a directory; finished shards are kept: continue with --resume"
    assert str(raised.value) == f"{blocked.parent}: {reason}"
    assert not halves(tmp_path / "data" / "shards")
    blocked.rmdir()
    blocked.parent.rmdir()
    sample.rebuild(tmp_path / "data", shard_size=10, mode=Mode.RESUME)
    sample.rebuild(tmp_path / "whole", shard_size=10)
    assert contents(tmp_path / "data") == contents(tmp_path / "whole")


def damage(path, how):
    """Damage a file in one of several ways."""
    content = path.read_bytes()
    path.unlink()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.touch()
    elif how == "a folder":
        path.mkdir()
    elif how == "unreadable":
        path.symlink_to("/proc/self/mem")  # opens, but reading its beginning is an input/output error, also for root
    elif how == "a circle":
        path.symlink_to(path.name)


DAMAGES = ["truncated", "empty", "a folder", "a circle", "gone"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_broken_picture_is_reported_and_left_out(tree, how):
    five_images(tree)
    damage(tree.picture(3), how)
    tree.write()
    last = build_line(tree, tree.root / "data")
    data = Dataset.open(tree.root / "data")
    kind = "missing image" if how == "gone" else "unreadable image"
    assert faults(data) == [(kind, "image", 3, None)]
    assert data.split("train").image_ids().tolist() == [1, 2, 4, 5] and last.startswith("The data set is in")


@pytest.mark.parametrize("name", ["lvis_v1_train", "stuff_train2017"])
@pytest.mark.parametrize("how", [*DAMAGES, pytest.param("unreadable", marks=pytest.mark.linux)])
def test_a_broken_annotation_file_is_reported_in_one_line_before_any_work(tree, how, name):
    five_images(tree).write()
    damage(tree.path(name), how)
    line = build_line(tree, tree.root / "data", code=1)
    assert line.startswith("Error: ") and str(tree.path(name)) in line
    assert not (tree.root / "data").exists()


def assert_estimate_fits(built, out, most, **settings):
    """Compare the estimate with a data set that was built with the same settings."""
    plan = CocoLvisPlan.make(Sources(built.coco, built.lvis, coco_lvis()), CocoLvisOptions(**settings))
    needed, taken = plan.bytes_needed(plan.shard_counts()), sum(map(len, contents(out).values()))
    assert taken <= needed <= most * taken


@pytest.mark.parametrize("shard_size", [2, 500])
@pytest.mark.parametrize(("images", "most"), [("embed", 2), ("path", 5), ("none", 5)])
def test_the_estimate_of_the_disk_is_enough_and_not_far_too_much(sample, tmp_path, images, most, shard_size):
    sample.rebuild(tmp_path / "data", images=images, shard_size=shard_size)
    assert_estimate_fits(sample, tmp_path / "data", most, images=images, shard_size=shard_size)


def test_the_estimate_fits_real_data(real, tmp_path):
    assert_estimate_fits(real, real.data, 2)
    real.rebuild(tmp_path / "data", images="none", shard_size=50)
    assert_estimate_fits(real, tmp_path / "data", 5, images="none", shard_size=50)
