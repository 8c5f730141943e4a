"""Fetching an archive from a server that drops connections, ignores ranges, changes the file or falls silent."""

import json
import socket

import pytest
from archive_server import CONTENT, QUICK, SIZE, STUFF, archive, begun, hold, message, whole

from cocolvis.downloads.official import download, plan
from cocolvis.downloads.transfer import RetryPolicy


def test_dropped_connections_are_resumed(site, stuff):
    site.script = site.cuts(1000, 0, 0, 2000, 0, 0, 3000, 1, 1, 1)
    lines = []
    stuff(announce=lines.append)
    assert whole(stuff)
    starts = [1000, 1000, 1000, 3000, 3000, 3000, 6000, 6001, 6002, 6003]
    assert site.ranges == [None, *(f"bytes={start}-" for start in starts)]
    assert {request.valid for request in site.asked[1:]} == {'"1"'}
    assert lines[0] == f"stuff_trainval2017.zip: the connection ended at byte 1,000 of {SIZE:,}; trying again in 0 s"


def test_attempts_without_a_new_byte_are_counted(site, stuff, tmp_path):
    site.script = site.cuts(1000, 0, 0, 0)
    text = message(stuff)
    assert "3 consecutive attempts brought nothing new; 1,000 bytes are kept in" in text
    command = f"`cocolvis download --out {tmp_path} --only stuff --mirror {site.url}`"
    assert text.endswith(f"continue with {command}") and len(site.asked) == 4
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


def test_a_server_that_ignores_ranges_and_drops_every_connection_is_given_up(site, stuff):
    site.script = [lambda handler: site.serve(handler, 1000, ranges=False)] * 9
    assert "nothing new" in message(stuff) and len(site.asked) == 4


def test_a_connection_that_drops_after_a_new_beginning_keeps_the_new_bytes(site, tmp_path):
    """The size is published, so the old bytes were not set aside."""
    content, part = CONTENT["val2017"], tmp_path / "coco/val2017.zip.part"
    for size, ranges in ((1000, True), (500, False)):
        site.script = [lambda handler, cut=size, ranges=ranges: site.serve(handler, cut, ranges), site.status(404)]
        assert "404" in message(download, tmp_path, ["val2017"], site.url, policy=QUICK)
        assert part.read_bytes() == content[:size]
    download(tmp_path, ["val2017"], site.url, policy=QUICK)
    assert (tmp_path / "coco/val2017.zip").read_bytes() == content
    assert site.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=500-", "bytes=500-"]


def test_the_bytes_of_a_new_version_count_from_its_beginning(site, stuff):
    begun(site, stuff, 10_000)
    site.files["/stuff_trainval2017.zip"], site.etag = archive("new"), '"2"'
    site.script = site.cuts(*[1000] * 8)
    stuff()
    assert whole(stuff, archive("new")) and site.ranges == [f"bytes={have}-" for have in (10_000, *range(1000, 9000, 1000))]


def test_a_server_that_always_begins_again_is_given_up(site, stuff):
    """Each answer is of another version, as from machines that do not agree, and every second one has more bytes."""

    def answer(handler):
        site.etag = f'"{len(site.asked)}"'
        site.serve(handler, 500 + 500 * (len(site.asked) % 2))

    site.script = [answer] * 20
    assert "; the server began the file again 3 times; 500 bytes are kept in " in message(stuff)
    assert len(site.asked) == 6


def test_two_versions_of_a_file_are_never_mixed(site, stuff):
    begun(site, stuff)
    site.files["/stuff_trainval2017.zip"], site.etag = archive("new"), '"2"'
    stuff()
    assert whole(stuff, archive("new")) and [request.valid for request in site.asked] == ['"1"']


@pytest.mark.parametrize("stale", [{"ETag": '"2"'}, {"Last_Modified": "Thu, 22 Oct 2015 07:28:00 GMT"}], ids=str)
def test_a_server_that_ignores_if_range_is_detected(site, stuff, stale):
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
    stuff(announce=lines.append)
    assert whole(stuff) and site.ranges == ["bytes=1000-", None]
    assert "answers 206 with an unexpected range; requesting the whole file" in lines[0]


def test_a_range_that_was_not_requested_starts_over(site, stuff):
    site.script = [lambda handler: site.headers(handler, 206, Content_Range="bytes 5-9/10", Content_Length=5)]
    stuff()
    assert whole(stuff) and site.ranges == [None, None]


def test_a_complete_file_of_unknown_size_is_recognized(site, stuff):
    hold(stuff, STUFF, url=f"{site.url}/stuff_trainval2017.zip", bytes=None)
    stuff()
    assert whole(stuff) and site.ranges == [f"bytes={SIZE}-"]


def test_a_complete_file_needs_no_request(site, stuff):
    hold(stuff, STUFF, url=f"{site.url}/stuff_trainval2017.zip", etag=None)
    stuff()
    assert whole(stuff) and site.ranges == []


@pytest.mark.parametrize("size", [None, 99_999])
def test_a_partial_file_larger_than_the_file_starts_over(site, stuff, size):
    hold(stuff, STUFF + b"more", url=f"{site.url}/stuff_trainval2017.zip", bytes=size)
    stuff()
    assert whole(stuff) and site.ranges == [f"bytes={SIZE + 4}-", None]


def test_a_416_with_another_size_starts_over(site, stuff):
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
def test_bytes_of_an_unconfirmed_version_are_not_continued(site, stuff, changes):
    hold(stuff, STUFF[:100], **{"url": f"{site.url}/stuff_trainval2017.zip", **changes})
    assert plan(stuff.target.parents[1], ["stuff"], site.url)[0].have == 0
    stuff()
    assert whole(stuff) and site.ranges == [None]


def test_the_date_confirms_the_version_when_the_etag_is_weak(site, stuff):
    site.etag = 'W/"1"'
    begun(site, stuff)
    stuff()
    assert whole(stuff) and [(request.range, request.valid) for request in site.asked] == [("bytes=1000-", site.modified)]


def test_a_version_without_bytes_and_bytes_without_a_version_start_over(site, stuff):
    hold(stuff, b"", url=f"{site.url}/stuff_trainval2017.zip")
    begun(site, stuff)
    stuff.version.unlink()
    stuff()
    assert whole(stuff) and site.ranges == [None]


def test_a_partial_file_is_emptied_before_its_version_is_recorded(site, stuff, monkeypatch):
    begun(site, stuff)
    site.files["/stuff_trainval2017.zip"], site.etag = archive("new"), '"2"'

    def crash(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr("cocolvis.downloads.transfer.write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        stuff()
    monkeypatch.undo()
    assert stuff.part.read_bytes() == b"" and json.loads(stuff.version.read_text())["etag"] == '"1"'


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_refusal_is_final(site, stuff, code):
    site.script = [site.status(code)]
    text = message(stuff)
    assert f"the server answers {code}" in text and "--mirror" in text and str(stuff.target) in text
    assert len(site.asked) == 1


def test_server_errors_are_retried(site, stuff):
    site.script = [site.status(500), site.status(503)]
    stuff()
    assert whole(stuff) and len(site.asked) == 3
    site.script = [site.status(503)] * 3
    stuff.target.unlink()
    assert "the server answers 503 Service Unavailable; 3 consecutive attempts" in message(stuff)


def test_a_silent_server_times_out_and_is_retried(site, stuff):
    site.script = [lambda handler: site.serve(handler, 1000, stall=True), lambda handler: site.closing.wait(10)]
    lines = []
    stuff(policy=RetryPolicy(attempts=3, backoff=0.001, timeout=0.2), announce=lines.append)
    assert ["timed out" in line for line in lines] == [True, True, False]
    assert whole(stuff) and site.ranges == [None, "bytes=1000-", "bytes=1000-"]


def test_garbage_instead_of_http_is_retried(site, stuff):
    site.script = [lambda handler: handler.wfile.write(b"go away\r\n\r\n")]
    stuff()
    assert whole(stuff)
