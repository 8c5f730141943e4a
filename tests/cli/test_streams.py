"""Standard streams that are closed, full, or of another encoding than UTF-8."""

import errno
import io
import json
import os
import shlex
import subprocess
import sys

import click
import pytest

from cli import display
from cocolvis.errors import DataError


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_no_file_gets_the_number_of_a_closed_stream(closed, tmp_path):
    code = (
        "import sys, cli; file = open(sys.argv[1], 'w'); print(file.fileno(), file=file, flush=True);"
        "print('x'); print(sys.stdin.read(), file=sys.stderr); sys.stderr.isatty()"
    )
    command = f"exec {shlex.join([sys.executable, '-c', code, str(tmp_path / 'file')])} {closed}"
    done = subprocess.run(["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2


def failing(number):
    def echo(text, err=False):
        raise OSError(number, os.strerror(number))

    return echo


def test_a_full_stdout_is_one_line_and_a_full_stderr_ends_nothing(monkeypatch):
    monkeypatch.setattr(click, "echo", failing(errno.ENOSPC))
    display.say("progress", err=True)
    for write in (display.say, display.say_fields, display.print_json):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        with pytest.raises(DataError, match=r"^stdout: cannot be written: No space left on device$"):
            write("a")
        assert sys.stdout.closed
    monkeypatch.setattr(click, "echo", failing(errno.EPIPE))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    with pytest.raises(BrokenPipeError):
        display.say("a")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["import", "--help"], ["images", "--help"]])
def test_a_help_text_that_cannot_be_printed_is_one_line(arguments):
    command = [sys.executable, "-m", "cli.cocolvis", *arguments]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr == b"Error: stdout: cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("encoding", "said"), [("ascii", r"caf\xe9 \u6f22"), ("latin-1", r"café \u6f22"), ("utf-8", "café 漢")]
)
def test_names_that_the_encoding_of_stdout_lacks_are_escaped(encoding, said, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding))
    display.say("café 漢")
    assert content.getvalue().decode(encoding) == f"{said}\n"
    content.truncate(content.seek(0))
    display.print_json({"name": "café 漢"})
    assert json.loads(content.getvalue().decode(encoding)) == {"name": "café 漢"}
