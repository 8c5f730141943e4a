"""The description of a setting: its type, its allowed values, its default and its meaning."""

from dataclasses import dataclass, field, fields
from functools import cache
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from cocolvis.errors import DataError

_T = TypeVar("_T")

NONE = "none"
"""The word for no value in flags and TOML files, where None cannot be written."""


class Range(NamedTuple):
    """The numbers from ``least`` to ``most``, without the end that ``open`` names."""

    least: float
    most: float
    open: Literal["", "least", "most"] = ""

    def holds(self, value: float) -> bool:
        """Whether a number is in the range; NaN never is."""
        return self.least <= value <= self.most and not (self.open and value == getattr(self, self.open))

    def __str__(self) -> str:
        least = f"more than {self.least}" if self.open == "least" else f"{self.least} or more"
        return f"{least}, {'less than' if self.open == 'most' else 'at most'} {self.most}"


def setting(default: _T, help: str, range: Range | None = None) -> _T:
    """A field of a dataclass of settings, with its meaning, and the range of its values if they are numbers."""
    return field(default=default, metadata={"help": help, "range": range})


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: ``kind`` is its type, ``choices`` are the only values allowed, if not empty; ``optional`` allows None.

    ``words`` are allowed instead of a number.
    """

    name: str
    kind: type
    choices: tuple[Any, ...]
    words: tuple[str, ...]
    optional: bool
    range: Range | None
    default: Any
    help: str

    @property
    def expected(self) -> str:
        """The values that are of the right type, in words."""
        kind = str(self.choices) if self.choices else "text in one line" if self.kind is str else self.kind.__name__
        return " or ".join([kind, *map(repr, self.words), *(["none"] if self.optional else [])])

    def check(self, value: Any) -> None:
        """Raise DataError unless the setting may have this value. Where a float is expected, an int is fine."""
        if (value is None and self.optional) or (type(value) is str and value in self.words):
            return
        if not self._fits(value):
            raise DataError(f"setting {self.name} is {_short(value)}; expected {self.expected}")
        if self.range is not None and not self.range.holds(value):
            words = "".join(f", or {word!r}" for word in self.words)
            raise DataError(f"setting {self.name} is {_short(value)}; expected {self.range}{words}")

    def _fits(self, value: Any) -> bool:
        if self.choices:
            return any(value == choice and type(value) is type(choice) for choice in self.choices)
        if self.kind is str:
            return type(value) is str and value != "" and value.isprintable()
        return type(value) is self.kind or (self.kind is float and type(value) is int)


@cache
def settings_of(described: type) -> tuple[Setting, ...]:
    """The settings that a dataclass declares with :func:`setting`, in order."""
    hints = get_type_hints(described)
    settings = []
    for declared in fields(described):
        hint = hints[declared.name]
        kinds = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
        literals = tuple(value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind))
        plain = [kind for kind in kinds if get_origin(kind) is not Literal and kind is not NoneType]
        settings.append(
            Setting(
                name=declared.name,
                kind=plain[0] if plain else type(literals[0]),
                choices=() if plain else literals,
                words=literals if plain else (),
                optional=NoneType in kinds,
                range=declared.metadata["range"],
                default=declared.default,
                help=declared.metadata["help"],
            )
        )
    return tuple(settings)


def _short(value: Any) -> str:
    """A value in at most 60 characters."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print very long integers
        return "far too large"
    return text if len(text) <= 60 else f"{text[:57]}..."
