"""The compiled loops of the lenient JSON reader: they find the end of a value and its members, and rewrite it as strict JSON.

``text`` is a read-only (n,) uint8 array of bytes, ``at`` an offset in it. Invalid JSON is reported as ``~offset``.
"""

import numpy as np

from cocolvis.compiled import entry, inner

_QUOTE, _BACKSLASH, _COMMA, _COLON, _MINUS = 0x22, 0x5C, 0x2C, 0x3A, 0x2D
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = 0x5B, 0x5D, 0x7B, 0x7D
_U, _N, _I = 0x75, 0x4E, 0x49
_ESCAPED = tuple(b'"\\/bfnrtu')
_NULL, _NO_NUMBER, _REPLACEMENT, _REPLACEMENT_ESCAPED = (
    np.frombuffer(symbols, np.uint8) for symbols in (b"null", b"1e999", "\ufffd".encode(), b"\\ufffd")
)
_WORDS = b"true", b"false", b"null", b"NaN", b"Infinity", b"-Infinity"
_LITERALS = np.array([list(word.ljust(9)) for word in _WORDS], np.uint8)

DEPTH = 100
"""Values nested this deep are rewritten as null, because strict parsers recurse."""


@entry()
def skip(text, at):
    """The offset after the JSON value at or after ``at``; its grammar is checked completely, at any depth.

    NaN, Infinity and -Infinity count as numbers, invalid UTF-8 as characters.
    """
    closing = np.empty(64, np.uint8)  # the closing bracket of each open list or object
    depth = 0
    while True:
        at = after_blank(text, at)
        if at == len(text):
            return ~at
        symbol = text[at]
        opened = _opens(symbol)
        if opened:
            if depth == len(closing):
                closing = np.concatenate((closing, np.empty(depth, np.uint8)))
            closing[depth] = symbol + 2
            depth += 1
            at += 1
        else:
            at = _scalar(text, at)
            if at < 0:
                return at
        while depth > 0:  # go to the next value, past closing brackets and a comma
            at = after_blank(text, at)
            if at == len(text):
                return ~at
            if text[at] == closing[depth - 1]:
                depth, at, opened = depth - 1, at + 1, False
                continue
            if not opened:
                if text[at] != _COMMA:
                    return ~at
                at += 1
            if closing[depth - 1] == _CLOSE_OBJECT:
                at = _key(text, at)
                if at < 0:
                    return at
            break
        if depth == 0:
            return at


@entry()
def blank(text, at):
    """The offset of the first byte at or after ``at`` that is not whitespace; the length of the text if there is none."""
    return after_blank(text, at)


@entry()
def members(text, at, rows):
    """Find the members of a list or object that :func:`skip` has accepted, as many as fit into ``rows``, (n, 4) int64.

    ``at`` is its opening bracket, or the offset that the last call returned. A row holds the begin and end of the key and of
    the value; the keys of a list are empty. Returns the number of rows filled, and the offset of the comma before the next
    member, or -1 after the last.
    """
    for row in range(len(rows)):
        at = after_blank(text, at + 1)
        if text[at] == _CLOSE_LIST or text[at] == _CLOSE_OBJECT:
            return row, -1
        value = _key(text, at)  # an element of a list is not followed by a colon
        rows[row, 0] = at
        rows[row, 1] = at if value < 0 else _string(text, at)
        rows[row, 2] = at if value < 0 else after_blank(text, value)
        rows[row, 3] = skip(text, rows[row, 2])
        at = after_blank(text, rows[row, 3])
        if text[at] != _COMMA:
            return row + 1, -1
    return len(rows), at


@entry()
def rewrite(text, at, end, out):
    """Write the value between two offsets to ``out`` as strict JSON; returns its length, even if ``out`` is shorter.

    NaN and infinities become 1e999, which no field accepts; values nested ``DEPTH`` deep become null; invalid UTF-8 and lone
    surrogates become U+FFFD.
    """
    size = depth = 0
    while at < end:
        symbol = text[at]
        if symbol == _QUOTE:
            at, size = _rewrite_string(text, at, out, size)
        elif symbol in (_N, _I) or (symbol == _MINUS and text[at + 1] == _I):
            at, size = _scalar(text, at), _put(_NO_NUMBER, out, size)
        elif _opens(symbol) and depth == DEPTH - 1:
            at, size = skip(text, at), _put(_NULL, out, size)
        else:
            if _opens(symbol):
                depth += 1
            elif symbol in (_CLOSE_LIST, _CLOSE_OBJECT):
                depth -= 1
            size = _put(text[at : at + 1], out, size)
            at += 1
    return size


@inner()
def _rewrite_string(text, at, out, size):
    size = _put(text[at : at + 1], out, size)
    at += 1
    while text[at] != _QUOTE:
        length, sound = 1, True
        if text[at] == _BACKSLASH:
            length = 6 if text[at + 1] == _U else 2
            if length == 6 and 0xD800 <= _hex(text, at + 2) < 0xE000:
                length, sound = _surrogates(text, at)
            size = _put(text[at : at + length], out, size) if sound else _put(_REPLACEMENT_ESCAPED, out, size)
        else:
            if text[at] >= 0x80:
                length = _utf8(text, at)
            size = _put(text[at : at + length], out, size) if length else _put(_REPLACEMENT, out, size)
            length = max(1, length)
        at += length
    return at + 1, _put(text[at : at + 1], out, size)


@inner()
def _put(source, out, size):
    """Append bytes to ``out`` as far as they fit; returns the new size."""
    for offset in range(len(source)):
        if size + offset < len(out):
            out[size + offset] = source[offset]
    return size + len(source)


@inner()
def after_blank(text, at):
    """As :func:`blank`, for compiled functions."""
    while at < len(text) and (text[at] == 0x20 or text[at] == 0x0A or text[at] == 0x0D or text[at] == 0x09):
        at += 1
    return at


@inner()
def _key(text, at):
    """The offset after a key and its colon."""
    at = after_blank(text, at)
    if at == len(text) or text[at] != _QUOTE:
        return ~at
    at = _string(text, at)
    if at < 0:
        return at
    at = after_blank(text, at)
    return at + 1 if at < len(text) and text[at] == _COLON else ~at


@inner()
def _scalar(text, at):
    """The offset after a string, number or literal."""
    if text[at] == _QUOTE:
        return _string(text, at)
    for literal in range(len(_LITERALS)):
        length = 0
        for symbol in _LITERALS[literal]:
            if symbol == 0x20:
                break
            if at + length == len(text) or text[at + length] != symbol:
                length = 0
                break
            length += 1
        if length:
            return at + length
    return _number(text, at)


@inner()
def _string(text, at):
    at += 1
    while at < len(text):
        symbol = text[at]
        if symbol == _QUOTE:
            return at + 1
        if symbol < 0x20:
            return ~at
        if symbol == _BACKSLASH:
            at += 1
            if at == len(text) or text[at] not in _ESCAPED or (text[at] == _U and _hex(text, at + 1) < 0):
                return ~at
        at += 1
    return ~at


@inner()
def _number(text, at):
    if text[at] == _MINUS:
        at += 1
    first, at = at, _digits(text, at)
    if at == first or (text[first] == 0x30 and at > first + 1):
        return ~first
    if at < len(text) and text[at] == 0x2E:
        first, at = at + 1, _digits(text, at + 1)
        if at == first:
            return ~at
    if at < len(text) and (text[at] == 0x65 or text[at] == 0x45):
        at += 1
        if at < len(text) and (text[at] == 0x2B or text[at] == _MINUS):
            at += 1
        first, at = at, _digits(text, at)
        if at == first:
            return ~at
    return at


@inner()
def _digits(text, at):
    while at < len(text) and 0x30 <= text[at] <= 0x39:
        at += 1
    return at


@inner()
def _opens(symbol):
    return symbol in (_OPEN_LIST, _OPEN_OBJECT)


@inner()
def _hex(text, at):
    """The value of four hexadecimal digits; -1 if they are not hexadecimal."""
    if at + 4 > len(text):
        return -1
    number = 0
    for offset in range(4):
        digit = int(text[at + offset])
        if 0x30 <= digit <= 0x39:
            digit -= 0x30
        elif 0x41 <= digit & ~0x20 <= 0x46:
            digit = (digit & ~0x20) - 0x37
        else:
            return -1
        number = 16 * number + digit
    return number


@inner()
def _surrogates(text, at):
    """The number of bytes of the escaped surrogate or pair at an offset, and whether it is a pair."""
    paired = _hex(text, at + 2) < 0xDC00 and text[at + 6] == _BACKSLASH and text[at + 7] == _U
    if paired and 0xDC00 <= _hex(text, at + 8) < 0xE000:
        return 12, True
    return 6, False


@inner()
def _utf8(text, at):
    """The number of bytes of the non-ASCII character at an offset; 0 if it is not UTF-8."""
    first = text[at]
    length = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4 if 0xF0 <= first < 0xF5 else 0
    if length == 0 or at + length > len(text):
        return 0
    for offset in range(1, length):
        if text[at + offset] & 0xC0 != 0x80:
            return 0
    second = text[at + 1]
    overlong = (first == 0xE0 and second < 0xA0) or (first == 0xF0 and second < 0x90)
    beyond = (first == 0xED and second >= 0xA0) or (first == 0xF4 and second >= 0x90)
    return 0 if overlong or beyond else length
