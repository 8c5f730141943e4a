"""Text as people's programs save it, whose byte order marks and line ends do no harm, and text that a terminal may be given."""

import codecs
import mmap
import unicodedata

from cocolvis.errors import DataError

Buffer = bytes | bytearray | mmap.mmap
"""The bytes of a file, read or mapped."""

_MARK = codecs.BOM_UTF8
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_LOOKED_AT = 2**12
"""Bytes at the start of a file that decide whether it is UTF-16."""

_UNITS = ("bytes", "kB", "MB", "GB", "TB")

_SPACES = "\u00a0\u3000"
"""Spaces of other widths, which Python does not count as printable and names do hold."""


def decoded(content: bytes, where: object, errors: str = "strict") -> str:
    """The text of ``content``, without a byte order mark and with "\\n" at the end of every line.

    A DataError that begins with ``where`` when it is UTF-16 or UTF-32, holds a byte 0, or is not UTF-8, with line and byte.
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
        raise DataError(f"{where}: line {number} holds a byte 0; expected text in UTF-8")
    return text


def without_mark(content: Buffer) -> Buffer | memoryview:
    """``content``, or a view of it behind the byte order mark; nothing is copied."""
    return memoryview(content)[len(_MARK) :] if content[: len(_MARK)] == _MARK else content


def refuse_other_encodings(content: Buffer, where: object) -> None:
    """Raise a DataError that begins with ``where`` when ``content`` is UTF-16 or UTF-32, as far as its first 4 KiB tell."""
    head = bytes(content[:_LOOKED_AT])
    marked = next((name for mark, name in _OTHER_MARKS.items() if head.startswith(mark)), None)
    name = marked or ("UTF-16" if _is_utf16(head) else None)
    if name:
        raise DataError(f"{where}: is {name}; save it as UTF-8")


def plain(text: str) -> str:
    """The text with an escape such as \\x1b or \\u202e in the place of what a terminal obeys or does not show.

    That is what is neither printable nor one of some spaces: control characters, line ends, marks of direction and of no width,
    halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in _SPACES else repr(c)[1:-1] for c in text)


def human_size(count: float) -> str:
    """A number of bytes as people write it, with three digits: "999 bytes", "1.23 kB", "64.0 MB", "19.3 GB", "1,230 TB"."""
    if count < 1000:
        return f"{count:.0f} byte{'' if round(count) == 1 else 's'}"
    power = next((n for n in (1, 2, 3) if count / 1000**n < 999.5), 4)
    count /= 1000**power
    return f"{count:,.{2 if count < 9.995 else 1 if count < 99.95 else 0}f} {_UNITS[power]}"


def composed(name: str) -> str:
    """The form in which names are compared: macOS writes é as e with an accent behind it, other systems as one character."""
    return unicodedata.normalize("NFC", name)


def _is_utf16(head: bytes) -> bool:
    """Whether bytes without a mark are UTF-16: half of every character, or of every line end, is 0, and all can be shown."""
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


LINE = 300
"""Characters of the longest message."""


def line(error: Exception | str) -> str:
    """The first line of a message, without control characters, and not longer than a reader endures."""
    text = str(error)
    if 0 < len(text) <= LINE and text.isprintable():
        return text
    return printable((next(iter(text.splitlines()), "") or type(error).__name__)[:LINE])


def printable(text: str) -> str:
    """A text without control characters and line breaks."""
    return "".join(c if c.isprintable() else "?" for c in text)
