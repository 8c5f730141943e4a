"""A JSON object of lists read as places in its bytes, where a typed parser refuses all of it for one fault.

Nothing is built of what is read: the memory is that of a few thousand places. Takes what Python's json takes (NaN, Infinity,
bytes that are no UTF-8), and two things that end that one: numbers of any length, and any depth.
"""

from collections.abc import Collection, Iterator, Sequence

import msgspec
import numpy as np

from cocolvis.sources import json_kernels
from cocolvis.text import Buffer

_ROWS = 1024
"""Members whose places are found in one go."""

_LONGEST_KEY = 256
"""Bytes of a key in its quotes: one that is looked for is shorter, however it is escaped."""


def as_text(content: Buffer) -> np.ndarray:
    """The bytes as the read-only (n,) uint8 array that the functions here take; nothing is copied."""
    text = np.frombuffer(content, np.uint8)
    text.flags.writeable = False
    return text


def lists(text: np.ndarray, keys: Collection[str]) -> list[tuple[str, int]]:
    """The top-level lists of a JSON object under one of the ``keys``, with the place of each; a key may come several times.

    A ValueError where the text is no JSON object, has more behind it, or breaks off.
    """
    start = json_kernels.blank(text, 0)
    if text[start : start + 1].tobytes() != b"{":
        raise ValueError("expected one JSON object")
    end = json_kernels.skip(text, start)
    if end < 0:
        raise ValueError("it breaks off" if ~end == len(text) else f"what stands at byte {~end} is not expected there")
    if json_kernels.blank(text, end) < len(text):
        raise ValueError(f"there is more behind the object, which ends at byte {end}")
    found = []
    for rows in _members(text, start):
        possible = (rows[:, 1] - rows[:, 0] <= _LONGEST_KEY) & (text[rows[:, 2]] == ord("["))
        for key_at, key_end, at, _ in rows[possible].tolist():
            key = msgspec.json.decode(strict(text, key_at, key_end))
            if key in keys:
                found.append((key, at))
    return found


def may_repeat(content: Buffer | memoryview, keys: Collection[str], last: Sequence[msgspec.Raw]) -> bool:
    """Whether the text may hold a key twice, as far as looking for it tells; :func:`lists` knows.

    ``last`` are the first and the last value of the longest list that was parsed: between them nothing is looked at.
    """
    text = as_text(content)
    places = [_address(raw) - _address(text) for raw in last]
    inside = (min(places), max(places)) if places and 0 <= min(places) <= max(places) <= len(text) else (len(text), len(text))
    outside = [text[: inside[0]].tobytes(), text[inside[1] :].tobytes()]
    return any(sum(part.count(b'"%b"' % key.encode()) for part in outside) > 1 for key in keys)


def _address(values: msgspec.Raw | np.ndarray) -> int:
    return np.frombuffer(values, np.uint8).ctypes.data


def elements(text: np.ndarray, at: int) -> Iterator[np.ndarray]:
    """Where the elements of the list at a place begin and end, (n, 2) int64, some at a time; of an empty list an n of 0."""
    return (rows[:, 2:] for rows in _members(text, at))


def strict(text: np.ndarray, at: int, end: int) -> memoryview:
    """A copy of the JSON value between two places as strict parsers take it, see :func:`json_kernels.rewrite`."""
    out = np.empty(json_kernels.rewrite(text, at, end, np.empty(0, np.uint8)), np.uint8)
    json_kernels.rewrite(text, at, end, out)
    return out.data


def _members(text: np.ndarray, at: int) -> Iterator[np.ndarray]:
    """The members of the list or object that opens at ``at``, (n, 4) places each time; at least once."""
    while at >= 0:
        rows = np.empty((_ROWS, 4), np.int64)
        count, at = json_kernels.members(text, at, rows)
        yield rows[:count]
