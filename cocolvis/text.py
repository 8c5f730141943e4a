"""Text as people's programs save it: byte order marks and line ends do no harm, and what is not UTF-8 is named."""

import codecs
import unicodedata

from cocolvis.archives import Buffer
from cocolvis.errors import DataError

_MARK = codecs.BOM_UTF8
_OTHER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_LOOKED_AT = 2**12
"""Bytes at the start of a file that decide whether it is UTF-16."""


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
