"""Fetches one file over HTTP into a partial file: resumable, and never a mixture of two versions of the file.

It never writes more bytes than the server announced, and never discards good bytes for a response that turns out to be bad.
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

from cocolvis.disk.files import read_json, reason, write_json
from cocolvis.errors import DataError
from cocolvis.progress import Announce

WEB = re.compile(r"https?://[!-~]+")
"""Addresses that may be fetched, also after a redirect."""

_BLOCK = 2**18
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 60.0

_Response = http.client.HTTPResponse | urllib.error.HTTPError
"""A response with any status."""

Received = Callable[[int, int | None], None]
"""Called with the number of bytes received so far, and the size of the file or None if it is unknown."""


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry and when to give up.

    ``attempts`` is the number of consecutive attempts without a new byte, and of attempts in all that begin the file again and
    get less of it than there was. ``backoff`` is the number of seconds before the second attempt, doubled each time, and
    ``timeout`` the seconds that a server may stay silent.
    """

    attempts: int = 6
    backoff: float = 1.0
    timeout: float = 60.0


class Version(msgspec.Struct):
    """The version of the remote file that a partial file belongs to; recorded before its first byte is written."""

    url: str
    bytes: int | None
    etag: str | None
    last_modified: str | None

    @property
    def validator(self) -> str | None:
        """The value for If-Range: the ETag unless it is weak, otherwise the modification date."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


@dataclass(frozen=True)
class PartialFile:
    """A file being fetched from ``url`` to ``target``.

    ``published`` is its published size in bytes, if any; ``most`` is the most bytes that are accepted, even if the server
    announces more; ``command`` is the command line that continues the download.
    """

    url: str
    target: Path
    published: int | None
    most: int
    command: str

    @property
    def path(self) -> Path:
        """The path of the bytes until they are complete and checked."""
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def version_path(self) -> Path:
        """The path of the recorded version."""
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def have(self) -> int:
        """The number of bytes received, of any version."""
        return self.path.stat().st_size if os.path.exists(self.path) else 0

    def resumable(self) -> tuple[Version | None, int]:
        """The recorded version, or None if it has another address, and the number of bytes to continue from.

        The number is 0 unless If-Range can confirm that the version is unchanged, or all bytes have been received.
        """
        with suppress(DataError, msgspec.ValidationError):
            version = msgspec.convert(read_json(self.version_path), Version)
            if version.url == self.url:
                return version, self.have if version.validator or self.have == version.bytes else 0
        return None, 0

    def begin(self, version: Version) -> None:
        """Empty the file, then record its version: a crash in between leaves nothing that could be continued wrongly."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(b"")
        write_json(self.version_path, msgspec.to_builtins(version))

    @property
    def _aside(self) -> tuple[Path, Path]:
        """The paths of good bytes and of their version while a response is read that may turn out not to be the file."""
        name = f"{self.target.name}.kept"
        return self.target.with_name(name), self.target.with_name(f"{name}.json")

    def set_aside(self) -> None:
        """Move the good bytes aside; :meth:`restore` brings them back, :meth:`forget` discards them."""
        path, version_path = self._aside
        shutil.copyfile(self.version_path, version_path)
        os.replace(self.path, path)

    def restore(self) -> bool:
        """Remove the bytes and their version, and bring back those that were set aside; return whether there were any."""
        self.path.unlink(missing_ok=True)
        self.version_path.unlink(missing_ok=True)
        path, version_path = self._aside
        there = os.path.exists(path) and os.path.exists(version_path)
        if there:
            os.replace(version_path, self.version_path)
            os.replace(path, self.path)
        self.forget()
        return there

    def forget(self) -> None:
        """Remove the bytes that were set aside."""
        for path in self._aside:
            path.unlink(missing_ok=True)


class _Retry(Exception):
    """A failed attempt after which another may succeed; with ``whole``, that one must request the file from its beginning."""

    def __init__(self, message: str, whole: bool = False):
        super().__init__(message)
        self.whole = whole


def fetch(part: PartialFile, received: Received, announce: Announce, policy: RetryPolicy) -> None:
    """Fetch the missing bytes of a file, in several attempts if necessary; ``policy`` says which of them are counted.

    Raises DataError if the server refuses, offers a different file, or sends nothing new; the received bytes are kept.
    """
    had, failures, restarts, whole = part.resumable()[1], 0, 0, False
    while True:
        try:
            return _attempt(part, received, policy.timeout, whole)
        except OSError as error:
            fault = f"cannot be written: {reason(error)}"
            raise DataError(f"{part.path}: {fault}; continue with {part.command}") from error
        except _Retry as error:
            whole = error.whole
            failures = 0 if part.have > had else failures + 1
            restarts += part.have < had
            had = part.have
            if max(failures, restarts) >= policy.attempts:
                kept = f"; {had:,} bytes are kept in {part.path}" if had else ""
                begun = f"the server began the file again {restarts} times"
                tried = f"{failures} consecutive attempts brought nothing new" if failures >= policy.attempts else begun
                raise DataError(f"{part.url}: {error}; {tried}{kept}; continue with {part.command}") from None
            wait = min(policy.backoff * 2**failures, _LONGEST_WAIT)
            announce(f"{part.target.name}: {error}; trying again in {wait:.0f} s")
            time.sleep(wait)


def _attempt(part: PartialFile, received: Received, timeout: float, whole: bool) -> None:
    """Request the missing bytes, or the ``whole`` file, and write them until the file is complete."""
    version, have = part.resumable()
    if version and have == version.bytes and not whole:
        return
    headers = {"User-Agent": "cocolvis", "Accept-Encoding": "identity"}
    if have and version and version.validator and not whole:
        headers |= {"Range": f"bytes={have}-", "If-Range": version.validator}
    with _open(part, headers, timeout) as response:
        if response.status == 200:
            total, first = response.length, _accepted(part, response)
            new = Version(part.url, total, response.headers["ETag"], response.headers["Last-Modified"])
            _start_over(part, response, new, first, version if have else None, received)
        elif not have or not version or whole or (total := _continued(response, version, have)) is None:
            fault = f"the server answers {response.status} with an unexpected range"
            raise _Retry(f"{fault}; requesting the whole file", whole=True)
        elif response.status != 416:  # whose body is not part of the file, which is complete
            _refuse_coding(part, response)
            _continue(part, response, have, total, received)


def _start_over(
    part: PartialFile, response: _Response, new: Version, first: bytes, old: Version | None, received: Received
) -> None:
    """Write a file from its beginning, ``first`` being its first block; if it is bad, good bytes of version ``old`` come back.

    When the announced size is the published one, the old bytes are removed at once: the response is almost certainly good, and
    the file may be large.
    """
    have = part.have
    if new.bytes is not None and part.published is not None:
        old = None
    if old:
        part.set_aside()
    else:
        part.forget()
    part.begin(new)
    try:
        _copy(response, part, 0, new.bytes, received, first)
    except DataError:
        part.restore()
        raise
    except _Retry:
        if old and part.have < have and new.validator in (None, old.validator):
            part.restore()
        else:
            part.forget()
        raise


def _continue(part: PartialFile, response: _Response, have: int, total: int, received: Received) -> None:
    """Append the missing bytes; if the server sends more than these, all of them are removed again."""
    try:
        _copy(response, part, have, total, received)
    except DataError:
        os.truncate(part.path, have)
        raise


def _open(part: PartialFile, headers: dict[str, str], timeout: float) -> _Response:
    """The response to a request, after redirects; raises _Retry if a later attempt may succeed, otherwise DataError."""
    try:
        request = urllib.request.Request(part.url, headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        if error.code in _TRANSIENT:
            raise _Retry(f"the server answers {error.code} {_unwrapped(error.reason)}") from None
        raise DataError(
            f"{part.url}: the server answers {error.code} {_unwrapped(error.reason)}; choose another server with --mirror, "
            f"or save the file as {part.target} yourself, then run {part.command}"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _Retry(f"no connection ({_unwrapped(getattr(error, 'reason', error))})") from None


def _unwrapped(reason: object) -> str:
    """A reason on one line; urllib's message for a redirect loop has three."""
    return " ".join(str(reason).split())


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https only; urllib would also follow ftp."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if not WEB.fullmatch(newurl):
            raise urllib.error.HTTPError(newurl, code, f"{msg} - Redirection to url '{newurl}' is not allowed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _continued(response: _Response, version: Version, have: int) -> int | None:
    """The size of the whole file if the response continues this version exactly at byte ``have``, otherwise None."""
    form = {206: rf"bytes {have}-\d+/(\d+)", 416: rf"bytes \*/({have})"}.get(response.status or 0, "no range")
    match = re.fullmatch(form, response.headers.get("Content-Range", ""))
    validators = (("ETag", version.etag), ("Last-Modified", version.last_modified))
    same = all(response.headers[name] in (None, value) for name, value in validators)
    return int(match[1]) if match and same and version.bytes in (None, int(match[1])) else None


def _accepted(part: PartialFile, response: _Response) -> bytes:
    """The first block of a file; raises DataError, before any bytes are discarded, if the response cannot be the file."""
    _refuse_coding(part, response)
    if response.headers.get_content_type() == "text/html":
        raise _refusal(part, "the server sends a web page instead of the file")
    if part.published is not None and response.length not in (None, part.published):
        offered = f"the server offers {response.length:,} bytes"
        raise _refusal(part, f"{offered}, but the published file has {part.published:,}")
    if response.length is not None and response.length > part.most:
        raise _refusal(part, f"the server offers {response.length:,} bytes; at most {part.most:,} are accepted for this file")
    first = _read(response, min(_BLOCK, part.most if response.length is None else response.length))
    if not first and response.length != 0:
        raise _Retry("the connection ended before the first byte")
    if not first.startswith(b"PK"[: len(first)]):
        raise _refusal(part, "the server sends something other than a zip archive")
    return first


def _refuse_coding(part: PartialFile, response: _Response) -> None:
    """Raise DataError if the body is encoded: its size and the offset to continue from would be unknown."""
    codings = ", ".join(response.headers.get_all("Content-Encoding", [])).strip()
    if codings.lower() not in ("", "identity"):
        raise _refusal(part, f"the server sends the file with the Content-Encoding {codings[:40]!a}, which was not requested")


def _refusal(part: PartialFile, fault: str) -> DataError:
    return DataError(f"{part.url}: {fault}; choose another server with --mirror, or try again later with {part.command}")


def _copy(
    response: _Response, part: PartialFile, at: int, total: int | None, received: Received, block: bytes | None = None
) -> None:
    """Append the body, which begins at byte ``at`` of the file and of which a ``block`` may have been read already.

    Raises _Retry if it ends early, DataError if it continues past the last byte of the file.
    """
    end = part.most if total is None else total
    with part.path.open("ab") as file:
        while at < end and (block := block or _read(response, min(_BLOCK, end - at))):
            file.write(block)
            at += len(block)
            block = None
            received(at, total)
    expected = part.published if total is None else total
    if expected is not None and at < expected:
        raise _Retry(f"the connection ended at byte {at:,} of {expected:,}")
    if at == end and _read(response, 1):
        raise _refusal(part, f"the server sends more than the {end:,} bytes of the file")


def _read(response: _Response, size: int) -> bytes:
    """The bytes that have arrived, at most ``size``, without waiting for all: none are lost if the connection drops."""
    try:
        return response.read1(size)
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"the connection dropped ({_unwrapped(error)})") from None
