"""Ctrl-C: every command says what it left behind and how to continue. Windows: every command says that it does not run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli import cocolvis, ess
from cli.cocolvis.creation.run import what_is_kept
from cli.commands import UNCHANGED, Command, Group
from cli.ess.training.train import what_is_kept as what_a_run_keeps
from cocolvis.building.build import Mode

ROOT = Path(__file__).parents[2]


def leaves(group, name=""):
    """(name, command) for every command, including the commands of nested groups."""
    for word, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{name}{word} ")
        else:
            yield f"{name}{word}", command


COMMANDS = {f"cocolvis {name}": command for name, command in leaves(cocolvis.main)}
COMMANDS |= {f"ess {name}": command for name, command in leaves(ess.main)}

READS_ONLY = {"cocolvis info", "cocolvis vocab", "cocolvis images", "cocolvis verify", "cocolvis diff"}
READS_ONLY |= {"cocolvis why", "ess compare", "ess info", "ess models", "ess preset"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_says_what_ctrl_c_leaves(name, monkeypatch, tmp_path):
    command = COMMANDS[name]
    assert isinstance(command, Command)
    assert (command.interrupted == UNCHANGED) == (name in READS_ONLY)

    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "callback", interrupted)
    words = name.split()[1:]
    for parameter in command.params:
        if parameter.required:
            value = "1" if isinstance(parameter.type, type(click.INT)) else str(tmp_path / "x")
            words += [value] if isinstance(parameter, click.Argument) else [parameter.opts[0], value]
    main = ess.main if name.startswith("ess ") else cocolvis.main
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 130 and result.stderr.startswith("interrupted; ") and result.stderr.count("\n") == 1
    said = result.stderr.removeprefix("interrupted; ").strip()
    assert len(said.split()) > 2
    for option in {word.strip(";:,") for word in said.split() if word.startswith("--")}:
        assert option in {o for p in command.params for o in p.opts}, option


def test_a_command_without_a_message_for_ctrl_c_cannot_be_defined():
    group = Group("group")
    with pytest.raises(TypeError, match="interrupted"):
        group.command()(lambda: None)


@pytest.mark.parametrize("parents", [1, 2])
def test_the_message_is_that_of_the_command_that_ran(parents):
    group = Group("outer")
    inner = Group("inner") if parents == 2 else group
    if parents == 2:
        group.add_command(inner)

    @inner.command(interrupted=lambda given: f"kept {given['number']}")
    @click.option("--number", type=int)
    def fail(number):
        raise KeyboardInterrupt

    @inner.command(interrupted="wrong")
    def other():
        pass

    result = CliRunner().invoke(group, [*["inner"] * (parents - 1), "fail", "--number", "7"])
    assert (result.exit_code, result.stderr) == (130, "interrupted; kept 7\n")


def test_what_a_build_leaves(tmp_path):
    given = {"out": tmp_path, "part": None, "overwrite": False}
    assert what_is_kept(given) == f"nothing was written to {tmp_path} yet"
    (tmp_path / ".build").mkdir()
    assert what_is_kept(given) == "finished shards are kept: continue with --resume"
    assert what_is_kept(given | {"part": (1, 2)}) == "finished shards are kept: continue with the same command"
    assert what_is_kept(given | {"overwrite": True}).endswith("--resume instead of --overwrite")
    (tmp_path / "dataset.json").touch()
    assert what_is_kept(given | {"overwrite": True}) == f"the data set in {tmp_path} is unchanged"


def test_what_an_interrupted_overwrite_leaves(sample, tmp_path, monkeypatch):
    out = tmp_path / "data"
    words = ["build", "--coco", sample.coco, "--lvis", sample.lvis, "--out", out, "--workers", 1, "--overwrite"]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def said(place, *more):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            result = CliRunner().invoke(cocolvis.main, [str(word) for word in (*words, *more)])
        assert result.exit_code == 130
        return result.stderr.splitlines()[-1].removeprefix("interrupted; ")

    planning, replaced, begun = (
        f"cocolvis.building.{place}" for place in ("coco_lvis.CocoLvisPlan.make", "state.create_json", "executors.run_here")
    )
    not_begun = f"the new build was not begun, and what it replaces in {out} may be gone in part: run the same command again"
    assert said(planning) == f"nothing was written to {out} yet"
    sample.rebuild(out)
    assert said(planning) == f"the data set in {out} is unchanged"
    assert said(begun) == "finished shards are kept: continue with --resume instead of --overwrite"
    assert said(planning, "--shard-size", 3) == not_begun  # an unfinished build of other options is still there
    assert said(replaced) == not_begun
    sample.rebuild(out, mode=Mode.OVERWRITE)
    assert said(replaced) == not_begun and not (out / "dataset.json").exists()


def test_what_a_training_leaves(tmp_path):
    given = {"out": tmp_path, "cache_features": None}
    assert what_a_run_keeps(given) == "no step was finished yet; run the same command to start over"
    told = what_a_run_keeps(given | {"cache_features": tmp_path / "features"})
    assert told == "no step was finished yet, but the features stored so far are kept: continue with the same command"
    (tmp_path / "run.json").touch()
    assert what_a_run_keeps(given) == "the last checkpoint is kept: continue with --resume"


def test_an_interrupted_export_says_how_to_continue_and_does(sample, tmp_path):
    out = tmp_path / "masks"
    command = [sys.executable, "-c", "import cocolvis.inspection.export as e, time; w = e.write_png"]
    command[-1] += "\ne.write_png = lambda *a, **k: (w(*a, **k), time.sleep(0.2))\nfrom cli.cocolvis import main; main()"
    process = subprocess.Popen([*command, "export", sample.data, "--out", out], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while process.poll() is None and len(list(out.rglob("*.png"))) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.splitlines()[-1] == (
        "interrupted; the masks that were written are kept: continue with --resume"
    )
    assert 3 <= len(list(out.rglob("*.png"))) < 40
    result = CliRunner().invoke(cocolvis.main, ["export", str(sample.data), "--out", str(out), "--resume"])
    assert result.stdout == f"40 masks in {out}\n"


SENTENCE = "cocolvis and ess run on Linux, macOS and WSL, not on Windows itself"


@pytest.mark.parametrize("main", [cocolvis.main, ess.main], ids=["cocolvis", "ess"])
@pytest.mark.parametrize("words", [["info", "x"], ["--help"], []])
def test_windows_is_refused_in_one_line(main, words, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, result.output) == (1, f"Error: {SENTENCE}\n") or (
        result.output == "" and str(result.exception) == f"Error: {SENTENCE}"
    )


ABSENT = """
import os, sys
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("pread", "preadv", "fork", "sched_getaffinity"):
    vars(os).pop(name, None)
"""


@pytest.mark.parametrize("name", ["cocolvis", "ess"])
@pytest.mark.parametrize(
    "code", ["sys.platform = 'win32'; import cli.{0}", "import cli.{0}; sys.platform = 'win32'; cli.{0}.main()"]
)
def test_windows_is_refused_before_a_module_is_imported_that_it_lacks(name, code):
    command = [sys.executable, "-c", ABSENT + code.format(name), "info", "x"]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert (found.returncode, found.stdout, found.stderr) == (1, "", f"Error: {SENTENCE}\n")


def test_the_readme_names_the_systems():
    assert "Linux, macOS or WSL, not Windows itself" in (ROOT / "README.md").read_text()
