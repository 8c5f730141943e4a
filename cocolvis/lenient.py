"""A JSON object of lists read element by element, where a typed parser refuses all of it for one fault.

Takes what Python's json takes (NaN, Infinity), and two things that end it: numbers of any length, and any depth.
"""

import json
import re
from collections.abc import Generator, Iterator
from typing import Any

KEY = object()
"""Yielded by :func:`records` for a key itself."""

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode
_decode_long = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 4300 else float(digits)).raw_decode

_DEPTH = 100
"""What is nested deeper is read as null where Python's parser gives up."""

_MARK = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def records(text: str) -> Iterator[tuple[str, Any]]:
    """(key, element) for each element of each top-level list of a JSON object; (key, KEY) once for every key.

    Takes what Python's json takes (NaN, Infinity). A ValueError where the text is no JSON object, or breaks off.
    """
    mark, at = _token(text, 0)
    if mark != "{":
        raise ValueError("expected one JSON object")
    if _token(text, at + 1)[0] == "}":
        return
    while mark != "}":
        key, at = _value(text, at + 1)
        mark, at = _token(text, at)
        if mark != ":" or not isinstance(key, str):
            raise ValueError(f"expected a key and ':' at character {at}")
        mark, start = _token(text, at + 1)
        if mark == "[":
            yield key, KEY
            at = yield from _elements(text, key, start)
        else:
            _, at = _value(text, start)
        mark, at = _token(text, at)
        if mark not in (",", "}") or not mark:
            raise ValueError(f"the object breaks off at character {at}")
    if _token(text, at + 1)[0]:
        raise ValueError(f"more text behind the object, at character {at + 1}")


def _elements(text: str, key: str, at: int) -> Generator[tuple[str, Any], None, int]:
    """(key, element) for each element of the list that opens at ``at``; returns the place behind it."""
    mark, end = _token(text, at + 1)
    while mark != "]":
        element, at = _value(text, at + 1)
        yield key, element
        mark, at = _token(text, at)
        end = at
        if mark not in (",", "]") or not mark:
            raise ValueError(f"the list {key!r} breaks off at character {at}")
    return end + 1


def _token(text: str, at: int) -> tuple[str, int]:
    """The next character that is no space, "" at the end, and its place."""
    at = _SPACE.match(text, at).end()
    return text[at : at + 1], at


def _value(text: str, at: int) -> tuple[Any, int]:
    """The JSON value at ``at``, and the place behind it."""
    at = _token(text, at)[1]
    try:
        return _parsed(text, at)
    except RecursionError:
        return _shallow(text, at)


def _parsed(text: str, at: int) -> tuple[Any, int]:
    try:
        return _decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of more digits than Python converts
        return _decode_long(text, at)


def _shallow(text: str, at: int) -> tuple[Any, int]:
    """The list or object at ``at``, with null for what is nested deeper than ``_DEPTH``, and the place behind it."""
    depth, kept, start = 0, "", at
    for mark in _MARK.finditer(text, at):
        if mark[0] in "[{":
            depth += 1
            if depth == _DEPTH:
                kept += text[start : mark.start()] + "null"
        elif mark[0] in "]}":
            if depth == _DEPTH:
                start = mark.end()
            depth -= 1
            if depth == 0:
                return _parsed(kept + text[start : mark.end()], 0)[0], mark.end()
    raise ValueError(f"nested too deeply at character {at}, and breaks off")
