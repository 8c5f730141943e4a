"""The explorer in a real browser: search, filters, the name under the pointer, the keyboard, both themes, and accessibility."""

import re
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from browser import chromium, explorer, tab, until, wait_until_ready
from predictions import new_classes, write_data, write_predictions
from slow_server import in_two_parts

from cocolvis.storage.dataset import Dataset
from cocolvis.vocabulary import Vocabulary

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def site(sample, predictions, tmp_path_factory, browser):
    """The address of an explorer over the sample, its predictions and its annotations, once it is ready."""
    sources = ["--coco", sample.coco, "--lvis", sample.lvis, "--predictions", predictions]
    with explorer(sample.data, *sources, cache=tmp_path_factory.mktemp("cache")) as address:
        with tab(browser, address) as page:
            wait_until_ready(page, "shifted")
        yield address


@pytest.fixture
def page(browser, site):
    """A page that fails the test if anything goes wrong in it."""
    problems: list[str] = []
    with tab(browser, site, viewport=WIDE) as found:
        found.on("pageerror", lambda error: problems.append(str(error)))
        found.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        found.on("requestfinished", lambda one: None if one.url.startswith(site) else problems.append(one.url))
        yield found
    assert [problem for problem in problems if "404" not in problem] == []


@pytest.fixture(scope="module")
def shown(dataset):
    """The image of val with the most classes."""
    split = dataset.split("val")
    return max(map(split.__getitem__, range(len(split))), key=lambda sample: len(np.unique(sample.mask)))


@pytest.fixture(scope="module")
def many(tmp_path_factory, browser):
    """The address of an explorer over one image of 2500 classes and two runs, to each of which another class was added."""
    folder = tmp_path_factory.mktemp("many")
    images = [(1, "1.jpg", np.arange(1, 2501, dtype=np.uint16).reshape(50, 50))]
    vocabulary = Vocabulary(new_classes(f"thing{number:05d}" for number in range(2500)))
    data = Dataset.open(write_data(folder / "data", "val", images, vocabulary))
    runs = [
        write_predictions(data, folder / added, lambda _, mask: np.full_like(mask, 2501), added=(added,))
        for added in ("unicorn", "dragon")
    ]
    with explorer(data.folder, "--predictions", runs[0], "--predictions", runs[1], cache=folder / "cache") as address:
        with tab(browser, address) as page:
            wait_until_ready(page, "unicorn", "dragon")
        yield address


def query(page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def visible_classes(page) -> list[str]:
    return page.locator("#classes tbody tr:not([hidden]) th a").all_text_contents()


def test_typing_filters_the_classes_and_the_address_follows(page, dataset):
    page.goto("/classes")
    page.keyboard.press("/")
    page.keyboard.type("tree")
    expected = {c.name for c in dataset.vocabulary.search("tree")}
    until(page, f"document.querySelectorAll('#classes tbody tr:not([hidden])').length === {len(expected)}")
    assert {*visible_classes(page)} == expected and query(page)["q"] == ["tree"]
    assert page.locator("#found").inner_text().startswith(f"{len(expected)} of")
    page.reload()
    assert {*visible_classes(page)} == expected
    page.locator("#q").press("ArrowDown")
    first = visible_classes(page)[0]
    assert page.evaluate("document.activeElement.textContent") == first
    page.keyboard.press("Enter")
    page.wait_for_url("**/pictures?**")
    assert query(page)["all"] == [first]


def test_what_is_typed_stays_when_the_list_is_sorted_and_what_is_cleared_stays_away(page, dataset):
    page.goto("/classes")
    page.locator("#q").press_sequentially("tree ")
    page.get_by_role("link", name="Name", exact=True).click()
    page.wait_for_url("**sort=name**")
    found = {c.name for c in dataset.vocabulary.search("tree")}
    assert query(page)["q"] == ["tree"] and {*visible_classes(page)} == found
    page.locator("#q").fill("")
    page.select_option("select[name=kind]", "thing")
    page.wait_for_url("**kind=thing**")
    assert "q" not in query(page) and len(visible_classes(page)) > len(found)


def test_rows_far_from_the_window_cost_nothing_and_can_still_be_reached(page, dataset):
    drawn = "row => row.checkVisibility({contentVisibilityAuto: true})"
    page.goto("/classes")
    rows = page.locator("#classes tbody tr")
    assert rows.count() == len(dataset.vocabulary) and rows.first.evaluate(drawn) and not rows.last.evaluate(drawn)
    last = rows.last.locator("a").text_content()
    page.locator("#q").fill(last)
    assert last in visible_classes(page) and rows.last.locator("a").bounding_box()["y"] < WIDE["height"]
    page.locator("#q").fill("")
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    until(page, "[...document.querySelectorAll('#classes tr')].at(-1).checkVisibility({contentVisibilityAuto: true})")


def test_a_screen_reader_hears_a_table_with_a_row_for_every_class(page, dataset):
    page.goto("/classes")
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = [node["role"]["value"] for node in tree if not node["ignored"]]
    assert roles.count("table") == 1 and roles.count("columnheader") == 5
    assert roles.count("row") == 1 + roles.count("rowheader") == 1 + len(dataset.vocabulary)


def test_menus_and_suggestions_change_what_is_shown(page, workspace):
    page.goto("/classes")
    page.select_option("select[name=group]", "stuff")
    page.wait_for_url("**group=stuff**")
    assert len(visible_classes(page)) == sum(c.group == "stuff" for c in workspace.vocabulary)
    page.goto("/pictures")
    before = page.locator(".head .sub").inner_text()
    page.locator("#add").press_sequentially("tre")
    page.wait_for_selector("[role=option]")
    assert page.locator("#add").get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    chosen = page.locator("[role=option][aria-selected=true] span").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_url("**all=**")
    assert query(page)["all"] == [chosen] and page.locator(".chips li").count() == 1
    assert page.locator(".head .sub").inner_text() != before
    page.get_by_label(f"Remove {chosen}").click()
    until(page, "!document.querySelector('.chips')")


def test_suggestions_that_were_closed_cannot_be_chosen(page):
    page.goto("/pictures")
    page.locator("#add").press_sequentially("tre")
    page.wait_for_selector("[role=option]")
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowDown")
    assert page.locator("#add").get_attribute("aria-activedescendant") is None and page.locator("#add").input_value() == "tre"


def test_names_complete_themselves_once_the_server_answers_again(browser, site):
    with tab(browser, site) as page:
        page.route("**/names.json", lambda route: route.abort())
        page.goto("/pictures")
        with page.expect_event("requestfailed"):
            page.locator("#add").press_sequentially("tr")
        page.unroute("**/names.json")
        page.locator("#add").press_sequentially("e")
        page.wait_for_selector("[role=option]")
        assert "tre" in page.locator("[role=option]").first.inner_text()


def test_a_search_among_very_many_classes_is_answered_by_the_server(browser, many):
    with tab(browser, many) as page:
        page.goto("/classes")
        page.locator("#q").fill("thing02400")
        assert page.locator("#found").inner_text() == "2,500 of 2,500" and page.locator("#empty").is_hidden()
        page.keyboard.press("Enter")
        page.wait_for_url("**/classes?q=thing02400")
        assert visible_classes(page) == ["thing02400"] and page.locator("#found").inner_text() == "1 of 2,500"
        page.locator("#q").press("Enter")
        page.wait_for_url("**/pictures?all=thing02400")


def test_each_prediction_names_the_classes_that_were_added_to_its_run(browser, many):
    with tab(browser, many, viewport=WIDE) as page:
        page.goto("/picture/val/1")
        page.wait_for_selector(".stage[data-loaded] >> nth=2")
        page.locator(".stage").first.focus()
        shown = "x 25, y 25 · Labels: thing01275 · unicorn: unicorn · dragon: dragon"
        until(page, f"document.getElementById('under').textContent === '{shown}'")
        assert page.locator(".tag").all_inner_texts() == ["thing01275", "unicorn", "dragon"]
        page.keyboard.down("n")
        until(page, "!document.querySelector('.names').hidden")
        assert [part.locator(".name").all_inner_texts() for part in page.locator(".stage").all()][1:] == [
            ["unicorn"],
            ["dragon"],
        ]


def test_the_name_under_the_pointer_is_the_class_that_the_mask_holds(page, shown, workspace):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded] >> nth=1")
    stage = page.locator(".stage").first
    box, (height, width) = stage.bounding_box(), shown.mask.shape
    for x, y in [(1, 1), (width // 2, height // 2), (width - 2, height // 3), (width // 5, height - 2)]:
        page.mouse.move(box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height)
        until(page, f"document.getElementById('under').textContent.startsWith('x {x}, y {y} ')")
        truth, predicted = (one.mask[y, x] for one in (shown, workspace.runs["shifted"].dataset.find(shown.image_id)))
        expected = (
            f"x {x}, y {y} · Labels: {workspace.vocabulary.name(truth)} · shifted: {workspace.vocabulary.name(predicted)}"
        )
        assert page.locator("#under").inner_text() == expected
        assert stage.locator(".tag").inner_text() == workspace.vocabulary.name(truth)
        if truth:
            colour = [int(workspace.catalog.colours[truth][i : i + 2], 16) for i in (1, 3, 5)]
            assert (
                stage.locator(".tag").evaluate("part => part.style.background") == f"rgb({colour[0]}, {colour[1]}, {colour[2]})"
            )


def test_the_canvas_shows_the_mask_in_the_colours_of_its_classes(page, shown, workspace):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded]")
    page.wait_for_timeout(100)
    drawn = page.locator("canvas").first.evaluate(
        "part => [...part.getContext('2d').getImageData(0, 0, part.width, part.height).data]"
    )
    pixels, mask = np.array(drawn).reshape(*shown.mask.shape, 4), shown.mask
    inside = np.zeros(mask.shape, bool)  # not at a border, which is darker
    inside[:-1, :-1] = (mask[:-1, :-1] == mask[1:, :-1]) & (mask[:-1, :-1] == mask[:-1, 1:])
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in workspace.catalog.colours])
    assert (pixels[inside & (mask > 0)][:, :3] == colours[mask[inside & (mask > 0)]]).all()
    assert (pixels[inside & (mask == 0)][:, 3] == 0).all() and inside.any()


def test_the_keyboard_moves_the_pointer_zooms_outlines_and_names(page, shown, workspace):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded]")
    page.locator(".stage").first.focus()
    height, width = shown.mask.shape
    for key in ("ArrowLeft", "Shift+ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    x, y = width // 2 - 11, height // 2 - 1
    until(page, f"document.getElementById('under').textContent.startsWith('x {x}, y {y} ')")
    page.keyboard.down("n")
    page.wait_for_selector(".name >> nth=0")
    named = {*page.locator(".stage >> nth=0").locator(".name").all_text_contents()}
    assert named and named <= {workspace.vocabulary.name(c) for c in np.unique(shown.mask) if c}
    page.keyboard.up("n")
    until(page, "document.querySelector('.names').hidden")
    page.keyboard.press("+")
    page.keyboard.press("o")
    page.wait_for_url("**outline=**")
    state = query(page)
    assert state["outline"] == [workspace.vocabulary.name(shown.mask[y, x])] and float(state["zoom"][0]) == 1.5
    page.reload()
    page.wait_for_selector(".stage[data-loaded]")
    assert page.locator("#outline").get_attribute("aria-pressed") == "true"
    assert "scale(1.5)" in page.locator(".layers").first.evaluate("part => part.style.transform")
    page.locator(".stage").first.focus()
    page.keyboard.press("Escape")
    page.keyboard.press("0")
    until(page, "!location.search.includes('outline') && !location.search.includes('zoom')")


def test_a_click_tells_which_annotation_a_pixel_came_from(page, shown, workspace):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded]")
    y, x = np.argwhere(shown.mask > 0)[0].tolist()
    box, (height, width) = page.locator(".stage").first.bounding_box(), shown.mask.shape
    page.mouse.click(box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height)
    page.wait_for_selector("#why .shows")
    assert page.locator("#why .shows").inner_text().startswith(workspace.vocabulary.name(shown.mask[y, x]))


def place_of(page, mask: np.ndarray, y: int, x: int) -> tuple[float, float]:
    """The middle of a pixel of the first pane, in CSS pixels of the window."""
    box, (height, width) = page.locator(".stage").first.bounding_box(), mask.shape
    return box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height


def test_only_the_left_button_asks_for_annotations_and_only_the_last_answer_is_shown(page, shown):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded]")
    earlier, later = np.argwhere(shown.mask > 0)[[0, -1]].tolist()
    page.mouse.click(*place_of(page, shown.mask, *earlier), button="right")
    assert page.locator("#why").inner_text() == "Click a pixel, or press Enter at the pointer."
    waiting = []
    page.route("**/why.json?*", lambda route: route.continue_() if waiting else waiting.append(route))
    for pixel in (earlier, later):
        page.mouse.click(*place_of(page, shown.mask, *pixel))
        page.wait_for_timeout(500)  # two clicks, not a double one
    page.wait_for_selector("#why .shows")
    with page.expect_response("**/why.json?*") as answer:
        waiting[0].continue_()
    answer.value.finished()
    page.wait_for_timeout(100)
    assert page.locator("#why p").inner_text().startswith(f"x {later[1]}, y {later[0]}: ")


@pytest.mark.parametrize("answer", [{"status": 500, "body": "Internal Server Error"}, None])
def test_a_server_that_fails_to_explain_a_pixel_is_reported(browser, site, shown, answer):
    with tab(browser, site) as page:
        page.route("**/why.json?*", lambda route: route.fulfill(**answer) if answer else route.abort())
        page.goto(f"/picture/val/{shown.image_id}")
        page.wait_for_selector(".stage[data-loaded]")
        page.locator(".stage").first.focus()
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#why').textContent.endsWith('did not answer; it has ended or failed.')")
        assert page.locator("#why").inner_text().endswith("the explorer did not answer; it has ended or failed.")


def test_a_press_ends_where_its_button_is_released(page, shown):
    page.goto(f"/picture/val/{shown.image_id}")
    page.wait_for_selector(".stage[data-loaded]")
    height, width = shown.mask.shape
    page.mouse.move(*place_of(page, shown.mask, height // 2, width // 2))
    page.mouse.down()
    page.mouse.move(2, 2)
    page.mouse.up()
    page.locator(".stage").first.focus()
    page.keyboard.press("+")
    page.wait_for_url("**zoom=1.50**")
    before = page.locator(".layers").first.evaluate("part => part.style.transform")
    x, y = width // 4, height // 4
    page.mouse.move(*place_of(page, shown.mask, y, x))
    page.wait_for_timeout(100)
    assert page.locator(".layers").first.evaluate("part => part.style.transform") == before


def test_predictions_are_beside_the_labels_and_a_confusion_leads_to_them(page):
    page.goto("/confusion")
    page.locator("table.list tbody a", has_text="pictures").first.click()
    page.wait_for_url("**/pictures?**truth=**")
    page.locator(".gallery a").first.click()
    page.wait_for_url("**/picture/**")
    page.wait_for_selector(".stage[data-loaded] >> nth=1")
    assert page.locator("figcaption").all_text_contents()[0].strip() == "Labels"
    assert re.fullmatch(r"\s*shifted\s+mIoU \d+\.\d\s*", page.locator("figcaption").all_text_contents()[1])


def test_the_menu_of_a_confusion_offers_only_runs_that_know_its_classes(browser, many):
    with tab(browser, many, viewport=WIDE) as page:
        page.goto("/pictures?run=unicorn&truth=thing00000&predicted=unicorn")
        assert page.locator("select[name=run] option").all_inner_texts() == ["unicorn"]
        page.goto("/pictures?run=unicorn&truth=thing00000&predicted=thing00001")
        assert page.locator("select[name=run] option").all_inner_texts() == ["unicorn", "dragon"]
        page.select_option("select[name=run]", "dragon")
        page.wait_for_url("**run=dragon**")
        assert page.locator("h1").inner_text() == "thing00000 taken for thing00001"


def test_o_outlines_the_class_of_the_pane_in_which_it_is_pressed(browser, many):
    with tab(browser, many, viewport=WIDE) as page:
        page.goto("/picture/val/1")
        page.wait_for_selector(".stage[data-loaded] >> nth=2")
        page.locator(".stage").nth(0).focus()
        page.keyboard.press("o")
        until(page, "document.getElementById('outline').textContent === 'Outline: thing01275'")
        page.keyboard.press("o")
        until(page, "document.getElementById('outline').textContent === 'Outline'")
        page.locator(".stage").nth(1).focus()
        page.keyboard.press("o")
        until(page, "location.search.includes('outline=')")
        assert query(page)["outline"][0].startswith("unicorn")


def test_an_unknown_picture_is_a_404_page(page):
    answer = page.goto("/picture/val/424242424")
    assert answer.status == 404 and page.locator("h1").inner_text() == "Not found"
    assert "no image 424242424" in page.locator("main").inner_text()


def test_the_first_visit_waits_for_the_catalog_and_then_shows_the_page(browser, sample_dataset, tmp_path):
    with explorer(sample_dataset, cache=tmp_path) as address, tab(browser, address) as page:
        page.goto("/pictures")
        page.wait_for_selector(".gallery img")
        assert page.locator(".gallery img").count() > 1


PAGES = ["/classes", "/pictures?all={name}", "/picture/val/{id}", "/confusion", "/about", "/nothing"]


@pytest.mark.parametrize("address", PAGES)
def test_pages_fit_the_width_of_a_phone_and_nothing_moves_while_they_arrive(browser, site, shown, workspace, address):
    name = workspace.vocabulary.name(int(np.bincount(shown.mask.ravel())[1:].argmax()) + 1)
    for viewport in (NARROW, WIDE):
        with in_two_parts(site) as slow, tab(browser, slow, viewport=viewport) as page:
            page.add_init_script(
                "window.moved = 0; const add = (list) => list.getEntries().forEach((one) => { window.moved += one.value; });"
                "new PerformanceObserver(add).observe({ type: 'layout-shift', buffered: true })"
            )
            page.goto(address.format(id=shown.image_id, name=name), wait_until="networkidle")
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
            assert page.evaluate("window.moved") < 0.02


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.long)])
@pytest.mark.parametrize("address", PAGES)
def test_no_page_has_a_serious_violation_of_accessibility(browser, site, shown, workspace, address, scheme):
    from axe_playwright_python.sync_playwright import Axe

    name = workspace.vocabulary.name(int(np.bincount(shown.mask.ravel())[1:].argmax()) + 1)
    with tab(browser, site, viewport=WIDE, color_scheme=scheme, bypass_csp=True) as page:
        query = "?q=tree" if address == "/classes" else ""
        page.goto(address.format(id=shown.image_id, name=name) + query, wait_until="networkidle")
        found = [one for one in Axe().run(page).response["violations"] if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found] == []


def test_the_theme_follows_the_system_until_it_is_chosen(browser, site):
    with tab(browser, site, color_scheme="dark") as page:
        page.goto("/about")
        colour = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(colour)
        page.locator("#theme").click()
        light = page.evaluate(colour)
        assert dark != light and page.locator("#theme").inner_text() == "Light"
        page.goto("/classes?q=tree")
        assert page.evaluate(colour) == light


def test_every_page_works_before_its_scripts_run(browser, site, shown):
    with tab(browser, site, java_script_enabled=False) as page:
        page.goto("/classes?q=tree")
        assert page.locator("#classes tbody tr:visible").count() > 0
        page.locator("#classes tbody tr:visible a").first.click()
        page.wait_for_selector("h1:has-text('Pictures')")
        page.goto(f"/picture/val/{shown.image_id}")
        assert page.locator(".in-picture tbody tr").count() > 0 and page.locator(".stage img").first.is_visible()
