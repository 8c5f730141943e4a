"""Responses that are too long, too short, encoded, redirected, or not an archive: refused without losing good bytes."""

import pytest
from archive_server import CONTENT, QUICK, SIZE, STUFF, archive, begun, chunked, message, raw, whole

from cocolvis.downloads import transfer
from cocolvis.downloads.official import download


def test_a_length_that_is_too_large_is_given_up(site, stuff):
    site.script = [lambda handler: site.serve(handler, length=SIZE + 9)] * 9
    assert "nothing new" in message(stuff) and not stuff.target.exists()
    assert site.ranges[:3] == [None, f"bytes={SIZE}-", None]


def test_a_length_that_is_too_small_leaves_no_archive(site, stuff):
    site.script = [lambda handler: site.serve(handler, length=SIZE - 9)]
    text = message(stuff)
    assert f"has {SIZE - 9:,} bytes and is not a zip archive: it has no central directory at its end" in text
    assert "it was removed" in text
    assert not list(stuff.target.parent.iterdir()) and not (stuff.target.parents[1] / "downloads.json").exists()


def test_a_length_other_than_published_is_refused_without_losing_bytes(site, tmp_path):
    size, target = len(CONTENT["val2017"]), tmp_path / "coco/val2017.zip.part"
    site.script = [*site.cuts(1000), site.status(404)]
    message(download, tmp_path, ["val2017"], site.url, policy=QUICK)
    site.files["/val2017.zip"], site.etag = archive("new", 99), '"2"'
    text = message(download, tmp_path, ["val2017"], site.url, policy=QUICK)
    assert f"offers {len(archive('new', 99))} bytes, but the published file has {size:,}" in text
    assert target.read_bytes() == CONTENT["val2017"][:1000] and len(site.asked) == 3


def test_a_web_page_is_refused_without_losing_bytes(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=False, Content_Type="text/html; charset=utf-8")]
    assert "a web page instead of the file" in message(stuff)
    assert stuff.part.read_bytes() == STUFF[:1000]


def test_a_response_of_unknown_length(site, stuff, tmp_path):
    site.script = [chunked(site, STUFF)]
    stuff()
    assert whole(stuff)
    content = CONTENT["val2017"]
    site.script = [chunked(site, content[:9000])]
    download(tmp_path, ["val2017"], site.url, policy=QUICK)
    assert (tmp_path / "coco/val2017.zip").read_bytes() == content and site.ranges[-1] == "bytes=9000-"
    site.script = [chunked(site, CONTENT["lvis-val"] + b"more")]
    assert "sends more than the" in message(download, tmp_path, ["lvis-val"], site.url, policy=QUICK)
    assert not list((tmp_path / "lvis").iterdir())


def endless(site, start=b"", size=2**24):
    """(name, response) of 4 ways to send ``size`` bytes after ``start``."""
    block, last = bytes(2**16), SIZE - 1
    blocks = [start, *[block] * (size // len(block))]
    span = f"bytes 1000-{last}/{SIZE}"
    yield "chunked", chunked(site, start + bytes(size))
    yield "no length", raw(site, *blocks)
    yield "a range, no length", raw(site, STUFF[1000:], *blocks, status=206, Content_Range=span)
    yield "a range, too long", raw(site, STUFF[1000:], *blocks, status=206, Content_Range=span, Content_Length=size)


@pytest.mark.parametrize("way", range(4))
def test_no_more_is_written_than_the_file_has_and_good_bytes_stay(site, stuff, way, monkeypatch):
    begun(site, stuff)
    sizes, copy = [], transfer.__dict__["_copy"]

    def watched(*arguments):
        try:
            copy(*arguments)
        finally:
            sizes.append(stuff.part.stat().st_size)

    monkeypatch.setitem(transfer.__dict__, "_copy", watched)
    site.script = [list(endless(site, b"PK\3\4"))[way][1]]
    text = message(stuff)
    most = 2 * 40_000 + 2**20 if way < 2 else SIZE
    assert f"sends more than the {most:,} bytes of the file; choose another server" in text and sizes == [most]
    assert stuff.part.read_bytes() == STUFF[:1000] and {p.name for p in stuff.part.parent.iterdir()} == {
        stuff.part.name,
        stuff.version.name,
    }
    stuff()
    assert whole(stuff) and site.ranges[-1] == "bytes=1000-"


def test_a_published_size_limits_responses_with_and_without_a_length(site, tmp_path):
    content = CONTENT["val2017"]
    site.script = [chunked(site, content + bytes(2**22))]
    text = message(download, tmp_path, ["val2017"], site.url, policy=QUICK)
    assert f"sends more than the {len(content):,} bytes of the file" in text and not list((tmp_path / "coco").iterdir())
    site.script = [raw(site, b"PK", Content_Length=2**40)]
    assert "at most 1,128,576 are accepted for this file" in message(download, tmp_path, ["stuff"], site.url, policy=QUICK)
    assert not list((tmp_path / "coco").iterdir())


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "identity, gzip", "x"])
@pytest.mark.parametrize("ranges", [True, False])
def test_an_encoded_response_is_refused_without_losing_bytes(site, stuff, coding, ranges):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=ranges, Content_Encoding=coding)]
    assert f"with the Content-Encoding '{coding}', which was not requested" in message(stuff)
    assert stuff.part.read_bytes() == STUFF[:1000] and len(site.asked) == 1
    site.script = [lambda handler: site.serve(handler, Content_Encoding="Identity")]
    stuff()
    assert whole(stuff) and site.asked[-1].encoding == "identity"


def test_a_response_other_than_an_archive_is_refused_without_losing_bytes(site, stuff):
    begun(site, stuff)
    site.script = [raw(site, b'{"error": "log in"}', Content_Type="application/json"), site.status(404)]
    assert "sends something other than a zip archive" in message(stuff) and stuff.part.read_bytes() == STUFF[:1000]


def test_a_wrong_range_followed_by_a_refusal_loses_no_bytes(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, Content_Range="bytes 0-9/10"), site.status(404)]
    assert "404" in message(stuff) and site.ranges == ["bytes=1000-", None]
    assert stuff.part.read_bytes() == STUFF[:1000]


def test_a_broken_archive_restores_the_good_bytes(site, stuff):
    begun(site, stuff)
    site.script = [lambda handler: site.serve(handler, ranges=False, length=SIZE - 9)]
    text = message(stuff)
    assert "no central directory at its end" in text and "1,000 bytes received before are kept" in text
    stuff()
    assert whole(stuff) and site.ranges == ["bytes=1000-", "bytes=1000-"]


def test_redirects_are_followed_with_the_range(site, stuff):
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


def test_redirect_loops_and_nonsense_end_with_one_line(site, stuff):
    site.script = [site.status(302, Location="/stuff_trainval2017.zip")] * 20
    assert "infinite loop" in message(stuff)
    site.script = [site.status(302, Location="http://[x/")] * 3
    assert "no connection" in message(stuff)
