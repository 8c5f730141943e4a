"""benchmarks/on_gpu.py, which runs everything that needs a GPU: what it says of a part, and that every command exists."""

import sys

import on_gpu
import pytest
from click.testing import CliRunner


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("print('done')", "passed"),
        ("import sys; print('done', flush=True); sys.exit(3)", "failed (exit 3)"),
        ("import os; print('done', flush=True); os.fork(); import time; time.sleep(1000)", "stopped after 2 s"),
    ],
)
def test_a_part_says_how_it_ended_and_keeps_what_it_printed(tmp_path, code, end):
    assert on_gpu.run([sys.executable, "-c", code], 2, tmp_path / "log", tmp_path) == end
    assert (tmp_path / "log").read_text().splitlines()[0] == "done"


def test_one_failure_neither_stops_the_others_nor_passes(tmp_path, monkeypatch):
    parts = {"bad": (20, [sys.executable, "-c", "raise SystemExit(1)"]), "good": (20, [sys.executable, "-c", "print(5)"])}
    monkeypatch.setattr(on_gpu, "PARTS", parts)
    done = CliRunner().invoke(on_gpu.main, ["--logs", str(tmp_path / "logs")])
    assert done.exit_code == 1 and done.output.splitlines()[-2:] == ["bad       failed (exit 1)", "good      passed"]
    assert (tmp_path / "logs" / "good.log").read_text() == "5\n"
    late = CliRunner().invoke(on_gpu.main, ["--logs", str(tmp_path / "none"), "--budget", "-1"])
    assert late.exit_code == 1 and late.output.splitlines()[-1] == "good      left out"


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in on_gpu.PARTS if name != "tests"])
def test_every_part_is_a_command_that_exists(tmp_path, name):
    """With --help behind them, the commands refuse options that they do not have, and do nothing."""
    command = on_gpu.PARTS[name][1]
    assert on_gpu.run([*command, "--help"], 120, tmp_path / "log", tmp_path) == "passed"
    assert "Usage:" in (tmp_path / "log").read_text()
