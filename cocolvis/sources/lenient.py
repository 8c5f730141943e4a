"""Reads a JSON object of lists as byte offsets, for files that a typed parser refuses as a whole because of one fault.

No Python objects are created, so that memory is bounded by a few thousand offsets. It accepts what Python's json module accepts
(NaN, Infinity, invalid UTF-8), and also numbers of any length and any depth of nesting.
"""

from collections.abc import Collection, Iterator, Sequence

import msgspec
import numpy as np

from cocolvis.sources import json_kernels
from cocolvis.text import Buffer

_ROWS = 1024
"""How many members one call locates."""

_SHOWN = 10
"""How many bytes a message quotes where a text cannot be read."""

_LONGEST_KEY = 256
"""The most bytes of a key, quotes included, that is compared: the keys of interest are shorter, however they are escaped."""


def as_text(content: Buffer) -> np.ndarray:
    """The bytes as a read-only (n,) uint8 array, which the functions here take; nothing is copied."""
    text = np.frombuffer(content, np.uint8)
    text.flags.writeable = False
    return text


def values(text: np.ndarray, keys: Collection[str]) -> list[tuple[str, int, int]]:
    """(key, begin, end) of each top-level value of a JSON object whose key is one of ``keys``, except null.

    A key may occur several times. Raises ValueError if the text is not a single complete JSON object.
    """
    start = json_kernels.blank(text, 0)
    if text[start : start + 1].tobytes() != b"{":
        begins = f"it begins with {_shown(text, start)}; " if start < len(text) else "it is empty; "
        raise ValueError(f"{begins}expected one JSON object")
    end = json_kernels.skip(text, start)
    if end < 0:
        line = 1 + np.count_nonzero(text[:~end] == ord("\n"))
        where = f"line {line}, byte {~end}: {_shown(text, ~end)} is not expected there"
        raise ValueError("it is cut short" if ~end == len(text) else where)
    if json_kernels.blank(text, end) < len(text):
        raise ValueError(f"there is more after the object, which ends at byte {end}")
    found = []
    for rows in _members(text, start):
        possible = (rows[:, 1] - rows[:, 0] <= _LONGEST_KEY) & (text[rows[:, 2]] != ord("n"))
        for key_at, key_end, at, end in rows[possible].tolist():
            key = msgspec.json.decode(strict(text, key_at, key_end))
            if key in keys:
                found.append((key, at, end))
    return found


def _shown(text: np.ndarray, at: int) -> str:
    """The few bytes at an offset, as they are quoted in a message."""
    return repr(text[at : at + _SHOWN].tobytes().decode("utf-8", "replace"))


def may_repeat(content: Buffer, keys: Collection[str], ends: Sequence[msgspec.Raw]) -> bool:
    """Whether the text may contain a key twice, according to a quick search; :func:`values` decides.

    ``ends`` are the first and the last value of the longest list that was parsed; the bytes between them are not searched.
    """
    text = as_text(content)
    offsets = [_address(raw) - _address(text) for raw in ends]
    valid = offsets and 0 <= min(offsets) <= max(offsets) <= len(text)
    inside = (min(offsets), max(offsets)) if valid else (len(text), len(text))
    outside = [text[: inside[0]].tobytes(), text[inside[1] :].tobytes()]
    return any(sum(part.count(b'"%b"' % key.encode()) for part in outside) > 1 for key in keys)


def _address(values: msgspec.Raw | np.ndarray) -> int:
    return np.frombuffer(values, np.uint8).ctypes.data


def elements(text: np.ndarray, at: int) -> Iterator[np.ndarray]:
    """The begin and end of each element of the list at ``at``, as (n, 2) int64 arrays of offsets; n is 0 if it is empty."""
    return (rows[:, 2:] for rows in _members(text, at))


def strict(text: np.ndarray, at: int, end: int) -> memoryview:
    """A copy of the JSON value between two offsets that strict parsers accept, see :func:`json_kernels.rewrite`."""
    out = np.empty(json_kernels.rewrite(text, at, end, np.empty(0, np.uint8)), np.uint8)
    json_kernels.rewrite(text, at, end, out)
    return out.data


def _members(text: np.ndarray, at: int) -> Iterator[np.ndarray]:
    """The members of the list or object that opens at ``at``, as (n, 4) arrays of offsets; yields at least once."""
    while at >= 0:
        rows = np.empty((_ROWS, 4), np.int64)
        count, at = json_kernels.members(text, at, rows)
        yield rows[:count]
