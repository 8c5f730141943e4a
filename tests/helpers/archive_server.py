"""A local HTTP server for the official archives that behaves well, badly, and differently from one request to the next."""

import io
import json
import random
import re
import threading
import zipfile
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from cocolvis.downloads.official import ARCHIVES, download
from cocolvis.downloads.transfer import RetryPolicy
from cocolvis.errors import DataError

QUICK = RetryPolicy(attempts=3, backoff=0.001, timeout=5)


def archive(seed, size=30_000):
    """A zip archive of about ``size`` bytes; its content depends on ``seed``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("noise"), random.Random(seed).randbytes(size))
    return buffer.getvalue()


CONTENT = {entry.name: archive(seed) for seed, entry in enumerate(ARCHIVES)}
"""The content that the server holds for each official archive."""

STUFF = CONTENT["stuff"]
SIZE = len(STUFF)

_SORRY = b"<html><body>416 Requested Range Not Satisfiable</body></html>"
"""What servers say about a range beyond the end."""


class Site:
    """A server on this machine: ``script`` holds special responses to the next requests, ``asked`` the requests so far."""

    def __init__(self):
        self.files = {f"/{entry.url.rpartition('/')[2]}": CONTENT[entry.name] for entry in ARCHIVES}
        self.etag, self.modified = '"1"', "Wed, 21 Oct 2015 07:28:00 GMT"
        self.script, self.asked, self.closing = [], [], threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked = {"range": self.headers["Range"], "valid": self.headers["If-Range"]}
                site.asked.append(SimpleNamespace(path=self.path, **asked, encoding=self.headers["Accept-Encoding"]))
                answer = site.script.pop(0) if site.script else site.serve
                with suppress(ConnectionError):  # the client was killed
                    answer(self)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def ranges(self):
        return [request.range for request in self.asked]

    def headers(self, handler, status, **headers):
        handler.send_response(status)
        named = {"ETag": self.etag, "Last-Modified": self.modified} if status in (200, 206) else {}
        for name, value in {**named, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
            if value is not None:
                handler.send_header(name, str(value))
        handler.end_headers()

    def serve(self, handler, cut=None, ranges=True, length=None, stall=False, **headers):
        """Respond as servers do, but drop the connection (or ``stall``) after ``cut`` bytes, or declare a wrong ``length``."""
        content, asked = self.files[handler.path], handler.headers["Range"]
        if asked and ranges and handler.headers["If-Range"] in (self.etag, self.modified):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                self.headers(handler, 416, Content_Range=f"bytes */{len(content)}", Content_Length=len(_SORRY))
                handler.wfile.write(_SORRY)
                return
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            self.headers(handler, 206, **{"Content_Range": span, "Content_Length": len(body), **headers})
        else:
            body = content
            self.headers(handler, 200, Content_Length=length or len(body), **headers)
        handler.wfile.write(body[:cut])
        if stall:
            self.closing.wait(10)

    def cuts(self, *cuts):
        """Responses that drop the connection after so many bytes."""
        return [lambda handler, cut=cut: self.serve(handler, cut) for cut in cuts]

    def status(self, code, **headers):
        return lambda handler: self.headers(handler, code, Content_Length=0, **headers)


class StuffDownload:
    """Downloads the one archive whose size is not published, from ``site`` into a folder, when called."""

    def __init__(self, site, out):
        self.site, self.out = site, out
        self.target = out / "coco/stuff_trainval2017.zip"
        self.part, self.version = (self.target.with_name(f"{self.target.name}{end}") for end in (".part", ".part.json"))

    def __call__(self, **settings):
        return download(self.out, ["stuff"], **{"mirror": self.site.url, "policy": QUICK, **settings})


def begun(site, stuff, size=1000):
    """Let an earlier download end after ``size`` bytes."""
    site.script = [*site.cuts(size), *[site.status(404)]]
    with pytest.raises(DataError, match="404"):
        stuff()
    assert stuff.part.read_bytes() == STUFF[:size]
    site.asked.clear()


def whole(stuff, content=STUFF):
    """Whether the complete archive is there and nothing else remains."""
    return stuff.target.read_bytes() == content and not stuff.part.exists() and not stuff.version.exists()


def message(call, *arguments, **settings):
    """The one-line message of the DataError that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def hold(stuff, content, **changes):
    """Write a partial file and its version, which ``changes`` alter."""
    stuff.part.parent.mkdir(exist_ok=True)
    stuff.part.write_bytes(content)
    mark = {"url": changes.pop("url"), "bytes": SIZE, "etag": '"1"', "last_modified": None}
    stuff.version.write_text(json.dumps(mark | changes))


def chunked(site, content):
    """A response of unknown length."""

    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        site.headers(handler, 200, Transfer_Encoding="chunked")
        for start in range(0, len(content), 7000):
            block = content[start : start + 7000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def raw(site, *blocks, status=200, **headers):
    """A response whose body ends when the connection closes."""

    def answer(handler):
        site.headers(handler, status, **headers)
        for block in blocks:
            handler.wfile.write(block)

    return answer
