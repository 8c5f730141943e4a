"""Decodes text files (byte order marks, line ends, encodings), makes text safe to print, and words parts of messages."""

import codecs
import difflib
import mmap
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice

from cocolvis.errors import DataError

Buffer = bytes | bytearray | mmap.mmap | memoryview
"""The bytes of a file, read or memory-mapped."""

LINE = 300
"""The most characters that :func:`one_line` returns."""

_MARK = codecs.BOM_UTF8
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_HEAD = 2**12
"""How many bytes at the start of a file are examined to detect UTF-16."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB")

_SPACES = "\u00a0\u3000"
"""Spaces that occur in names although Python does not count them as printable: no-break and ideographic."""


def decoded(content: bytes, where: object, errors: str = "strict") -> str:
    """The text of ``content``, without a byte order mark and with "\\n" at the end of every line.

    Raises DataError, which begins with ``where``, if it is UTF-16 or UTF-32, contains a NUL, or is not UTF-8; for the latter
    two the message names the line.
    """
    refuse_other_encodings(content, where)
    try:
        text = str(without_mark(content), "utf-8", errors)
    except UnicodeDecodeError as error:
        lines = _with_plain_ends(error.object[: error.start].decode("utf-8")).split("\n")
        at = f"line {len(lines)}, byte {len(lines[-1].encode()) + 1}"
        raise DataError(f"{where}: {at}: 0x{error.object[error.start]:02x} is not UTF-8; save it as UTF-8") from None
    text = _with_plain_ends(text)
    if "\0" in text:
        number = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{where}: line {number} contains a NUL; expected text in UTF-8")
    return text


def without_mark(content: Buffer) -> Buffer:
    """``content`` itself, or a view of it after its byte order mark; nothing is copied."""
    return memoryview(content)[len(_MARK) :] if content[: len(_MARK)] == _MARK else content


def refuse_other_encodings(content: Buffer, where: object) -> None:
    """Raise DataError, which begins with ``where``, if the first 4 KiB of ``content`` look like UTF-16 or UTF-32."""
    head = bytes(content[:_HEAD])
    marked = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), None)
    name = marked or ("UTF-16" if _is_utf16(head) else None)
    if name:
        raise DataError(f"{where}: is {name}; save it as UTF-8")


def _is_utf16(head: bytes) -> bool:
    """Whether bytes without a mark are UTF-16: half of most characters, or of every line end, is 0, and all is printable."""
    high_first, low_first = head[0::2].count(0), head[1::2].count(0)
    if not high_first and not low_first:
        return False
    name, line_end = ("utf-16-be", b"\0\n") if high_first > low_first else ("utf-16-le", b"\n\0")
    mostly_latin = 4 * max(high_first, low_first) > len(head)
    if not mostly_latin and not 0 < head.count(b"\n") == head.count(line_end):
        return False
    try:
        text = codecs.getincrementaldecoder(name)().decode(head)
    except UnicodeDecodeError:
        return False
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)


def _with_plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def nfc(name: str) -> str:
    """``name`` in Unicode's composed form, for comparing names: macOS writes é as e and an accent, other systems as one."""
    return unicodedata.normalize("NFC", name)


def escaped(text: str) -> str:
    """``text`` with unprintable characters as escapes such as \\x1b or \\u202e, so that it cannot control a terminal.

    That covers control characters, line ends, direction marks, zero-width characters and lone surrogates.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else repr(c)[1:-1] for c in text)


def replace_unprintable(text: str) -> str:
    """``text`` with "?" for every unprintable character, line ends included: the length stays the same."""
    return "".join(c if c.isprintable() else "?" for c in text)


def counted(count: int, what: str) -> str:
    """A number of things, such as "1 image" or "2,000 images"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def one_line(error: Exception | str) -> str:
    """The first line of a message that is not blank, printable and at most ``LINE`` characters long; else its type's name."""
    text = str(error)
    if 0 < len(text) <= LINE and text.isprintable():
        return text
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return replace_unprintable(first[:LINE])


def first_few(items: Iterable[object], most: int) -> str:
    """The first ``most`` items, separated by commas, and "..." if there are more: "a, b, ..."."""
    head = [str(item) for item in islice(items, most + 1)]
    return ", ".join(head[:most] + ["..."] * (len(head) > most))


def did_you_mean(name: str, known: Iterable[str], otherwise: Sequence[str] = ()) -> str:
    """The end of a message about an unknown ``name``: "; did you mean a, b?", or nothing.

    It offers up to three of the ``known`` names that resemble it, or else the names ``otherwise``.
    """
    near = difflib.get_close_matches(name, [*known]) or otherwise
    return f"; did you mean {', '.join(near)}?" if near else ""


def human_size(count: float) -> str:
    """A number of bytes with three significant digits: "999 bytes", "1.23 kB", "64.0 MB", "19.3 GB", "1,230 TB"."""
    if count < 1000:
        return f"{count:.0f} byte{'' if round(count) == 1 else 's'}"
    power = next((n for n in (1, 2, 3) if count / 1000**n < 999.5), 4)
    count /= 1000**power
    return f"{count:,.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {_UNITS[power]}"
