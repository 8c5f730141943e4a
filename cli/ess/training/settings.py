"""The flags of ``ess train`` and the table in docs/ess.md: both have an entry for each setting of a run."""

from collections.abc import Callable
from typing import Any

import click

from ess.config import Config
from ess.setting import NONE, Setting, settings_of


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every setting of :class:`ess.config.Config`; an option that is not given is None."""
    for setting in reversed(settings_of(Config)):
        default = "" if setting.default is None or setting.default is False else f"  [default: {setting.default}]"
        flags, kind = "/".join(_flags(setting)), None if setting.kind is bool else _type(setting)
        command = click.option(flags, setting.name, type=kind, default=None, help=setting.help + default)(command)
    return command


def settings_table() -> str:
    """The settings as a Markdown table: flag, values, default, meaning."""
    rows = [
        (", ".join(f"`{flag}`" for flag in _flags(setting)), _values(setting), _default(setting), setting.help)
        for setting in settings_of(Config)
    ]
    lines = ["| flag | values | default | meaning |", "|---|---|---|---|"]
    return "".join(f"{line}\n" for line in (*lines, *(f"| {' | '.join(row)} |" for row in rows)))


def _flags(setting: Setting) -> list[str]:
    """The flag of a setting; for a switch, also the one that turns it off."""
    name = setting.name.replace("_", "-")
    return [f"--{name}", f"--no-{name}"] if setting.kind is bool else [f"--{name}"]


def _type(setting: Setting) -> Any:
    """The click type of a setting. :class:`ess.config.Config` checks ranges, for flags and files alike."""
    words = setting.words + ((NONE,) if setting.optional else ())
    if setting.choices:
        return _Integers(setting.choices) if setting.kind is int else click.Choice(setting.choices + words)
    return _NumberOr(setting.kind, words) if words and setting.kind in (int, float) else setting.kind


def _values(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    if setting.range is not None:
        words = "".join(f", or `{word}`" for word in setting.words)
        return f"{'whole number, ' if setting.kind is int else ''}{setting.range}{words}"
    return "" if setting.kind is bool else "text"


def _default(setting: Setting) -> str:
    if setting.default is None:
        return ""
    return "off" if setting.default is False else f"`{setting.default}`"


class _Integers(click.Choice):
    """A choice between integers, passed on as int."""

    def __init__(self, values: tuple[int, ...]):
        super().__init__([str(value) for value in values])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text; anything other than one of the integers is wrong usage."""
        return int(super().convert(str(value), param, ctx))


class _NumberOr(click.ParamType):
    """A number, or one of some words, which are passed on as they are."""

    def __init__(self, kind: type, words: tuple[str, ...]):
        self._number: click.ParamType = click.INT if kind is int else click.FLOAT
        self._words = words
        self.name = "|".join((self._number.name, *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float | str:
        """Parse the text; anything other than a number or one of the words is wrong usage."""
        if value in self._words:
            return value
        try:
            return self._number.convert(value, param, ctx)
        except click.BadParameter as error:
            self.fail(f"{error.message.rstrip('.')} or one of the words {', '.join(self._words)}", param, ctx)
