"""The addresses of pages: every state of a page is a query, and every query is checked before it is used."""

from collections.abc import Iterable, Sequence
from urllib.parse import urlencode

from cocolvis.errors import DataError

Value = str | int | Sequence[str] | None


class Query:
    """The query of an address, as (name, value) pairs in order."""

    def __init__(self, path: str, pairs: Iterable[tuple[str, str]]):
        self.path = path
        self.pairs = [(name, value) for name, value in pairs if value]

    def all(self, name: str) -> list[str]:
        """All values of a name, each once."""
        return list(dict.fromkeys(value for key, value in self.pairs if key == name))

    def text(self, name: str) -> str:
        """The value of a name; "" without one."""
        return next((value for key, value in self.pairs if key == name), "")

    def choice(self, name: str, choices: Sequence[str], default: str | None = None) -> str:
        """One of the ``choices``, the first by default; raises DataError for any other value."""
        value = self.text(name)
        if value and value not in choices:
            raise DataError(f"{name} is {value!r}; expected {' or '.join(map(repr, choices)) or 'nothing'}")
        return value or (choices[0] if default is None else default)

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number from 1 to ``most``; raises DataError for anything else."""
        value = self.text(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= max(1, most)):
            raise DataError(f"{name} is {value!r}; expected a number from 1 to {max(1, most)}")
        return int(value)

    def link(self, **changes: Value) -> str:
        """The address of the same page with other values; None removes a name. Another state begins at its first page."""
        changes = {"page": None} | changes
        pairs = [(name, value) for name, value in self.pairs if name not in changes]
        return address(self.path, pairs, **changes)


def address(path: str, pairs: Iterable[tuple[str, str]] = (), **values: Value) -> str:
    """A path with a query; names without a value are left out."""
    query = [*pairs]
    for name, value in values.items():
        listed = [value] if isinstance(value, str | int) else (value or [])
        query += [(name, str(one)) for one in listed if one != ""]
    return path + (f"?{urlencode(query)}" if query else "")
