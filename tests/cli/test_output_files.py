"""Files that a command writes at its end are checked before it reads anything: here there is nothing to read."""

import os

import pytest
from click.testing import CliRunner

from cli.cocolvis import main as cocolvis
from cli.ess import main as ess

OUTPUTS = {
    "stats --csv": (cocolvis, "stats", "data", "--csv"),
    "stats --plot": (cocolvis, "stats", "data", "--plot"),
    "eval --per-class": (ess, "eval", "run", "data", "--per-class"),
    "eval --per-image": (ess, "eval", "run", "data", "--per-image"),
    "eval --plot": (ess, "eval", "run", "data", "--plot"),
    "report --out": (ess, "report", "run", "data", "--out"),
    "export --out": (ess, "export", "run", "--out"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_file_that_cannot_be_written_is_refused_first(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    main, *arguments = OUTPUTS[name]
    refused = {
        ".": "it is a folder; expected the name of a file",
        "file/x": "file is not a directory",
        "x" * 300: "a name has more than 255 bytes",
    }
    for path, reason in refused.items():
        result = CliRunner().invoke(main, [*arguments, path])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {path}: cannot be written: ") and reason in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_refused_and_links_are_followed(tmp_path, sample_dataset):
    os.mkfifo(tmp_path / "pipe.csv")
    result = CliRunner().invoke(cocolvis, ["stats", "data", "--csv", str(tmp_path / "pipe.csv")])
    assert result.exit_code == 1 and "it is not a regular file" in result.stderr
    assert (tmp_path / "pipe.csv").is_fifo()
    (tmp_path / "table.csv").touch()
    (tmp_path / "link.csv").symlink_to("table.csv")
    CliRunner().invoke(cocolvis, ["stats", str(sample_dataset), "--csv", str(tmp_path / "link.csv")], catch_exceptions=False)
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "table.csv").stat().st_size > 100


def test_one_file_for_two_reports_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for first, second in (("--per-image", "--per-class"), ("--per-class", "--plot")):
        result = CliRunner().invoke(ess, ["eval", "run", "data", first, "a", second, "folder/../a"])
        assert (result.exit_code, result.stdout) == (2, "")
        assert "--per-class, --per-image and --plot need different files" in result.stderr


@pytest.mark.parametrize("name", [name for name in OUTPUTS if name.endswith("--plot")])
def test_a_plot_of_an_unknown_format_is_refused_first(name, tmp_path):
    main, *arguments = OUTPUTS[name]
    result = CliRunner().invoke(main, [*arguments, str(tmp_path / "plot.xyz")])
    assert result.exit_code == 1 and "no format is named '.xyz'; expected" in result.stderr
