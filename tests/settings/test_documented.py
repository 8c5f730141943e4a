"""The table of settings in docs/ess.md is the one that the descriptions in ess/config.py give."""

import runpy
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from cli.ess.training.settings import setting_options, settings_table
from ess.config import Config
from ess.setting import settings_of

SCRIPT = Path(__file__).parents[2] / "docs" / "write_settings.py"
TEXT = SCRIPT.with_name("ess.md").read_text(encoding="utf-8")
updated = runpy.run_path(str(SCRIPT))["updated"]


def test_the_table_is_up_to_date():
    assert updated(TEXT) == TEXT, "docs/ess.md is out of date: run `python docs/write_settings.py`"


@pytest.mark.parametrize("old", ["`--batch-size`", "Negatives per pixel.", "`5`", ""])
def test_an_outdated_table_is_replaced(old):
    table = settings_table()
    outdated = TEXT.replace(table, table.replace("| `--k` | whole number, 1 or more, at most 65535 | `7` |", f"| {old} |"))
    assert outdated != TEXT and updated(outdated) == TEXT


def test_every_setting_has_a_row():
    rows = settings_table().splitlines()[2:]
    for setting, row in zip(settings_of(Config), rows, strict=True):
        flags, values, _, meaning = (cell.strip() for cell in row.strip("|").split("|"))
        assert flags.split(", ")[0] == f"`--{setting.name.replace('_', '-')}`"
        assert bool(values) == (setting.kind is not bool) and meaning == setting.help
        assert all(f"`{value}`" in values for value in (*setting.choices, *setting.words))


def test_ranges_and_defaults_are_shown():
    table = settings_table()
    assert "| `--dropout` | 0 or more, less than 1 |  | Dropout probability" in table
    assert "| `--batch-size` | whole number, 1 or more, at most 1048576 | `16` | Images per step" in table
    assert "| `--temperature` | more than 0, at most 1000000, or `learnt` | `20.0` | T, " in table
    assert "| `--freeze-bn`, `--no-freeze-bn` |  | off | Leave" in table


@pytest.mark.parametrize("setting", settings_of(Config), ids=lambda setting: setting.name)
def test_the_flag_of_a_setting_takes_its_values(setting):
    @click.command()
    @setting_options
    def command(**given):
        print(repr(given[setting.name]))

    flag = f"--{setting.name.replace('_', '-')}"
    if setting.kind is bool:
        assert CliRunner().invoke(command, [flag]).output == "True\n"
        return
    usual = {int: (3,), float: (0.5,), str: ("8,16,32",)}[setting.kind]
    for value in (*(setting.choices or usual), *setting.words, *(("none",) if setting.optional else ())):
        assert CliRunner().invoke(command, [flag, str(value)]).output == f"{value!r}\n"
