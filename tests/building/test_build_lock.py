"""Builds in one folder at the same time: which may continue, which are refused, and what a build does that lost the lock."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from trees import five_images
from victims import Victim, contents, reports, until

from cli.cocolvis import main
from cocolvis.building import executors, index, shard_task
from cocolvis.building.build import Mode, Part, build
from cocolvis.building.coco_lvis import CocoLvisOptions, CocoLvisPlan
from cocolvis.disk import lock, owners
from cocolvis.disk.lock import Lease, LockLost, held
from cocolvis.disk.owners import Owner
from cocolvis.errors import DataError
from cocolvis.inspection.verify import verify
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

ELSEWHERE = """
import sys
from cli.cocolvis import main
from cocolvis.disk import owners
owners._system = lambda: "another machine"
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """The contents of the sample's data set in 40 shards."""
    out = tmp_path_factory.mktemp("whole") / "data"
    sample.rebuild(out, shard_size=1)
    return contents(out)


def locks(out: Path) -> list[Path]:
    return [path for path in out.iterdir() if lock.is_lock(path)] if out.exists() else []


def refused(*arguments) -> str:
    """The only line of output of a command, which must end with exit code 1."""
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    (line,) = done.output.splitlines()
    return line


def arguments(sample, out, *options):
    return ["build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", out, "--shard-size", 1, "--workers", 1, *options]


def folder_import(root: Path, out: Path) -> list:
    (root / "mine" / "images" / "train").mkdir(parents=True, exist_ok=True)
    return ["import", "folder", root / "mine", "--split", "train", "--out", out]


@pytest.mark.linux
def test_a_second_build_is_refused_while_the_first_lives_and_a_killed_one_can_be_resumed_at_once(sample, whole, tmp_path):
    out = tmp_path / "data"
    first = Victim(sample, out, "--shard-size", 1, "--workers", 1)
    assert first.wait_for(lambda: len(reports(out)) >= 2)
    first.send(signal.SIGSTOP)
    before = contents(out)
    others = [arguments(sample, out, *more) for more in ([], ["--resume"], ["--overwrite"], ["--shard", "1/2"])]
    for command in (*others, ["join", out], folder_import(tmp_path, out), [*folder_import(tmp_path, out), "--overwrite"]):
        assert refused(*command).startswith(f"Error: {out}: a build (process "), command
    assert contents(out) == before
    first.kill("all")
    first.ended()
    sample.rebuild(out, mode=Mode.RESUME, shard_size=1)
    assert contents(out) == whole


@pytest.mark.linux
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_build_whose_folder_was_taken_over_writes_nothing_more(sample, whole, tmp_path, monkeypatch, workers):
    out, lines = tmp_path / "data", []
    first = Victim(sample, out, "--shard-size", 1, "--workers", workers, command=("-c", ELSEWHERE))
    assert first.wait_for(lambda: len(reports(out)) >= 2)
    first.send(signal.SIGSTOP)
    monkeypatch.setattr(lock, "TAKEOVER_AFTER", 0.4)
    sources = Sources(sample.coco, sample.lvis, coco_lvis())
    build(sources, out, CocoLvisOptions(shard_size=1), mode=Mode.RESUME, announce=lines.append)
    waits, takes = lines[:2]
    assert "may be running in" in waits and "waiting up to 0 s for a sign of life" in waits and "taking over" in takes
    assert contents(out) == whole
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*")}
    first.send(signal.SIGCONT)
    assert first.ended() == 1
    assert first.error().startswith(f"Error: {out}: this process has lost the folder: ")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.rglob("*")} == before
    assert verify(Dataset.open(out)) == []
    until(first.gone)


def test_a_worker_whose_lease_is_lost_writes_nothing(tree, tmp_path):
    plan = CocoLvisPlan.make(five_images(tree).write().sources(), CocoLvisOptions())
    (task,) = plan.tasks(["train-00000"])
    lease = Lease(tmp_path / "gone", "0")
    with executors.processes(1) as workers, pytest.raises(LockLost):
        workers.submit(task, tmp_path / "new" / "train-00000.h5", lease).result()
    assert not (tmp_path / "new").exists()


def test_a_worker_that_does_not_see_the_folder_says_so_before_any_work(tree, tmp_path, monkeypatch):
    plan = CocoLvisPlan.make(five_images(tree).write().sources(), CocoLvisOptions())
    (task,) = plan.tasks(["train-00000"])
    monkeypatch.setattr(type(task), "sample", lambda *_: pytest.fail("it works"))
    out = tmp_path / "elsewhere"
    lease = Lease(out / f".build-{'0' * 32}.lock", "0" * 32)
    with pytest.raises(LockLost, match=f"{out}: does not exist on .*; all workers need it at the same path"):
        shard_task.run_shard(task, out / "shards" / "train-00000.h5", lease)
    assert not out.exists()


def taken_over(out):
    next(path for path in out.iterdir() if lock.is_lock(path)).unlink()


@pytest.mark.parametrize("mode", [Mode.FRESH, Mode.RESUME])
def test_a_build_that_lost_the_folder_at_its_end_leaves_the_state_of_its_successor(tree, tmp_path, monkeypatch, mode):
    out, plan = tmp_path / "data", tmp_path / "data" / ".build" / "plan.json"
    name = "write_json" if mode is Mode.FRESH else "opened"
    before = getattr(index, name)

    def late(*arguments):
        result = before(*arguments)
        taken_over(out)
        return result

    five_images(tree).write()
    if mode is Mode.RESUME:
        tree.build()
        plan.parent.mkdir()
        plan.touch()
    monkeypatch.setattr(index, name, late)
    with pytest.raises(LockLost):
        build(tree.sources(), out, CocoLvisOptions(), mode=mode)
    assert (out / "dataset.json").exists() and plan.exists()


def test_an_overwrite_that_lost_the_folder_removes_nothing_more(tree, tmp_path):
    out = tmp_path / "data"
    five_images(tree).build()
    (out / "notes.txt").write_text("mine")
    before = contents(out)

    def late(line):
        if "leaves alone" in line:  # right before the first file is removed
            taken_over(out)

    with pytest.raises(LockLost):
        build(tree.sources(), out, CocoLvisOptions(), mode=Mode.OVERWRITE, announce=late)
    assert contents(out) == before


def test_a_stopped_rename_fails_once_the_folder_was_taken_over(tmp_path):
    """The process is stopped between the last look at the lock and the rename: the successor sweeps the temporary file."""
    from cocolvis.building.state import BuildState
    from cocolvis.disk.files import write_json

    with held(tmp_path, None, print) as lease, ExitStack() as stack, pytest.raises(LockLost, match="lost the") as raised:
        looks = []

        def permit():
            lease.check()
            looks.append(1)
            if len(looks) == 2:  # right before the rename
                next(iter(locks(tmp_path))).unlink()
                new = stack.enter_context(held(tmp_path, None, print))
                stack.enter_context(BuildState(tmp_path, new).swept())  # until this test ends

        write_json(tmp_path / ".build" / "train-00000.json", {}, permit)
    assert isinstance(raised.value.__context__, FileNotFoundError)  # that of the rename
    assert not list(tmp_path.rglob("*.json"))


def entry(**of_owner) -> bytes:
    """The content of the lock file of another process."""
    owner = Owner.current()
    values = {"host": owner.host, "system": owner.system, "pid": owner.pid, "started": owner.started} | of_owner
    return (
        json.dumps({"token": "0" * 32, "what": "a build", "part": None, "owner": values}).encode() + b"\nheld  000000000001\n"
    )


def left_by(out: Path, content: bytes) -> Path:
    path = out / f".build-{'0' * 32}.lock"
    path.write_bytes(content)
    return path


def ended_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.linux
@pytest.mark.parametrize("owner", [{"pid": ended_process}, {"started": lambda: "1"}])
def test_a_dead_owner_on_this_machine_costs_no_time(tmp_path, monkeypatch, owner):
    left_by(tmp_path, entry(**{key: value() for key, value in owner.items()}))
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: pytest.fail("waits"))
    with held(tmp_path, None, pytest.fail):
        assert len(locks(tmp_path)) == 1
    assert not locks(tmp_path)


@pytest.mark.linux
def test_a_zombie_is_dead(tmp_path):
    process = subprocess.Popen(["true"])
    until(lambda: owners._started(process.pid) == "has ended")
    assert Owner.current().is_alive() and not Owner(**{**vars_of(Owner.current()), "pid": process.pid}).is_alive()
    process.wait()


def vars_of(owner: Owner) -> dict:
    return {name: getattr(owner, name) for name in owner.__struct_fields__}


ELSE = [{"system": "another"}, {"system": None}, {"host": "another"}, {"started": None}]


@pytest.mark.parametrize("owner", ELSE)
def test_an_owner_elsewhere_is_heard_or_taken_over(tmp_path, monkeypatch, owner):
    monkeypatch.setattr(lock, "TAKEOVER_AFTER", 0.3)
    path, lines = left_by(tmp_path, entry(**owner)), []

    def beat(line):
        lines.append(line)
        path.write_bytes(path.read_bytes().replace(b"1\n", b"2\n"))

    with pytest.raises(DataError, match=r"a build \(process .*\) is running there"), held(tmp_path, None, beat):
        pytest.fail("held")
    assert len(lines) == 1 and locks(tmp_path) == [path]
    with held(tmp_path, None, lines.append) as lease:
        assert locks(tmp_path) == [lease.path] and len(lines) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]\n", b"\xff\xfe", b'{"token": 5}\n', entry(pid=-1)])
def test_a_damaged_lock_is_taken_over_after_silence(tmp_path, monkeypatch, content):
    monkeypatch.setattr(lock, "TAKEOVER_AFTER", 0.2)
    left_by(tmp_path, content)
    lines = []
    with held(tmp_path, None, lines.append):
        assert len(lines) == 2 and "a process with a damaged lock file" in lines[0]
    assert not locks(tmp_path)


def test_a_lock_that_is_a_folder_is_reported(tmp_path):
    (tmp_path / f".build-{'0' * 32}.lock").mkdir()
    with pytest.raises(DataError, match=r"lock: cannot be read: Is a directory; remove it"), held(tmp_path, None, print):
        pytest.fail("held")


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_that_begin_at_once_exactly_one_wins(tmp_path, monkeypatch, dead):
    monkeypatch.setattr(lock, "TAKEOVER_AFTER", 0.3)
    monkeypatch.setattr(lock, "_LOOK", 0.01)
    count = 6
    for turn in range(3):
        out = tmp_path / str(turn)
        out.mkdir()
        if dead:
            left_by(out, entry(system="another"))
        start, tried, won, lost = threading.Barrier(count), threading.Event(), [], []

        def begin(out=out, start=start, tried=tried, won=won, lost=lost):
            start.wait()
            try:
                with held(out, None, lambda line: None) as lease:
                    won.append(lease)
                    tried.wait(60)
                    lease.check()
            except DataError as error:
                lost.append(str(error))

        threads = [threading.Thread(target=begin) for _ in range(count)]
        for thread in threads:
            thread.start()
        until(lambda won=won, lost=lost, count=count: len(won) + len(lost) >= count)
        tried.set()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, count - 1), lost
        assert all("is running there" in line for line in lost) and not locks(out)


def test_a_lease_that_was_lost_says_so_and_pickles(tmp_path):
    import pickle

    with held(tmp_path, None, print) as lease:
        again = pickle.loads(pickle.dumps(lease))
        again.check()
        lease.path.write_bytes(lease.path.read_bytes().replace(lease.token.encode(), b"0" * 32))
        with pytest.raises(LockLost, match="it stops and writes nothing more"):
            again.check()
        lease.path.unlink()
        with pytest.raises(LockLost):
            again.check()
    assert Lease(tmp_path / "nothing", "0").lost()


def test_the_pulse_survives_a_failing_disk_and_ends_with_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.002)
    failures, fsync = [], os.fsync

    def failing(handle):
        if len(failures) < 3 and threading.current_thread() is not threading.main_thread():
            failures.append(1)
            raise OSError(5, "Input/output error")
        fsync(handle)

    with held(tmp_path, None, print) as lease:
        monkeypatch.setattr(lock.os, "fsync", failing)
        until(lambda: len(failures) == 3)
        before = lease.path.read_bytes()
        until(lambda: lease.path.read_bytes() != before)
        beating = [thread for thread in threading.enumerate() if getattr(thread._target, "__qualname__", "") == "_Pulse._run"]
        assert beating and all(thread.daemon for thread in beating)
        lease.check()


@pytest.mark.parametrize("end", [None, DataError("wrong"), KeyboardInterrupt()])
def test_a_lock_and_the_folders_made_for_it_are_removed_when_the_build_ends(tmp_path, end):
    out = tmp_path / "a" / "b"
    with suppress(DataError, KeyboardInterrupt), held(out, None, print):
        assert len(locks(out)) == 1
        if end:
            raise end
    assert not list(tmp_path.iterdir())


def test_parts_may_build_together_and_nothing_else_may(sample, whole, tmp_path):
    out = tmp_path / "data"
    with held(out, (1, 2), print):
        for command in (
            arguments(sample, out, "--shard", "1/2"),
            arguments(sample, out, "--shard", "2/3"),
            arguments(sample, out, "--resume"),
            arguments(sample, out, "--overwrite"),
            ["join", out],
        ):
            assert refused(*command).startswith(f"Error: {out}: part 1 of 2 (process {os.getpid()} on "), command
        done = CliRunner().invoke(main, [str(word) for word in arguments(sample, out, "--shard", "2/2")])
        assert done.exit_code == 0, done.output
    line = refused(*arguments(sample, out, "--shard", "1/2", "--images", "none"))
    assert line == f"Error: {out}: was begun with other inputs or options; resume with the same, or replace it with --overwrite"
    with held(out, None, print):
        assert "a build (process" in refused(*arguments(sample, out, "--shard", "1/2"))
    sample.rebuild(out, mode=Mode.RESUME, shard_size=1)
    assert contents(out) == whole


def test_of_two_parts_with_other_options_that_begin_at_once_one_is_refused(tree, tmp_path, monkeypatch):
    from cocolvis.building import state

    five_images(tree).write()
    create = state.create_json

    def late(path, noted, permit):
        description = noted["description"] | {"options": noted["description"]["options"] | {"limit": 3}}
        assert create(path, noted | {"description": description}, permit)
        return create(path, noted, permit)

    monkeypatch.setattr(state, "create_json", late)
    half = tmp_path / "data" / "shards" / ".train-00000.h5.0123456789ab.tmp"  # the other part is writing it
    half.parent.mkdir(parents=True)
    half.touch()
    with pytest.raises(DataError, match="was begun with other inputs or options"):
        build(tree.sources(), tmp_path / "data", CocoLvisOptions(), mode=Part(1, 2))
    assert list((tmp_path / "data" / "shards").iterdir()) == [half]


def test_a_part_is_refused_if_one_with_other_options_begins_while_it_plans(tree, tmp_path):
    """plan.json is written after this part has looked for it, and before it writes its own."""
    out, options = tmp_path / "data", {"shard_size": 1}
    build(five_images(tree).write().sources(), tmp_path / "other", CocoLvisOptions(limit=3, **options), mode=Part(1, 2))

    def begin_other(line):
        (out / ".build").mkdir()
        shutil.copy(tmp_path / "other" / ".build" / "plan.json", out / ".build")

    with pytest.raises(DataError, match="was begun with other inputs or options"):
        build(tree.sources(), out, CocoLvisOptions(**options), mode=Part(2, 2), announce=begin_other)
    assert not list(out.rglob("*.h5")) and [path.name for path in (out / ".build").iterdir()] == ["plan.json"]


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_create_a_file_one_does(tmp_path, monkeypatch, links):
    from cocolvis.disk.files import create_json

    def without(*_):
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr("cocolvis.disk.files.os.link", without)
    start, made = threading.Barrier(8), []

    def create(number):
        start.wait()
        made.append(create_json(tmp_path / "plan.json", [number] * 100))

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [False] * 7 + [True] and [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    assert len(set(json.loads((tmp_path / "plan.json").read_text()))) == 1


def test_an_observer_that_was_stopped_itself_does_not_take_over(tmp_path, monkeypatch):
    """Time passes while it is stopped, and the owner gives signs of life meanwhile."""
    path, now = left_by(tmp_path, entry(system="another")), [0.0]

    def sleep(seconds):
        now[0] += 1000
        path.write_bytes(path.read_bytes().replace(b"1\n", b"2\n"))

    monkeypatch.setattr(lock, "time", type("Clock", (), {"monotonic": lambda: now[0], "sleep": sleep}))
    with pytest.raises(DataError, match="is running there"), held(tmp_path, None, lambda line: None):
        pytest.fail("held")
    assert time.monotonic() and path.exists()


def test_a_part_that_is_refused_sweeps_nothing_of_others(tree, tmp_path):
    """Its shards have the same names as those that a part of the other build is writing."""
    five_images(tree).write()
    out = tmp_path / "data"
    build(tree.sources(), out, CocoLvisOptions(), mode=Part(1, 2))
    half = out / "shards" / ".train-00000.h5.0123456789ab.tmp"
    half.touch()
    with held(out, (2, 2), print), pytest.raises(DataError, match="was begun with other inputs or options"):
        build(tree.sources(), out, CocoLvisOptions(limit=3), mode=Part(1, 2))
    assert half.exists()
    build(tree.sources(), out, CocoLvisOptions(), mode=Part(1, 2))
    assert not half.exists()


def test_a_lock_that_cannot_be_removed_does_not_block_its_own_process(tmp_path, monkeypatch):
    def read_only(path, **_):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch, held(tmp_path, None, print):
        patch.setattr(Path, "unlink", read_only)
    assert len(locks(tmp_path)) == 1
    with held(tmp_path, None, pytest.fail) as lease:
        assert locks(tmp_path) == [lease.path]


@pytest.mark.linux
@pytest.mark.parametrize("wins", [True, False])
def test_a_claim_waits_for_those_that_may_have_looked_before_it_came(tmp_path, monkeypatch, wins):
    claim = entry().replace(b"0" * 32, b"f" * 32).replace(b"held ", b"claim")
    path = tmp_path / f".build-{'f' * 32}.lock"
    path.write_bytes(claim)

    def resolved(seconds):
        path.write_bytes(claim.replace(b"claim", b"held ")) if wins else path.unlink()

    monkeypatch.setattr(lock.time, "sleep", resolved)
    if wins:
        with pytest.raises(DataError, match="is running there"), held(tmp_path, None, pytest.fail):
            pytest.fail("held")
    else:
        with held(tmp_path, None, pytest.fail):
            assert len(locks(tmp_path)) == 1


def test_a_lock_that_is_removed_as_soon_as_it_is_written_is_a_lost_folder(tmp_path, monkeypatch):
    rename = os.replace

    def swept(aside, path):
        rename(aside, path)
        Path(path).unlink()

    monkeypatch.setattr(os, "replace", swept)
    with pytest.raises(LockLost, match="this process has lost the folder"), held(tmp_path, None, print):
        pytest.fail("it is not ours")
