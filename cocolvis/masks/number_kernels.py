"""The compiled loop that reads the JSON lists of numbers which polygons are.

Most numbers, such as 504.83, are read eight characters at a time, without a loop over their digits. A table of states, which is
the grammar of JSON, reads all others, or refuses them.
"""

import numpy as np

from cocolvis.compiled import inner, trailing_zeros, word_at

_OPEN_LIST, _CLOSE_LIST, _COMMA, _SPACE, _POINT_BYTE, _ZERO_BYTE = b"[], .0"

_MOST_DIGITS = 18
"""Digits that an int64 holds, whatever they are."""

_POWERS = 10.0 ** np.arange(_MOST_DIGITS + 1)
"""Powers of ten, all of which float64 holds exactly: 1e22 is the largest."""

_ZERO, _DIGIT, _MINUS, _POINT, _BLANK, _NEXT, _END, _OTHER = range(8)
"""What a byte can be in a list of numbers. From _NEXT on, it ends a number."""

_BEFORE, _SIGNED, _LEADING_ZERO, _WHOLE, _POINTED, _DECIMALS, _AFTER, _CLOSED, _REFUSED = range(9)
"""How far a list of numbers has been read: before a number, after its sign, and so on; _CLOSED and _REFUSED end it."""

_KINDS = np.full(256, _OTHER, np.uint8)
for _kind, _bytes in {
    _ZERO: b"0",
    _DIGIT: b"123456789",
    _MINUS: b"-",
    _POINT: b".",
    _BLANK: b" \t\n\r",
    _NEXT: b",",
    _END: b"]",
}.items():
    _KINDS[list(_bytes)] = _kind

_ENDED = {_NEXT: _BEFORE, _END: _CLOSED, _BLANK: _AFTER}
_STATES = np.full((9, 8), _REFUSED, np.uint8)
"""The state after a byte, by the state before it and the kind of the byte: the grammar of JSON without exponents."""
for _state, _rules in {
    _BEFORE: {_BLANK: _BEFORE, _MINUS: _SIGNED, _ZERO: _LEADING_ZERO, _DIGIT: _WHOLE},
    _SIGNED: {_ZERO: _LEADING_ZERO, _DIGIT: _WHOLE},
    _LEADING_ZERO: {_POINT: _POINTED, **_ENDED},
    _WHOLE: {_ZERO: _WHOLE, _DIGIT: _WHOLE, _POINT: _POINTED, **_ENDED},
    _POINTED: {_ZERO: _DECIMALS, _DIGIT: _DECIMALS},
    _DECIMALS: {_ZERO: _DECIMALS, _DIGIT: _DECIMALS, **_ENDED},
    _AFTER: _ENDED,
}.items():
    _STATES[_state, list(_rules)] = list(_rules.values())

_BYTE, _WORD, _NONE, _ONE = (np.uint64(number) for number in (8, 64, 0, 1))
"""Bits of a byte and of a word of eight, and two small numbers, all of one type."""

_EIGHT_ZEROS, _LOW_BITS, _ABOVE_NINE, _HIGH_BITS = (np.uint64(0x0101010101010101 * byte) for byte in (0x30, 0x7F, 0x76, 0x80))
"""Words of eight equal bytes. A byte without its high bit plus 0x76 has the high bit if it is more than 9."""

_FOURTH_BYTES = np.uint64(0x000000FF000000FF)
_HUNDREDS, _UNITS = np.uint64(100 + (1_000_000 << 32)), np.uint64(1 + (10_000 << 32))
"""What the pairs of eight digits are worth: the first and third, and the second and fourth."""


@inner()
def append_numbers(text, at, numbers, count):
    """(the new count, the offset after it) of a JSON list at an offset, whose numbers are appended; the offset may be -1.

    It is -1 unless all numbers are decimals without an exponent, of at most 18 digits which, as a whole number, are at most
    2**53. Both this number and the power of ten that divides it are exact in float64, so the quotient is rounded once: it is
    the float64 nearest to the decimal, which is what any correct parser returns.
    """
    if at >= len(text) or text[at] != _OPEN_LIST:
        return count, -1
    at, state, fits, closed = at + 1, np.uint8(_BEFORE), True, False
    while state < _CLOSED and at < len(text):
        length = 0
        if at < len(text) - 8:
            at += text[at] == _SPACE
            numbers[count], length, closed = _short(word_at(text, at))
        if length:
            state = np.uint8(_CLOSED if closed else _BEFORE)
            at += length + 1
        else:
            numbers[count], state, at, exact = _any(text, at)
            fits &= exact
        count += 1
    return count, (at if state == _CLOSED and fits else -1)


@inner()
def _short(word):
    """(the number that the first bytes of a word spell, how many bytes it has, whether the list ends after it).

    It has 0 bytes unless a comma or the end of the list follows in the same word, and it is written as 12 or 12.5, without a
    sign.
    """
    values = word ^ _EIGHT_ZEROS  # of the digits; no other byte becomes 0 to 9
    others = (((values & _LOW_BITS) + _ABOVE_NINE) | values) & _HIGH_BITS  # a bit for each byte that is no digit
    whole = _first_bits(others)  # those of the digits before the first other byte
    pointed = _byte(word, whole) == _POINT_BYTE
    if pointed:
        end = _first_bits(others & (others - _ONE))
        below = (_ONE << whole) - _ONE
        digits, count, decimals = (values & below) | (values >> _BYTE & ~below), end - _BYTE, end - whole - _BYTE
    else:
        end, digits, count, decimals = whole, values, whole, _NONE
    closed = _byte(word, end) == _CLOSE_LIST
    sound = (whole > _NONE) & (~pointed | (end > whole + _BYTE)) & (closed | (_byte(word, end) == _COMMA))
    sound &= (values & np.uint64(0xFF) != _NONE) | (whole == _BYTE)  # no 0 before other digits
    digits <<= (_WORD - count) & (_WORD - _ONE)  # eight of them, with zeros before the first
    pairs = digits * np.uint64(10) + (digits >> _BYTE)
    number = ((pairs & _FOURTH_BYTES) * _HUNDREDS + (pairs >> np.uint64(16) & _FOURTH_BYTES) * _UNITS) >> np.uint64(32)
    power = decimals // _BYTE & np.uint64(7)  # in range if not sound, too
    return np.float64(np.int64(number)) / _POWERS[power], np.int64(end // _BYTE) if sound else 0, closed


@inner()
def _first_bits(bytes_found):
    """How many bits come before the byte with the lowest bit that is set; 0 if none is."""
    return trailing_zeros(bytes_found) & (_WORD - _BYTE)


@inner()
def _byte(word, bits):
    """The byte after these bits of a word."""
    return (word >> bits) & np.uint64(0xFF)


@inner()
def _any(text, at):
    """(number, state, the offset after the byte that ends it, whether it is exact) of the next number, by the table."""
    state, value, digits, decimals, negative, kind = np.uint8(_BEFORE), 0, 0, 0, False, np.uint8(_BLANK)
    while kind < _NEXT and at < len(text):
        kind = _KINDS[text[at]]
        state = _STATES[state, kind]
        value = 10 * value + (text[at] - _ZERO_BYTE) if kind <= _DIGIT else value
        digits += kind <= _DIGIT
        decimals += state == _DECIMALS
        negative |= kind == _MINUS
        at += 1
    number = value / _POWERS[min(decimals, _MOST_DIGITS)]
    return -number if negative else number, state, at, digits <= _MOST_DIGITS and value <= 2**53
