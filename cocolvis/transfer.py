"""One file over HTTP into a part beside its final name: resumed where it ended, never spliced from two versions."""

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cocolvis.errors import DataError
from cocolvis.files import read_json, write_json

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
    """An address, the file it is fetched for, its published size where there is one, and the command that goes on with it."""

    url: str
    target: Path
    published: int | None
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

    def discard(self) -> None:
        """Remove the part, then its mark."""
        self.path.unlink(missing_ok=True)
        self.marked.unlink(missing_ok=True)


class _Again(Exception):
    """An attempt failed in a way that another one may mend."""


def fetch(part: Part, show: Show, note: Note, patience: Patience) -> None:
    """Bring a part to its full size; only attempts that took it no further than any before count.

    A DataError where the server refuses for good, offers another file, or nothing new came; the part is kept.
    """
    furthest, failures = part.resumable()[1], 0
    while True:
        try:
            return _attempt(part, show, patience.timeout)
        except OSError as error:
            raise DataError(f"{part.path}: cannot be written: {error.strerror or error}; go on with {part.command}") from error
        except _Again as error:
            failures = 0 if part.have > furthest else failures + 1
            furthest = max(furthest, part.have)
            if failures >= patience.attempts:
                kept = f"; {part.have:,} bytes are kept in {part.path}" if part.have else ""
                tried = f"{failures} attempts in a row brought nothing new"
                raise DataError(f"{part.url}: {error}; {tried}{kept}; go on with {part.command}") from None
            wait = min(patience.backoff * 2**failures, _LONGEST_WAIT)
            note(f"{part.target.name}: {error}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _attempt(part: Part, show: Show, timeout: float) -> None:
    """One request for what is missing, and its body; returns when the part is whole."""
    mark, have = part.resumable()
    if mark and have == mark.bytes:
        return
    headers = {"User-Agent": "cocolvis"}
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": mark.validator}
    with _open(part, headers, timeout) as response:
        if response.status == 200:
            have, total = 0, response.length
            _refuse_another_file(part, response)
            part.begin(Mark(part.url, total, response.headers["ETag"], response.headers["Last-Modified"]))
        elif not have or (total := _continued(response, mark, have)) is None:
            part.discard()
            raise _Again(f"the server answers {response.status} with a range that does not fit; the part was dropped")
        _copy(response, part, have, total, show)


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


def _refuse_another_file(part: Part, response: http.client.HTTPResponse) -> None:
    """A DataError, before anything is thrown away, where the answer cannot be the published file."""
    if response.headers.get_content_type() == "text/html":
        fault = "the server sends a web page instead of the file"
    elif part.published is not None and response.length not in (None, part.published):
        fault = f"the server offers {response.length:,} bytes, the published file has {part.published:,}"
    else:
        return
    raise DataError(f"{part.url}: {fault}; name another server with --mirror, or try again later with {part.command}")


def _copy(response: http.client.HTTPResponse, part: Part, at: int, total: int | None, show: Show) -> None:
    """Append the body, which begins at byte ``at``, to the part; _Again where it ends early."""
    with part.path.open("ab") as file:
        while total is None or at < total:
            block = _read(response, _BLOCK if total is None else min(_BLOCK, total - at))
            if not block:
                break
            file.write(block)
            at += len(block)
            show(at, total)
    expected = part.published if total is None else total
    if expected is not None and at < expected:
        raise _Again(f"the connection ended at byte {at:,} of {expected:,}")


def _read(response: http.client.HTTPResponse, size: int) -> bytes:
    """What has arrived, without waiting for ``size`` bytes: a connection that drops then costs none of them."""
    try:
        return response.read1(size)
    except (OSError, http.client.HTTPException) as error:
        raise _Again(f"the connection dropped ({_line(error)})") from None
