"""Builds on a dask.distributed cluster of real processes: workers die, the scheduler dies, or there is none."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from victims import GUARD, Victim, check_unfinished, contents, kept, reports, until

from cocolvis.building import executors
from cocolvis.building.build import Mode, build
from cocolvis.building.coco_lvis import CocoLvisOptions
from cocolvis.errors import DataError
from cocolvis.sources.inputs import Sources
from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import coco_lvis

pytest.importorskip("distributed")
pytestmark = pytest.mark.linux

SHARDS = 40
HURRIED = """
import sys
from cli.cocolvis import main
from cocolvis.building import executors
executors._PATIENCE = {}
main(sys.argv[1:])
"""

NO_WORKER = (
    "Error: --scheduler {}: lost its workers or its connection (no worker for {} s; one without this version of cocolvis-ess"
    " stops at its first task); finished shards are kept: continue with --resume"
)
WITHOUT = """
import sys
sys.modules["cocolvis"] = None
from distributed.cli.{} import main
main()
"""


class Cluster:
    """A scheduler and its workers, each in a process of its own, listening only on 127.0.0.1.

    The module of dask that is ``lacking`` runs without this package.
    """

    def __init__(self, folder, stack: ExitStack, lacking: str = ""):
        self._folder, self._stack, self._lacking = folder, stack, lacking
        self._file = folder / "scheduler.json"
        self._log = stack.enter_context((folder / "log").open("wb"))
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--scheduler-file", self._file)
        until(lambda: self._file.exists() and self._file.read_text().endswith("}"), 0.01)
        self.address = json.loads(self._file.read_text())["address"]
        assert self.address.startswith("tcp://127.0.0.1:")
        self.workers = []

    def add_worker(self) -> None:
        options = ["--nthreads", "1", "--no-nanny", "--memory-limit", "0"]
        self.workers.append(self._start("dask_worker", self.address, *options))

    def _start(self, module, *arguments) -> subprocess.Popen:
        how = ["-c", WITHOUT.format(module)] if module == self._lacking else ["-m", f"distributed.cli.{module}"]
        command = [sys.executable, *how, *arguments, "--host", "127.0.0.1", "--no-dashboard"]
        settings = {"DASK_DISTRIBUTED__SCHEDULER__IDLE_TIMEOUT": f"{GUARD} s", "DASK_TEMPORARY_DIRECTORY": str(self._folder)}
        streams = {"stdout": self._log, "stderr": self._log, "env": os.environ | settings}
        process = subprocess.Popen(list(map(str, command)), **streams)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


@contextmanager
def cluster(folder, workers=0, lacking=""):
    """Start a cluster, and stop it at the end."""
    folder.mkdir()
    with ExitStack() as stack:
        found = Cluster(folder, stack, lacking)
        for _ in range(workers):
            found.add_worker()
        yield found


def build_on(address, sample, out, patience=30, *options):
    """Start the command line on a cluster; ``patience`` is the number of seconds that it waits for workers."""
    command = ("-c", HURRIED.format(patience))
    return Victim(sample, out, "--shard-size", 1, "--scheduler", address, *options, command=command)


@pytest.fixture(scope="module")
def whole(sample, tmp_path_factory):
    """The contents of the sample's data set in 40 shards, built here."""
    out = tmp_path_factory.mktemp("whole") / "data"
    sample.rebuild(out, shard_size=1)
    return contents(out)


def begun(out):
    """Whether some shards are finished, and most are not."""
    return 1 <= len(reports(out)) < SHARDS // 2


def completed_here(sample, out, whole):
    """Finish a build without a cluster; finished shards must stay the same files."""
    check_unfinished(out)
    before = kept(out)
    assert 1 <= len(before) < SHARDS
    sample.rebuild(out, mode=Mode.RESUME, shard_size=1)
    assert contents(out) == whole
    found = {name: (out / "shards" / f"{name}.h5").stat() for name in before}
    assert {name: (status.st_ino, status.st_mtime_ns) for name, status in found.items()} == before


@pytest.mark.long
def test_a_cluster_goes_on_when_a_worker_dies_and_reports_when_all_have_died(sample, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("DASK_DISTRIBUTED__ADMIN__LARGE_GRAPH_WARNING_THRESHOLD", "1 B")
    with cluster(tmp_path / "cluster", workers=2) as found:
        one = build_on(found.address, sample, tmp_path / "one")
        assert one.wait_for(lambda: begun(tmp_path / "one"))
        found.workers[0].kill()
        assert len(reports(tmp_path / "one")) < SHARDS
        assert one.ended() == 0, one.said
        assert contents(tmp_path / "one") == whole
        assert not any(word in one.said for word in ("Warning", "ERROR", "Traceback", "distributed."))

        all_die = build_on(found.address, sample, tmp_path / "all", 2)
        assert all_die.wait_for(lambda: begun(tmp_path / "all"))
        found.workers[1].kill()
        assert all_die.ended() == 1
        assert all_die.error() == NO_WORKER.format(found.address, 2)
        completed_here(sample, tmp_path / "all", whole)

        none = build_on(found.address, sample, tmp_path / "none", 1)
        assert none.ended() == 1
        assert none.error().endswith(f"has no workers; start some with `dask worker {found.address}`")


def test_a_scheduler_that_dies_costs_no_finished_work(sample, whole, tmp_path):
    with cluster(tmp_path / "cluster", workers=1) as found:
        victim = build_on(found.address, sample, tmp_path / "data", 3)
        assert victim.wait_for(lambda: begun(tmp_path / "data"))
        found.scheduler.kill()
        assert victim.ended() == 1
        assert victim.error().startswith(f"Error: --scheduler {found.address}: lost its workers or its connection (")
        assert victim.error().endswith("; finished shards are kept: continue with --resume")
        found.workers[0].send_signal(signal.SIGKILL)
        found.workers[0].wait()
        completed_here(sample, tmp_path / "data", whole)


@pytest.mark.long
def test_a_failing_disk_is_reported_by_the_cluster_in_one_line(sample, tmp_path):
    shutil.copytree(sample.coco, tmp_path / "coco")
    built = sample._replace(coco=tmp_path / "coco")
    bad = sorted((tmp_path / "coco/train2017").iterdir())[-1]
    bad.unlink()
    bad.symlink_to("/proc/self/mem")  # an input/output error
    with cluster(tmp_path / "cluster", workers=1) as found:
        victim = build_on(found.address, built, tmp_path / "data")
        assert victim.ended() == 1
        assert victim.error().startswith(
            f"Error: {bad}: cannot be read: Input/output error; finished shards are kept: continue with "
        )
        check_unfinished(tmp_path / "data")
        allowed = build_on(found.address, built, tmp_path / "data", 30, "--resume", "--allow-missing")
        assert allowed.ended() == 0, allowed.said
    assert sum(Dataset.open(tmp_path / "data").splits.values()) == SHARDS - 1


@pytest.mark.parametrize("lacking", ["dask_scheduler", pytest.param("dask_worker", marks=pytest.mark.long)])
def test_a_cluster_without_this_package_is_reported_in_one_line(sample, tmp_path, lacking):
    with cluster(tmp_path / "cluster", workers=1, lacking=lacking) as found:
        victim = build_on(found.address, sample, tmp_path / "data", 10)
        assert victim.ended() == 1
    advice = "scheduler and workers need the same version of cocolvis-ess"
    unread = rf"Error: --scheduler {found.address}: cannot read a task \(.*\w.*\); {advice}"
    expected = unread if lacking == "dask_scheduler" else re.escape(NO_WORKER.format(found.address, 10))
    assert re.fullmatch(expected, victim.error())


@contextmanager
def closed_port():
    """An address where nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    yield address


@contextmanager
def web_server():
    """The address of another service, such as the dashboard of a scheduler."""
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"tcp://127.0.0.1:{server.server_port}"
        server.shutdown()
        server.block_on_close = False


@pytest.mark.parametrize("listener", [closed_port, web_server])
def test_no_scheduler_is_reported_in_one_line(sample, tmp_path, listener):
    with listener() as address:
        victim = build_on(address, sample, tmp_path / "data", 0.5)
        assert victim.ended() == 1
    assert victim.error().startswith(f"Error: --scheduler {address}: no scheduler answers (")
    assert victim.error().endswith("); start one with `dask scheduler`")


@pytest.mark.parametrize(
    "address", ["nowhere", "tcp://", "tcp://127.0.0.1", "tcp://127.0.0.1:x", "127.0.0.1:99999", "x://y:1", "tls://127.0.0.1:1"]
)
def test_an_invalid_address_is_reported_in_one_line(sample, tmp_path, monkeypatch, address):
    monkeypatch.setattr(executors, "_PATIENCE", 0.5)
    with pytest.raises(DataError, match=f"--scheduler {address}: no scheduler answers"):
        build(Sources(sample.coco, sample.lvis, coco_lvis()), tmp_path / "data", CocoLvisOptions(), workers=address)
