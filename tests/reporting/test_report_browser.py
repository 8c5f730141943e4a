"""The report in a real browser: no request, no error, sorting and searching, both themes, small screens, accessibility."""

import numpy as np
import pytest
from browser import chromium, tab, until

NONE = "\u2013"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.long)])
def page(browser, reported, request):
    """The report, opened from the disk; fails the test if anything goes wrong in it, or if it requests anything."""
    problems, address = [], reported.path.as_uri()
    with tab(browser, "about:blank", viewport=WIDE, color_scheme=request.param) as found:
        found.on("pageerror", lambda error: problems.append(str(error)))
        found.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
        found.on("request", lambda one: None if one.url == address or one.url.startswith("data:") else problems.append(one.url))
        found.goto(address)
        yield found
    assert problems == []


def column(page, number: int) -> list[str]:
    cells = f"#table tbody tr:not([hidden]) > :nth-child({number})"
    return page.locator(cells).evaluate_all("cells => cells.map(cell => cell.dataset.value ?? cell.textContent)")


def numbers(texts: list[str]) -> np.ndarray:
    return np.array([np.nan if text == NONE else float(text.replace(",", "")) for text in texts])


CLICKED_TWICE = """
[...document.querySelectorAll("#table thead th")].map((header, column) => [1, 2].map(() => {
  header.querySelector("button").click();
  const rows = [...document.querySelectorAll("#table tbody tr")].map((row) => row.cells[column]);
  const marked = [...document.querySelectorAll("#table [aria-sort]")].map((one) => one.getAttribute("aria-sort"));
  return [header.querySelector("button").dataset.type, marked, rows.map((cell) => cell.dataset.value ?? cell.textContent)];
}))
"""
"""For each column and click: its type, the orders that are marked, and the texts of its cells."""


def test_every_column_sorts_both_ways_and_undefined_values_stay_last(page, reported):
    assert column(page, 2) == [str(c.id) for c in reported.dataset.vocabulary]
    before = [sorted(column(page, number)) for number in range(1, 10)]
    found = page.evaluate(CLICKED_TWICE)
    assert len(found) == 9 and [clicks[0][0] for clicks in found].count("text") == 3
    for texts, clicks in zip(before, found, strict=True):
        for (kind, marked, cells), first in zip(clicks, (True, False), strict=True):
            order = "ascending" if (kind == "text") == first else "descending"
            assert marked == [order] and sorted(cells) == texts
            if kind == "text":
                lowered = [text.lower() for text in cells]
                expected = page.evaluate("texts => texts.sort((a, b) => a.localeCompare(b, 'en'))", lowered)
                assert lowered == (expected if order == "ascending" else expected[::-1])
                continue
            values = numbers(cells)
            defined = values[~np.isnan(values)]
            assert np.isnan(values[len(defined) :]).all()
            assert (np.diff(defined) * (1 if order == "ascending" else -1) >= 0).all()
    page.locator("#table thead button", has_text="Number").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    assert column(page, 2) == [str(c.id) for c in reported.dataset.vocabulary]


def test_search_and_group_filter_the_table(page, reported):
    vocabulary = reported.dataset.vocabulary
    page.locator("#q").focus()
    page.keyboard.type("TREE")
    expected = {c.id for c in vocabulary.search("tree")}
    assert {int(text) for text in column(page, 2)} == expected and len(expected) > 1
    assert page.locator("#found").inner_text() == f"{len(expected)} of 1,284 classes"
    page.select_option("#group", "stuff")
    assert {int(text) for text in column(page, 2)} == {c for c in expected if vocabulary[c].group == "stuff"}
    page.locator("#table thead button").nth(6).click()
    assert {int(text) for text in column(page, 2)} == {c for c in expected if vocabulary[c].group == "stuff"}
    page.locator("#q").fill("no class has this name")
    assert column(page, 2) == [] and page.locator("#empty").is_visible()
    page.locator("#q").fill("")
    page.select_option("#group", "")
    assert len(column(page, 2)) == 1284 and not page.locator("#empty").is_visible()


def test_every_image_is_drawn_and_figures_are_enlarged_by_the_keyboard(page):
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator(".examples img").count() == 12 and page.locator(".enlarge").count() == 2
    page.locator(".enlarge").first.focus()
    page.keyboard.press("Enter")
    until(page, "document.getElementById('large').open")
    assert page.locator("#large img").evaluate("image => image.width === image.naturalWidth")
    page.keyboard.press("Escape")
    until(page, "!document.getElementById('large').open")
    (link,) = page.locator("a[download]").all()
    with page.expect_download() as downloading:
        link.click()
    assert downloading.value.suggested_filename == "curve.csv"
    assert downloading.value.path().read_text().splitlines()[:2] == ["x,y", "0,0.0"]


def test_the_colours_follow_the_system(browser, reported):
    colours = []
    for scheme in ("light", "dark"):
        with tab(browser, "about:blank", color_scheme=scheme) as page:
            page.goto(reported.path.as_uri())
            colours.append(page.evaluate("[document.body, document.querySelector('#table thead th')].map(part => "
                                         "getComputedStyle(part).backgroundColor)"))  # fmt: skip
    assert all(light != dark for light, dark in zip(*colours, strict=True))


def test_the_page_fits_the_width_of_a_phone(browser, reported):
    with tab(browser, "about:blank", viewport=NARROW) as page:
        page.goto(reported.path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_the_page_shows_everything_without_its_script(browser, reported):
    with tab(browser, "about:blank", java_script_enabled=False) as page:
        page.goto(reported.path.as_uri())
        assert page.locator("#table tbody tr:visible").count() == 1284 and page.locator(".chart").count() >= 1


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
def test_the_page_has_no_serious_violation_of_accessibility(browser, reported, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with tab(browser, "about:blank", viewport=WIDE, color_scheme=scheme, bypass_csp=True) as page:
        page.goto(reported.path.as_uri())
        page.evaluate("document.querySelectorAll('#table tbody tr:nth-child(n + 30)').forEach(row => row.remove())")
        found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []
