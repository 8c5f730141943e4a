"""Fixtures of the download tests: a local server in place of the official ones."""

import pytest
from archive_server import CONTENT, Site, StuffDownload

from cocolvis.downloads import official
from cocolvis.downloads.official import ARCHIVES, Archive


@pytest.fixture
def site(monkeypatch):
    """A running server; the table of official archives describes what it holds."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    sizes = {entry.name: len(CONTENT[entry.name]) if entry.exact else 40_000 for entry in ARCHIVES}
    small = tuple(Archive(entry.name, entry.file, entry.url, sizes[entry.name], entry.exact) for entry in ARCHIVES)
    monkeypatch.setattr(official, "ARCHIVES", small)
    site = Site()
    yield site
    site.close()


@pytest.fixture
def stuff(site, tmp_path):
    """The download of the one archive whose size is not published."""
    return StuffDownload(site, tmp_path)
