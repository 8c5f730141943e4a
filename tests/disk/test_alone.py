import subprocess
import sys
import threading

import pytest

from cocolvis.disk.alone import alone_in
from cocolvis.errors import DataError


def test_a_folder_is_refused_to_a_second_one_or_waited_for(tmp_path):
    folder, order = tmp_path / "a" / "b", []

    def second():
        with alone_in(folder):
            order.append("second")

    with alone_in(folder):
        with pytest.raises(DataError, match="b: someone is there"), alone_in(folder, "someone is there"):
            pass
        waiting = threading.Thread(target=second)
        waiting.start()
        waiting.join(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_a_process_that_inherits_the_descriptor_holds_the_folder_too(tmp_path):
    with alone_in(tmp_path) as handle:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[handle])
    with pytest.raises(DataError, match="occupied"), alone_in(tmp_path, "occupied"):
        pass
    child.communicate(b"\n")
    with alone_in(tmp_path, "occupied"):
        assert child.returncode == 0


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"file/folder: cannot be written: "), alone_in(tmp_path / "file" / "folder"):
        pass


def test_without_locks_nothing_is_locked(tmp_path, monkeypatch):
    def unsupported(handle, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with alone_in(tmp_path), alone_in(tmp_path, "occupied") as handle:
        assert handle > 0
