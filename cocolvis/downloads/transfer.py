"""One file over HTTP into a part beside its final name: resumed where it ended, never spliced from two versions.

No more is written than was announced, and a part that is good is not given up for an answer that turns out to be bad.
"""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cocolvis.disk.files import read_json, write_json
from cocolvis.errors import DataError

WEB = re.compile(r"https?://[!-~]+")
"""Addresses that are followed, also after a redirect."""

_BLOCK = 1 << 18
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0

Show = Callable[[int, int | None], None]
"""Called with the bytes of the file that are there, and its size where that is known."""

Note = Callable[[str], None]
"""Called with a line whenever something takes another turn."""


@dataclass(frozen=True)
class Patience:
    """How often a file is tried without a new byte, the first wait between two tries (then doubled), and the silence borne."""

    attempts: int = 6
    backoff: float = 1.0
    timeout: float = 60.0


class Mark(msgspec.Struct):
    """What a part is a part of: written before its first byte, so that it is never continued with another file's bytes."""

    url: str
    bytes: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """What If-Range may name: the ETag unless it is weak, else the date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True)
class Part:
    """An address, the file it is fetched for, its published size where there is one, and the command that goes on with it.

    ``most`` are the bytes that are taken at most, whatever a server announces.
    """

    url: str
    target: Path
    published: int | None
    most: int
    command: str

    @property
    def path(self) -> Path:
        """Where the bytes lie until they are complete and checked."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def marked(self) -> Path:
        """Where the mark lies."""
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def have(self) -> int:
        """Bytes that are there, of whatever version."""
        return self.path.stat().st_size if self.path.exists() else 0

    def resumable(self) -> tuple[Mark | None, int]:
        """The mark, and the bytes to go on from: none of another address, none that If-Range cannot vouch for."""
        with suppress(DataError, msgspec.ValidationError):
            mark = msgspec.convert(read_json(self.marked), Mark)
            if mark.url == self.url:
                return mark, self.have if mark.validator or self.have == mark.bytes else 0
        return None, 0

    def begin(self, mark: Mark) -> None:
        """An empty part, then its mark: a crash between the two leaves nothing that could be continued wrongly."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        write_json(self.marked, msgspec.to_builtins(mark))

    @property
    def _aside(self) -> tuple[Path, Path]:
        """Where a good part and its mark lie while another answer is tried that need not be the file."""
        return tuple(self.target.with_name(f"{self.target.name}.kept{end}") for end in ("", ".json"))

    def set_aside(self) -> None:
        """Move the part away, which is good so far; :meth:`restore` brings it back, :meth:`forget` gives it up."""
        path, marked = self._aside
        shutil.copyfile(self.marked, marked)
        os.replace(self.path, path)

    def restore(self) -> bool:
        """Remove the part and its mark, and put back what was set aside; whether there was something."""
        self.path.unlink(missing_ok=True)
        self.marked.unlink(missing_ok=True)
        path, marked = self._aside
        there = path.exists() and marked.exists()
        if there:
            os.replace(marked, self.marked)
            os.replace(path, self.path)
        self.forget()
        return there

    def forget(self) -> None:
        """Remove what was set aside."""
        for path in self._aside:
            path.unlink(missing_ok=True)


class _Again(Exception):
    """An attempt failed in a way that another one may mend; ``whole`` where that should ask for the file from its beginning."""

    def __init__(self, message: str, whole: bool = False):
        super().__init__(message)
        self.whole = whole


def fetch(part: Part, show: Show, note: Note, patience: Patience) -> None:
    """Bring a part to its full size; only attempts that took it no further than any before count.

    A DataError where the server refuses for good, offers another file, or nothing new came; the part is kept.
    """
    furthest, failures, whole = part.resumable()[1], 0, False
    while True:
        try:
            return _attempt(part, show, patience.timeout, whole)
        except OSError as error:
            raise DataError(f"{part.path}: cannot be written: {error.strerror or error}; go on with {part.command}") from error
        except _Again as error:
            whole = error.whole
            failures = 0 if part.have > furthest else failures + 1
            furthest = max(furthest, part.have)
            if failures >= patience.attempts:
                kept = f"; {part.have:,} bytes are kept in {part.path}" if part.have else ""
                tried = f"{failures} attempts in a row brought nothing new"
                raise DataError(f"{part.url}: {error}; {tried}{kept}; go on with {part.command}") from None
            wait = min(patience.backoff * 2**failures, _LONGEST_WAIT)
            note(f"{part.target.name}: {error}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _attempt(part: Part, show: Show, timeout: float, whole: bool) -> None:
    """One request for what is missing, or for the ``whole`` file, and its body; returns when the part is whole."""
    mark, have = part.resumable()
    if mark and have == mark.bytes and not whole:
        return
    headers = {"User-Agent": "cocolvis", "Accept-Encoding": "identity"}
    if have and not whole:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.validator}
    with _open(part, headers, timeout) as response:
        if response.status == 200:
            total, first = response.length, _accepted(part, response)
            new = Mark(part.url, total, response.headers["ETag"], response.headers["Last-Modified"])
            _start_over(part, response, new, first, mark if have else None, show)
        elif not have or whole or (total := _continued(response, mark, have)) is None:
            fault = f"the server answers {response.status} with a range that does not fit"
            raise _Again(f"{fault}; asking for the whole file", whole=True)
        else:
            _refuse_coding(part, response)
            _continue(part, response, have, total, show)


def _start_over(part: Part, response: http.client.HTTPResponse, new: Mark, first: bytes, old: Mark | None, show: Show) -> None:
    """Take a file from its beginning, of which a block was read; a good part, whose mark is ``old``, comes back if it is bad.

    Where the announced size is the published one, the old part is removed at once: little can be wrong, and it may be large.
    """
    have = part.have
    if old and (new.bytes is None or part.published is None):
        part.set_aside()
    else:
        part.forget()
    part.begin(new)
    try:
        _copy(response, part, 0, new.bytes, show, first)
    except DataError:
        part.restore()
        raise
    except _Again:
        if old and part.have < have and new.validator in (None, old.validator):
            part.restore()
        else:
            part.forget()
        raise


def _continue(part: Part, response: http.client.HTTPResponse, have: int, total: int, show: Show) -> None:
    """Append what is missing to a part; nothing of it stays where more comes than that."""
    try:
        _copy(response, part, have, total, show)
    except DataError:
        os.truncate(part.path, have)
        raise


def _open(part: Part, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    """The answer to a request, redirects followed; _Again where it may be another in a while, else a DataError."""
    try:
        request = urllib.request.Request(part.url, headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        if error.code in _TRANSIENT:
            raise _Again(f"the server answers {error.code} {_line(error.reason)}") from None
        raise DataError(
            f"{part.url}: the server answers {error.code} {_line(error.reason)}; name another one with --mirror, "
            f"or put the file at {part.target} yourself, then {part.command}"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _Again(f"no connection ({_line(getattr(error, 'reason', error))})") from None


def _line(reason: object) -> str:
    """A reason on one line; urllib's own for a circle of redirects has three."""
    return " ".join(str(reason).split())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows http and https only; urllib itself would also follow ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not WEB.fullmatch(newurl):
            raise urllib.error.HTTPError(newurl, code, f"{msg} - Redirection to url '{newurl}' is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _continued(response: http.client.HTTPResponse, mark: Mark, have: int) -> int | None:
    """The size of the whole file where the answer goes on exactly at byte ``have`` of the marked one, else None."""
    form = {206: rf"bytes {have}-\d+/(\d+)", 416: rf"bytes \*/({have})"}.get(response.status, "no range")
    found = re.fullmatch(form, response.headers.get("Content-Range", ""))
    versions = (("ETag", mark.etag), ("Last-Modified", mark.last_modified))
    same = all(response.headers[name] in (None, version) for name, version in versions)
    return int(found[1]) if found and same and mark.bytes in (None, int(found[1])) else None


def _accepted(part: Part, response: http.client.HTTPResponse) -> bytes:
    """The first block of a file; a DataError, before anything is thrown away, where the answer cannot be the published one."""
    _refuse_coding(part, response)
    if response.headers.get_content_type() == "text/html":
        raise _refusal(part, "the server sends a web page instead of the file")
    if part.published is not None and response.length not in (None, part.published):
        offered = f"the server offers {response.length:,} bytes"
        raise _refusal(part, f"{offered}, the published file has {part.published:,}")
    if response.length is not None and response.length > part.most:
        raise _refusal(part, f"the server offers {response.length:,} bytes; at most {part.most:,} are taken for this file")
    first = _read(response, min(_BLOCK, part.most if response.length is None else response.length))
    if not first and response.length != 0:
        raise _Again("the connection ended before the first byte")
    if not first.startswith(b"PK"[: len(first)]):
        raise _refusal(part, "the server sends something that is no zip archive")
    return first


def _refuse_coding(part: Part, response: http.client.HTTPResponse) -> None:
    """A DataError where the body is not the file's own bytes: its size could not be known, nor where it goes on."""
    codings = ", ".join(response.headers.get_all("Content-Encoding", [])).strip()
    if codings.lower() not in ("", "identity"):
        raise _refusal(part, f"the server sends the file with the Content-Encoding {codings[:40]!a}, which was not asked for")


def _refusal(part: Part, fault: str) -> DataError:
    return DataError(f"{part.url}: {fault}; name another server with --mirror, or try again later with {part.command}")


def _copy(
    response: http.client.HTTPResponse, part: Part, at: int, total: int | None, show: Show, block: bytes | None = None
) -> None:
    """Append the body, which begins at byte ``at`` and of which a ``block`` may have been read, to the part.

    _Again where it ends early, a DataError where it goes on behind the last byte of the file.
    """
    end = part.most if total is None else total
    with part.path.open("ab") as file:
        while at < end and (block := block or _read(response, min(_BLOCK, end - at))):
            file.write(block)
            at += len(block)
            block = None
            show(at, total)
    expected = part.published if total is None else total
    if expected is not None and at < expected:
        raise _Again(f"the connection ended at byte {at:,} of {expected:,}")
    if at == end and _read(response, 1):
        raise _refusal(part, f"the server sends more than the {end:,} bytes of the file")


def _read(response: http.client.HTTPResponse, size: int) -> bytes:
    """What has arrived, without waiting for ``size`` bytes: a connection that drops then costs none of them."""
    try:
        return response.read1(size)
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"the connection dropped ({_line(error)})") from None
