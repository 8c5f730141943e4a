"""Single JSON values in a file: reads whole numbers in any notation, and describes values in messages."""

from decimal import Decimal, InvalidOperation

import msgspec

REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""The exceptions that msgspec raises for text that it does not accept."""

_EXACT = 2**53
"""Below this, a float is exactly the whole number that was written."""

_LONGEST_NUMBER, _LONGEST_SHOWN = 64, 40
"""The most characters of a decimal fraction that is parsed, and of a text that is quoted in a message."""


def whole(value: int | float) -> int:
    """A parsed number as an int, such as 139 for 139.0; raises ValueError if it has a fraction or is too large for a float."""
    if isinstance(value, int):
        return value
    if not value.is_integer() or abs(value) >= _EXACT:
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def whole_number(raw: msgspec.Raw | bytes) -> int | None:
    """The whole number in ``raw``, also one written as 139.0 or 1e2 if it fits in 64 bits; None for any other value."""
    try:
        return msgspec.json.decode(raw, type=int)
    except REFUSED:
        value = _decimal(raw)
    if value is None or abs(value) >= 2**63 or value != value.to_integral_value():
        return None
    return int(value)


def described(raw: msgspec.Raw | bytes | memoryview) -> str:
    """A short description of a value on one line: the text 'abc', a list, null, 3.5."""
    start = bytes(memoryview(raw)[: 8 * _LONGEST_SHOWN])
    if start.startswith(b'"'):
        return f"the text {_short(_text(raw, start))}"
    if start[:1] in (b"[", b"{"):
        return "a list" if start.startswith(b"[") else "an object"
    if start in (b"null", b"true", b"false"):
        return start.decode()
    if len(raw) > _LONGEST_SHOWN:
        return f"a number of {len(raw):,} characters"
    try:
        return start.decode("ascii") if abs(float(start)) < float("inf") else "not a finite number"
    except ValueError:
        return "not JSON"


def refusal(name: str, raw: msgspec.Raw | bytes, expected: str) -> ValueError:
    """The exception for a field ``name`` that is missing, or is not what is ``expected``."""
    if not len(raw):
        return ValueError(f"it has no {name}")
    description, value = described(raw), _decimal(raw)
    if value is not None and "number" in expected and value == value.to_integral_value():
        description += ", which is beyond 64 bits"
    if whole_number(_unquoted(raw)) is not None and "number" in expected:
        expected += " without quotes"
    return ValueError(f"its {name} is {description}; expected {expected}")


def _decimal(raw: msgspec.Raw | bytes) -> Decimal | None:
    """The finite number in ``raw``, exactly; None if it is not a number or has very many digits."""
    text = bytes(raw) if len(raw) <= _LONGEST_NUMBER else b""
    if text[:1] not in b"-0123456789" or not text:
        return None
    try:
        value = Decimal(text.decode("ascii"))
    except (InvalidOperation, UnicodeDecodeError):
        return None
    return value if abs(value.adjusted()) < 308 else None


def _unquoted(raw: msgspec.Raw | bytes) -> bytes:
    """The bytes between quotes; empty if there are no quotes."""
    text = bytes(raw) if len(raw) <= _LONGEST_NUMBER else b""
    return text[1:-1].strip() if text.startswith(b'"') else b""


def _text(raw: msgspec.Raw | bytes | memoryview, start: bytes) -> str:
    try:
        return msgspec.json.decode(raw, type=str) if len(raw) == len(start) else start[1:].decode("utf-8", "replace")
    except REFUSED:
        return start[1:].decode("utf-8", "replace")


def _short(text: str) -> str:
    return repr(text) if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]!r}..."
