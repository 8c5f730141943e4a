"""The command ``cocolvis download``: what it lists, asks and prints, and that it can be killed at any time."""

import hashlib
import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest
from archive_server import QUICK, STUFF, whole
from click.testing import CliRunner

from cli.cocolvis import main
from cocolvis.downloads import official
from cocolvis.downloads.official import ARCHIVES


def test_the_command_lists_what_is_left_and_needs_a_terminal_or_yes(site, tmp_path):
    out = tmp_path / "not" / "there"
    result = CliRunner().invoke(main, ["download", "--out", str(out), "--mirror", site.url])
    assert result.exit_code == 1 and not (tmp_path / "not").exists() and site.asked == [] and result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [*(entry.file for entry in ARCHIVES), "total"]
    assert "left to fetch; the disk has" in lines[-2]
    assert lines[-1].startswith("Error: nothing was fetched") and "--yes" in lines[-1]


def test_the_command_prints_what_was_fetched(site, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "RetryPolicy", lambda: QUICK)
    arguments = ["download", "--out", str(tmp_path), "--mirror", site.url, "--only", "lvis-val", "--only", "stuff", "--yes"]
    site.script = site.cuts(1000)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert hashlib.sha256(STUFF).hexdigest() in result.stdout and "cocolvis build --coco" in result.stdout
    assert "trying again" in result.stderr and "download: " in result.stderr
    again = CliRunner().invoke(main, [*(word for word in arguments if word != "--yes"), "--json"])
    found = json.loads(again.stdout)
    assert found == {"out": str(tmp_path), **json.loads((tmp_path / "downloads.json").read_text())}
    assert "finished" in again.stderr and len(site.asked) == 3
    assert CliRunner().invoke(main, ["download", "--out", str(tmp_path), "--mirror", "x"]).exit_code == 1


def start(site, out, *extra, **settings):
    """Start the command in a separate process, with the small table of archives."""
    small = [(entry.name, entry.file, entry.url, entry.size, entry.exact) for entry in official.ARCHIVES]
    table = "official.ARCHIVES = tuple(official.Archive(*row) for row in eval(sys.argv.pop(1)))"
    code = f"import sys; from cocolvis.downloads import official; {table};"
    words = [sys.executable, "-c", f"{code} from cli.cocolvis import main; main()", repr(small)]
    words += ["download", "--out", str(out), "--mirror", site.url, "--only", "stuff", *extra]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings)


def stopped(site, stuff, how):
    """Start the command, and stop it by a signal when some of 9000 bytes have arrived; (exit code, stderr)."""
    site.script = [lambda handler: site.serve(handler, 9000, stall=True)]
    process = start(site, stuff.target.parents[1], "--yes")
    while process.poll() is None and not (stuff.part.exists() and stuff.part.stat().st_size):
        time.sleep(0.005)
    process.send_signal(how)
    stderr = process.communicate(timeout=60)[1]
    assert not stuff.target.exists() and 0 < stuff.part.stat().st_size <= 9000
    return process.returncode, stderr


def test_a_killed_download_fetches_only_the_rest(site, stuff):
    assert stopped(site, stuff, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = stuff.part.stat().st_size
    second = start(site, stuff.target.parents[1], "--yes")
    assert second.communicate(timeout=60) and second.returncode == 0
    assert whole(stuff) and site.ranges == [None, f"bytes={kept}-"]


def test_ctrl_c_keeps_the_received_bytes(site, stuff):
    code, stderr = stopped(site, stuff, signal.SIGINT)
    assert code == 130 and "interrupted; what was fetched is kept; the same command continues from there\n" in stderr
    assert "--resume" not in stderr and "Traceback" not in stderr
    kept = stuff.part.stat().st_size
    stuff()
    assert whole(stuff) and site.ranges == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("answer", ["n", "y"])
def test_the_command_asks_on_a_terminal(site, stuff, answer):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    process = start(site, stuff.target.parents[1], stdin=theirs)
    stderr = process.communicate(timeout=60)[1]
    os.close(ours), os.close(theirs)
    assert "Fetch what is left? [y/N]:" in stderr
    assert process.returncode == (0 if answer == "y" else 1)
    assert stuff.target.exists() == bool(site.asked) == (answer == "y")
