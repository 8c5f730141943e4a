"""`cocolvis download` against a local server that behaves well, badly, and differently from one request to the next."""

import fcntl
import hashlib
import io
import json
import os
import pty
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from cli.cocolvis import main
from cocolvis.downloads import official as module
from cocolvis.downloads import zip_directory
from cocolvis.downloads.official import FILES, Record, Remote, download, plan
from cocolvis.downloads.transfer import Patience
from cocolvis.errors import DataError

QUICK = Patience(attempts=3, backoff=0.001, timeout=5)


def archive(seed, size=30_000):
    """A zip archive of about ``size`` bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("noise"), random.Random(seed).randbytes(size))
    return buffer.getvalue()


CONTENT = {remote.name: archive(seed) for seed, remote in enumerate(FILES)}
"""What the server holds in place of each official file."""

STUFF = CONTENT["stuff"]
SIZE = len(STUFF)


class Site:
    """A server on this machine; ``script`` holds one odd answer each for the next requests, ``asked`` what was requested."""

    def __init__(self):
        self.files = {f"/{remote.url.rpartition('/')[2]}": CONTENT[remote.name] for remote in FILES}
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
        """Answer as a server does, but end the connection (or fall silent) after ``cut`` bytes, or lie about the length."""
        content, asked = self.files[handler.path], handler.headers["Range"]
        if asked and ranges and handler.headers["If-Range"] in (self.etag, self.modified):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= len(content):
                return self.headers(handler, 416, Content_Range=f"bytes */{len(content)}", Content_Length=0)
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
        """Answers that end the connection after so many bytes."""
        return [lambda handler, cut=cut: self.serve(handler, cut) for cut in cuts]

    def status(self, code, **headers):
        return lambda handler: self.headers(handler, code, Content_Length=0, **headers)


@pytest.fixture
def site(monkeypatch):
    """The server, in whose place the official table describes what it holds."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    small = [
        Remote(remote.name, remote.file, remote.url, len(CONTENT[remote.name]) if remote.exact else 40_000, remote.exact)
        for remote in FILES
    ]
    monkeypatch.setattr(module, "FILES", tuple(small))
    site = Site()
    yield site
    site.close()


@pytest.fixture
def stuff(site, tmp_path):
    """Fetches the one file whose size is not published."""

    def fetch(**settings):
        return download(tmp_path, ["stuff"], **{"mirror": site.url, "patience": QUICK, **settings})

    fetch.target = tmp_path / "coco/stuff_trainval2017.zip"
    fetch.part = tmp_path / "coco/stuff_trainval2017.zip.part"
    fetch.mark = tmp_path / "coco/stuff_trainval2017.zip.part.json"
    return fetch


def begun(site, stuff, size=1000):
    """An earlier run that ended for good after some bytes."""
    site.script = [*site.cuts(size), *[site.status(404)]]
    with pytest.raises(DataError, match="404"):
        stuff()
    assert stuff.part.read_bytes() == STUFF[:size]
    site.asked.clear()


def whole(stuff, content=STUFF):
    """Whether the file, and it alone, is there."""
    return stuff.target.read_bytes() == content and not stuff.part.exists() and not stuff.mark.exists()


def message(call, *arguments, **settings):
    """The one line of the DataError that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_official_files():
    assert {remote.name: remote.size for remote in FILES if remote.exact} == {
        "train2017": 19_336_861_798,
        "val2017": 815_585_330,
        "lvis-train": 350_264_821,
        "lvis-val": 64_026_968,
    }
    assert all(remote.url.endswith(remote.file.rpartition("/")[2]) for remote in FILES)
    choice = next(option for option in main.commands["download"].params if option.name == "names").type
    assert sorted(choice.choices) == sorted(remote.name for remote in FILES)


def test_everything_is_fetched_and_recorded_and_fetched_once(site, tmp_path):
    out, shown = tmp_path / "new" / "data", []
    records = download(out, mirror=f"{site.url}/", progress=lambda *now: shown.append(now), patience=QUICK)
    assert [record.name for record in records] == [remote.name for remote in FILES]
    for record in records:
        content = CONTENT[record.name]
        assert (out / record.file).read_bytes() == content
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert record.url == f"{site.url}/{record.file.rpartition('/')[2]}"
    recorded = json.loads((out / "downloads.json").read_text())["files"]
    assert [Record(**record) for record in recorded] == records
    assert len(site.asked) == 5 and not list(out.rglob("*.part*"))
    total = sum(map(len, CONTENT.values()))
    assert shown[0] == (0, total + 40_000 - SIZE) and shown[-1] == (total, total)
    lines = []
    assert download(out, mirror=site.url, note=lines.append) == records
    assert len(site.asked) == 5 and lines == []  # nothing is hashed again either


def test_only_what_is_named_is_fetched_and_the_record_grows(site, stuff, tmp_path):
    stuff()
    download(tmp_path, ["lvis-val"], site.url, patience=QUICK)
    assert [request.path for request in site.asked] == ["/stuff_trainval2017.zip", "/lvis_v1_val.json.zip"]
    assert [job.state for job in plan(tmp_path)] == ["finished", "", "finished", "", ""]
    assert [job.left for job in plan(tmp_path)] == [0, len(CONTENT["lvis-train"]), 0, *map(len, list(CONTENT.values())[3:])]


def test_dropped_connections_go_on_where_they_ended(site, stuff):
    site.script = site.cuts(1000, 0, 0, 2000, 0, 0, 3000, 1, 1, 1)
    lines = []
    stuff(note=lines.append)
    assert whole(stuff)
    starts = [1000, 1000, 1000, 3000, 3000, 3000, 6000, 6001, 6002, 6003]
    assert site.ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert {request.valid for request in site.asked[1:]} == {'"1"'}
    assert lines[0] == f"stuff_trainval2017.zip: the connection ended at byte 1,000 of {SIZE:,}; trying again in 0 s"


def test_attempts_without_a_new_byte_are_counted(site, stuff, tmp_path):
    site.script = site.cuts(1000, 0, 0, 0)
    text = message(stuff)
    assert "3 attempts in a row brought nothing new; 1,000 bytes are kept in" in text
    command = f"`cocolvis download --out {tmp_path} --only stuff --mirror {site.url}`"
    assert text.endswith(f"go on with {command}") and len(site.asked) == 4
    stuff()
    assert whole(stuff) and site.ranges[-1] == "bytes=1000-"


def test_no_server(stuff):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        text = message(stuff, mirror=f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert "no connection" in text and "refused" in text and "bytes are kept" not in text


def test_a_server_that_ignores_ranges_starts_over(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=False)]
    stuff()
    assert whole(stuff) and site.ranges == ["bytes=1000-"]


def test_a_server_that_ignores_ranges_and_always_drops_is_given_up(site, stuff):
    site.script = [lambda handler: site.serve(handler, 1000, ranges=False)] * 9
    assert "nothing new" in message(stuff) and len(site.asked) == 4


def test_a_file_that_changed_between_two_tries_is_never_spliced(site, stuff):
    begun(site, stuff)
    site.files["/stuff_trainval2017.zip"], site.etag = archive("new"), '"2"'
    stuff()
    assert whole(stuff, archive("new")) and [request.valid for request in site.asked] == ['"1"']


@pytest.mark.parametrize("stale", [{"ETag": '"2"'}, {"Last_Modified": "Thu, 22 Oct 2015 07:28:00 GMT"}], ids=str)
def test_a_server_that_ignores_if_range_is_seen_through(site, stuff, stale):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, **stale)]
    stuff()
    assert whole(stuff) and site.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize(
    "span", ["bytes 999-{last}/{size}", "bytes 1000-{last}/{last}", "bytes 1000-{last}/*", "none", None], ids=str
)
def test_a_wrong_content_range_starts_over(site, stuff, span):
    begun(site, stuff)
    wrong = span and span.format(last=SIZE - 1, size=SIZE)
    site.script = [lambda handler: site.serve(handler, Content_Range=wrong)]
    lines = []
    stuff(note=lines.append)
    assert whole(stuff) and site.ranges == ["bytes=1000-", None]
    assert "answers 206 with a range that does not fit; asking for the whole file" in lines[0]


def test_a_range_that_nobody_asked_for(site, stuff):
    site.script = [lambda handler: site.headers(handler, 206, Content_Range="bytes 5-9/10", Content_Length=5)]
    stuff()
    assert whole(stuff) and site.ranges == [None, None]


def hold(stuff, content, **changes):
    """Lay down a part and its mark."""
    stuff.part.parent.mkdir(exist_ok=True)
    stuff.part.write_bytes(content)
    mark = {"url": changes.pop("url"), "bytes": SIZE, "etag": '"1"', "last_modified": None}
    stuff.mark.write_text(json.dumps(mark | changes))


def test_a_part_that_turns_out_to_be_complete(site, stuff):
    hold(stuff, STUFF, url=f"{site.url}/stuff_trainval2017.zip", bytes=None)
    stuff()
    assert whole(stuff) and site.ranges == [f"bytes={SIZE}-"]


def test_a_complete_part_costs_no_request(site, stuff):
    hold(stuff, STUFF, url=f"{site.url}/stuff_trainval2017.zip", etag=None)
    stuff()
    assert whole(stuff) and site.ranges == []


@pytest.mark.parametrize("size", [None, 99_999])
def test_a_part_that_is_larger_than_the_file_starts_over(site, stuff, size):
    hold(stuff, STUFF + b"more", url=f"{site.url}/stuff_trainval2017.zip", bytes=size)
    stuff()
    assert whole(stuff) and site.ranges == [f"bytes={SIZE + 4}-", None]


def test_a_416_that_knows_another_size_starts_over(site, stuff):
    hold(stuff, STUFF[:100], url=f"{site.url}/stuff_trainval2017.zip")
    site.script = [site.status(416, Content_Range="bytes */100")]
    stuff()
    assert whole(stuff) and site.ranges == ["bytes=100-", None]


@pytest.mark.parametrize(
    "changes",
    [
        {"url": "http://elsewhere/stuff_trainval2017.zip"},
        {"etag": None},
        {"etag": 'W/"1"'},
        {"bytes": "many"},
    ],
    ids=str,
)
def test_bytes_that_nothing_vouches_for_are_not_continued(site, stuff, changes):
    hold(stuff, STUFF[:100], **{"url": f"{site.url}/stuff_trainval2017.zip", **changes})
    assert plan(stuff.target.parents[1], ["stuff"], site.url)[0].have == 0
    stuff()
    assert whole(stuff) and site.ranges == [None]


def test_the_date_vouches_where_the_etag_is_weak(site, stuff):
    site.etag = 'W/"1"'
    begun(site, stuff)
    stuff()
    assert whole(stuff) and [(request.range, request.valid) for request in site.asked] == [("bytes=1000-", site.modified)]


def test_a_mark_without_a_part_and_a_part_without_a_mark(site, stuff):
    hold(stuff, b"", url=f"{site.url}/stuff_trainval2017.zip")
    begun(site, stuff)
    stuff.mark.unlink()
    stuff()
    assert whole(stuff) and site.ranges == [None]


def test_a_new_part_is_emptied_before_it_is_marked(site, stuff, monkeypatch):
    begun(site, stuff)
    site.files["/stuff_trainval2017.zip"], site.etag = archive("new"), '"2"'

    def crash(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr("cocolvis.downloads.transfer.write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        stuff()
    monkeypatch.undo()
    assert stuff.part.read_bytes() == b"" and json.loads(stuff.mark.read_text())["etag"] == '"1"'


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_refusal_is_final(site, stuff, code):
    site.script = [site.status(code)]
    text = message(stuff)
    assert f"the server answers {code}" in text and "--mirror" in text and str(stuff.target) in text
    assert len(site.asked) == 1


def test_a_server_in_trouble_is_tried_again(site, stuff):
    site.script = [site.status(500), site.status(503)]
    stuff()
    assert whole(stuff) and len(site.asked) == 3
    site.script = [site.status(503)] * 3
    stuff.target.unlink()
    assert "the server answers 503 Service Unavailable; 3 attempts in a row" in message(stuff)


def test_a_silent_server_times_out_and_is_tried_again(site, stuff):
    site.script = [lambda handler: site.serve(handler, 1000, stall=True), lambda handler: site.closing.wait(10)]
    lines = []
    stuff(patience=Patience(attempts=3, backoff=0.001, timeout=0.2), note=lines.append)
    assert ["timed out" in line for line in lines] == [True, True, False]
    assert whole(stuff) and site.ranges == [None, "bytes=1000-", "bytes=1000-"]


def test_garbage_instead_of_http(site, stuff):
    site.script = [lambda handler: handler.wfile.write(b"go away\r\n\r\n")]
    stuff()
    assert whole(stuff)


def test_a_length_that_is_too_large_is_given_up(site, stuff):
    site.script = [lambda handler: site.serve(handler, length=SIZE + 9)] * 9
    assert "nothing new" in message(stuff) and not stuff.target.exists()
    assert site.ranges[:3] == [None, f"bytes={SIZE}-", None]


def test_a_length_that_is_too_small_gives_no_archive(site, stuff):
    site.script = [lambda handler: site.serve(handler, length=SIZE - 9)]
    text = message(stuff)
    assert f"{SIZE - 9:,} bytes came that are no zip archive: it has no central directory at its end" in text
    assert "it was removed" in text
    assert not list(stuff.target.parent.iterdir()) and not (stuff.target.parents[1] / "downloads.json").exists()


def test_another_length_than_published_is_refused_before_a_byte_is_lost(site, tmp_path):
    size, target = len(CONTENT["val2017"]), tmp_path / "coco/val2017.zip.part"
    site.script = [*site.cuts(1000), site.status(404)]
    message(download, tmp_path, ["val2017"], site.url, patience=QUICK)
    site.files["/val2017.zip"], site.etag = archive("new", 99), '"2"'
    text = message(download, tmp_path, ["val2017"], site.url, patience=QUICK)
    assert f"offers {len(archive('new', 99))} bytes, the published file has {size:,}" in text
    assert target.read_bytes() == CONTENT["val2017"][:1000] and len(site.asked) == 3


def test_a_web_page_is_refused_before_a_byte_is_lost(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=False, Content_Type="text/html; charset=utf-8")]
    assert "a web page instead of the file" in message(stuff)
    assert stuff.part.read_bytes() == STUFF[:1000]


def chunked(site, content):
    """An answer of unknown length."""

    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        site.headers(handler, 200, Transfer_Encoding="chunked")
        for start in range(0, len(content), 7000):
            block = content[start : start + 7000]
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
        handler.wfile.write(b"0\r\n\r\n")

    return answer


def test_an_answer_of_unknown_length(site, stuff, tmp_path):
    site.script = [chunked(site, STUFF)]
    stuff()
    assert whole(stuff)
    content = CONTENT["val2017"]
    site.script = [chunked(site, content[:9000])]
    download(tmp_path, ["val2017"], site.url, patience=QUICK)
    assert (tmp_path / "coco/val2017.zip").read_bytes() == content and site.ranges[-1] == "bytes=9000-"
    site.script = [chunked(site, CONTENT["lvis-val"] + b"more")]
    assert "sends more than the" in message(download, tmp_path, ["lvis-val"], site.url, patience=QUICK)
    assert not list((tmp_path / "lvis").iterdir())


def raw(site, *blocks, status=200, **headers):
    """An answer whose body ends where the connection does."""

    def answer(handler):
        site.headers(handler, status, **headers)
        for block in blocks:
            handler.wfile.write(block)

    return answer


def endless(site, start=b"", size=2**24):
    """Answers in 5 ways that go on for ``size`` bytes behind ``start``."""
    block, last = bytes(2**16), SIZE - 1
    blocks = [start, *[block] * (size // len(block))]
    span = f"bytes 1000-{last}/{SIZE}"
    yield "chunked", chunked(site, start + bytes(size))
    yield "no length", raw(site, *blocks)
    yield "a range, no length", raw(site, STUFF[1000:], *blocks, status=206, Content_Range=span)
    yield "a range, too long", raw(site, STUFF[1000:], *blocks, status=206, Content_Range=span, Content_Length=size)


@pytest.mark.parametrize("way", range(4))
def test_no_more_is_written_than_the_file_has_and_the_good_part_stays(site, stuff, way, monkeypatch):
    begun(site, stuff)
    sizes, copy = [], module.fetch.__globals__["_copy"]

    def watched(*arguments):
        try:
            copy(*arguments)
        finally:
            sizes.append(stuff.part.stat().st_size)

    monkeypatch.setitem(module.fetch.__globals__, "_copy", watched)
    site.script = [list(endless(site, b"PK\3\4"))[way][1]]
    text = message(stuff)
    most = 2 * 40_000 + 2**20 if way < 2 else SIZE
    assert f"sends more than the {most:,} bytes of the file; name another server" in text and sizes == [most]
    assert stuff.part.read_bytes() == STUFF[:1000] and {p.name for p in stuff.part.parent.iterdir()} == {
        stuff.part.name,
        stuff.mark.name,
    }
    stuff()
    assert whole(stuff) and site.ranges[-1] == "bytes=1000-"


def test_a_published_size_bounds_what_is_announced_and_what_is_not(site, tmp_path):
    content = CONTENT["val2017"]
    site.script = [chunked(site, content + bytes(2**22))]
    text = message(download, tmp_path, ["val2017"], site.url, patience=QUICK)
    assert f"sends more than the {len(content):,} bytes of the file" in text and not list((tmp_path / "coco").iterdir())
    site.script = [raw(site, b"PK", Content_Length=2**40)]
    assert "at most 1,128,576 are taken for this file" in message(download, tmp_path, ["stuff"], site.url, patience=QUICK)
    assert not list((tmp_path / "coco").iterdir())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip", "x"])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_encoded_answer_is_refused_before_a_byte_is_lost(site, stuff, coding, ranges):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=ranges, Content_Encoding=coding)]
    assert f"with the Content-Encoding '{coding}', which was not asked for" in message(stuff)
    assert stuff.part.read_bytes() == STUFF[:1000] and len(site.asked) == 1
    site.script = [lambda handler: site.serve(handler, Content_Encoding="Identity")]
    stuff()
    assert whole(stuff) and site.asked[-1].encoding == "identity"


def test_what_is_no_archive_is_refused_before_a_byte_is_lost(site, stuff):
    begun(site, stuff)
    site.script = [raw(site, b'{"error": "log in"}', Content_Type="application/json"), site.status(404)]
    assert "sends something that is no zip archive" in message(stuff) and stuff.part.read_bytes() == STUFF[:1000]


def test_a_wrong_range_and_then_a_refusal_cost_no_byte(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, Content_Range="bytes 0-9/10"), site.status(404)]
    assert "404" in message(stuff) and site.ranges == ["bytes=1000-", None]
    assert stuff.part.read_bytes() == STUFF[:1000]


def test_an_archive_that_turns_out_broken_gives_the_good_part_back(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=False, length=SIZE - 9)]
    text = message(stuff)
    assert "no central directory at its end" in text and "1,000 bytes that came before are kept" in text
    stuff()
    assert whole(stuff) and site.ranges == ["bytes=1000-", "bytes=1000-"]


def directory_at(content):
    """The place of the end record, and of the directory, of a small archive."""
    end = content.rindex(b"PK\5\6")
    return end, int.from_bytes(content[end + 16 : end + 20], "little")


def moved(content, by):
    """The same archive, whose end record names another place."""
    end, start = directory_at(content)
    return content[: end + 16] + (start + by).to_bytes(4, "little") + content[end + 20 :]


def far(content):
    """Its member lies behind the end of the file."""
    _, start = directory_at(content)
    return content[: start + 42] + (2**31).to_bytes(4, "little") + content[start + 46 :]


def more(content):
    """It says that it has two members."""
    end, _ = directory_at(content)
    return content[: end + 10] + b"\2" + content[end + 11 :]


def zip64(content):
    """It names a record of 64 bits that is not there."""
    end, _ = directory_at(content)
    return content[: end + 16] + b"\xff" * 4 + content[end + 20 :]


BROKEN = {
    "no end": lambda content: content[:-22],
    "cut": lambda content: content[: len(content) // 2],
    "more behind": lambda content: content + bytes(100),
    "directory outside": lambda content: moved(content, 10**6),
    "directory elsewhere": lambda content: moved(content, -10),
    "member outside": far,
    "members missing": more,
    "no zip64": zip64,
    "nothing": lambda content: b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_does_not_take_its_name(site, stuff, name):
    site.files["/stuff_trainval2017.zip"] = BROKEN[name](STUFF)
    text = message(stuff)
    assert re.search("no central directory at its end|central directory (points outside|is damaged|lists 1)", text)
    assert not list(stuff.target.parent.iterdir())


def test_archives_of_64_bits_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 100)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in "abc":
            file.writestr(name, bytes(200))
        file.comment = b"PK\5\6 is no end here"
    content = (tmp_path / "a.zip").read_bytes()
    end = content.index(b"PK\5\6")
    content = content[: end + 8] + b"\xff" * 12 + content[end + 20 :]  # as where they do not fit
    (tmp_path / "a.zip").write_bytes(content)
    assert zip_directory.fault(tmp_path / "a.zip") is None
    (tmp_path / "b.zip").write_bytes(content.replace(b"PK\6\6", b"PK\6\5"))
    assert "points outside" in zip_directory.fault(tmp_path / "b.zip")


def test_redirects_are_followed_with_their_range(site, stuff):
    site.files["/moved"] = STUFF
    site.script = [
        site.status(302, Location=f"{site.url}/moved"),
        *site.cuts(1000),
        site.status(307, Location="/moved"),
    ]
    stuff()
    assert whole(stuff)
    assert [(request.path, request.range) for request in site.asked[2:]] == [
        ("/stuff_trainval2017.zip", "bytes=1000-"),
        ("/moved", "bytes=1000-"),
    ]


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x", "data:,x"])
def test_redirects_to_anything_but_the_web_are_refused(site, stuff, where):
    site.script = [site.status(302, Location=where)]
    assert f"Redirection to url '{where}' is not allowed" in message(stuff)
    assert len(site.asked) == 1 and not stuff.part.exists()


def test_redirects_in_a_circle_or_into_nonsense_end_with_one_line(site, stuff):
    site.script = [site.status(302, Location="/stuff_trainval2017.zip")] * 20
    assert "infinite loop" in message(stuff)
    site.script = [site.status(302, Location="http://[x/")] * 3
    assert "no connection" in message(stuff)


@pytest.mark.parametrize("mirror", ["file:///etc", "ftp://host/x", "host/x", "http://", "http://a b", "http://h/é"])
def test_a_mirror_is_a_web_address(tmp_path, mirror):
    assert f"--mirror {mirror}: is no web address" in message(plan, tmp_path, mirror=mirror)


def test_a_published_sha256_is_checked(site, stuff, monkeypatch):
    remote = next(remote for remote in module.FILES if remote.name == "stuff")
    good = hashlib.sha256(STUFF).hexdigest()
    for published in ("0" * 64, good):
        monkeypatch.setattr(module, "FILES", (Remote("stuff", remote.file, remote.url, 1, False, published),))
        if published == good:
            assert stuff()[0].sha256 == good and whole(stuff)
        else:
            assert f"has the SHA-256 {good}, published is {published}" in message(stuff)
            assert not list(stuff.target.parent.iterdir())


def test_a_finished_file_of_another_size_than_recorded(site, stuff, tmp_path):
    stuff()
    stuff.target.write_bytes(STUFF[:-1])
    text = message(stuff)
    assert text.startswith(f"{stuff.target}: has {SIZE - 1:,} bytes, downloads.json records {SIZE:,}; remove it and fetch")
    assert text.endswith(f"`cocolvis download --out {tmp_path} --only stuff --mirror {site.url}`")
    assert len(site.asked) == 1
    stuff.target.unlink()
    stuff()
    assert whole(stuff)


def test_files_that_somebody_put_there(site, stuff, tmp_path):
    stuff.target.parent.mkdir()
    stuff.target.write_bytes(STUFF)
    assert [(job.state, job.left) for job in plan(tmp_path, ["stuff"])] == [("there", 0)]
    assert stuff()[0].sha256 == hashlib.sha256(STUFF).hexdigest() and site.asked == []
    assert plan(tmp_path, ["stuff"])[0].finished
    (tmp_path / "downloads.json").unlink()
    stuff.target.write_bytes(STUFF[:-30])
    text = message(stuff)
    assert "no zip archive: it has no central" in text and "remove it and fetch it again" in text and stuff.target.exists()
    with zipfile.ZipFile(stuff.target, "w", zipfile.ZIP_LZMA) as packed:
        packed.writestr("stuff_train2017.json", "{}")
    text = message(stuff)
    assert "its member stuff_train2017.json is packed with LZMA, which is not read; pack the file again with Deflate" in text
    (tmp_path / "coco/val2017.zip").write_bytes(b"short")
    assert "has 5 bytes, the published file has" in message(plan, tmp_path)


def test_another_content_than_last_time_is_told(site, stuff):
    stuff()
    stuff.target.unlink()
    site.files["/stuff_trainval2017.zip"] = archive("new")
    lines = []
    stuff(note=lines.append)
    assert f"an earlier download had {hashlib.sha256(STUFF).hexdigest()}" in lines[-1]


def test_a_kill_between_record_and_name(site, stuff, monkeypatch):
    def crash(*names):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.os, "replace", lambda old, new: crash() if str(old).endswith(".part") else os.rename(old, new))
    with pytest.raises(KeyboardInterrupt):
        stuff()
    assert not stuff.target.exists() and stuff.part.read_bytes() == STUFF
    monkeypatch.undo()
    stuff(mirror=site.url)
    assert stuff.target.read_bytes() == STUFF and len(site.asked) == 1


def test_a_file_is_on_the_disk_before_it_has_its_name(stuff, monkeypatch):
    done = []
    monkeypatch.setattr("cocolvis.disk.files.write_aside", None)  # its syncs do not count
    monkeypatch.setattr(module, "write_json", lambda path, content: None)
    monkeypatch.setattr("cocolvis.downloads.transfer.write_json", lambda path, content: path.write_text(json.dumps(content)))
    for name, action in (("fsync", os.fsync), ("replace", os.replace)):
        monkeypatch.setattr(os, name, lambda *a, name=name, action=action: (done.append(name), action(*a)))
    monkeypatch.setattr(module, "sync_folder", lambda folder: done.append(folder))
    stuff()
    assert done == ["fsync", "replace", stuff.target.parent]


@pytest.mark.parametrize("content", ["{}", '{"files": [{"name": 1}]}', "[", '{"files": 3}'])
def test_a_record_that_is_none(tmp_path, content):
    (tmp_path / "downloads.json").write_text(content)
    assert str(tmp_path / "downloads.json") in message(plan, tmp_path)


def test_a_second_download_waits_outside(site, stuff, tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert "another download is running there" in message(stuff)
    os.close(handle)
    stuff()
    stuff.target.unlink()
    stuff()
    assert whole(stuff)


def test_places_that_cannot_be_written(site, tmp_path):
    (tmp_path / "coco").write_text("")
    text = message(download, tmp_path, ["stuff"], site.url, patience=QUICK)
    assert "cannot be written" in text and text.endswith("`")
    assert "cannot be written" in message(download, tmp_path / "coco", ["stuff"], site.url, patience=QUICK)


def test_a_disk_that_fills_up(site, stuff):
    begun(site, stuff)
    stuff.part.unlink()
    stuff.part.symlink_to("/dev/full")
    assert "No space left on device; go on with" in message(stuff) and len(site.asked) == 1


@contextmanager
def room(monkeypatch, size):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
        yield


def test_a_disk_that_is_too_small(site, stuff, tmp_path, monkeypatch):
    begun(site, stuff)
    arguments = ["download", "--out", str(tmp_path), "--mirror", site.url, "--only", "stuff", "--yes"]
    with room(monkeypatch, SIZE - 1001):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1 and "total" in result.stderr
        assert re.search(r"Error: .*\d kB are left to fetch and the disk has [0-9.]+ kB free; make room", result.stderr)
        assert "make room" in CliRunner().invoke(main, arguments[:-1]).stderr  # before it asks
        assert "make room" in message(stuff) and site.asked == []
    with room(monkeypatch, SIZE - 1000):
        assert CliRunner().invoke(main, arguments).exit_code == 0
    with room(monkeypatch, 0):
        assert stuff()


def test_the_command_says_what_it_costs_and_asks_for_a_terminal(site, tmp_path):
    out = tmp_path / "not" / "there"
    result = CliRunner().invoke(main, ["download", "--out", str(out), "--mirror", site.url])
    assert result.exit_code == 1 and not (tmp_path / "not").exists() and site.asked == [] and result.stdout == ""
    lines = result.stderr.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == [*(remote.file for remote in FILES), "total"]
    assert "left to fetch; the disk has" in lines[-2]
    assert lines[-1].startswith("Error: nothing was fetched") and "--yes" in lines[-1]


def test_the_command_prints_what_came(site, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "Patience", lambda: QUICK)
    arguments = ["download", "--out", str(tmp_path), "--mirror", site.url, "--only", "lvis-val", "--only", "stuff", "--yes"]
    site.script = site.cuts(1000)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert hashlib.sha256(STUFF).hexdigest() in result.stdout and "cocolvis build --coco" in result.stdout
    assert "trying again" in result.stderr and "download: " in result.stderr
    again = CliRunner().invoke(main, [*(word for word in arguments if word != "--yes"), "--json"])
    found = json.loads(again.stdout)
    assert found == {"out": str(tmp_path), **json.loads((tmp_path / "downloads.json").read_text())}
    assert "finished" in again.stderr and len(site.asked) == 3
    assert CliRunner().invoke(main, ["download", "--out", str(tmp_path), "--mirror", "x"]).exit_code == 1


def start(site, out, *extra, **settings):
    """The command in a process of its own, on the small table."""
    small = [(remote.name, remote.file, remote.url, remote.size, remote.exact) for remote in module.FILES]
    code = "import sys; from cocolvis import download as d; d.FILES = tuple(d.Remote(*r) for r in eval(sys.argv.pop(1)));"
    words = [sys.executable, "-c", f"{code} from cli.cocolvis import main; main()", repr(small)]
    words += ["download", "--out", str(out), "--mirror", site.url, "--only", "stuff", *extra]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **settings)


def stopped(site, stuff, how):
    """Start the command, stop it by a signal once 9000 bytes have come; its exit code and stderr."""
    site.script = [lambda handler: site.serve(handler, 9000, stall=True)]
    process = start(site, stuff.target.parents[1], "--yes")
    while process.poll() is None and not (stuff.part.exists() and stuff.part.stat().st_size):
        time.sleep(0.005)
    process.send_signal(how)
    stderr = process.communicate(timeout=60)[1]
    assert not stuff.target.exists() and 0 < stuff.part.stat().st_size <= 9000
    return process.returncode, stderr


def test_a_killed_download_fetches_only_the_rest(site, stuff):
    assert stopped(site, stuff, signal.SIGKILL)[0] == -signal.SIGKILL
    kept = stuff.part.stat().st_size
    second = start(site, stuff.target.parents[1], "--yes")
    assert second.communicate(timeout=60) and second.returncode == 0
    assert whole(stuff) and site.ranges == [None, f"bytes={kept}-"]


def test_ctrl_c_keeps_the_part(site, stuff):
    code, stderr = stopped(site, stuff, signal.SIGINT)
    assert code == 130 and "interrupted; what was fetched is kept; the same command continues from there\n" in stderr
    assert "--resume" not in stderr and "Traceback" not in stderr
    kept = stuff.part.stat().st_size
    stuff()
    assert whole(stuff) and site.ranges == [None, f"bytes={kept}-"]


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_terminal_is_asked(site, stuff, answer):
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    process = start(site, stuff.target.parents[1], stdin=theirs)
    stderr = process.communicate(timeout=60)[1]
    os.close(ours), os.close(theirs)
    assert "Fetch what is left? [y/N]:" in stderr
    assert process.returncode == (0 if answer == "y" else 1)
    assert stuff.target.exists() == bool(site.asked) == (answer == "y")
