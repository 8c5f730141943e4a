"""Every page and its JSON twin: what they say is what the data set holds, and no request harms the server."""

import html
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from asgi import get
from instances import without_instances

from cocolvis.explorer.pictures import sampled
from cocolvis.explorer.site.app import application, listen
from cocolvis.explorer.workspace import Workspace
from cocolvis.masks.runlength import Runs
from cocolvis.palette import palette
from cocolvis.storage.dataset import Dataset

HELPERS = Path(__file__).parent / "helpers"

ADDRESSES = [
    "/",
    "/classes?q=tree&bars=pixels&sort=least&group=stuff&split=val",
    "/classes?bars=iou",
    "/classes?bars=instances&kind=thing",
    "/pictures",
    "/pictures?all=tree&sort=area&page=1&mark=no",
    "/pictures?run=shifted&sort=worst",
    "/confusion",
    "/confusion?group=stuff",
    "/about",
]


@pytest.fixture(scope="module")
def shown(dataset):
    """A sample of val with several classes."""
    split = dataset.split("val")
    return max(map(split.__getitem__, range(len(split))), key=lambda sample: len(np.unique(sample.mask)))


@pytest.mark.parametrize("address", ADDRESSES)
def test_every_page_is_there_and_so_is_its_twin(app, address):
    page = get(app, address)
    assert page.status == 200 and page.headers["content-type"].startswith("text/html") and "<h1>" in page.text
    twin = get(app, re.sub(r"^/(\w*)", lambda found: f"/{found[1] or 'classes'}.json", address))
    assert twin.status == 200 and twin.headers["content-type"] == "application/json" and twin.json


def test_the_links_of_every_page_lead_somewhere(app, shown):
    waiting, seen = {*ADDRESSES, f"/picture/val/{shown.image_id}"}, Counter()

    def kind(address: str) -> str:
        return address.partition("?")[0].split("/")[1]

    done: set[str] = set()
    while waiting and len(done) < 70:
        address = min(waiting, key=lambda address: (seen[kind(address)], address))
        waiting.remove(address)
        done.add(address)
        seen[kind(address)] += 1
        page = get(app, address)
        assert page.status in (200, 303), address
        if page.headers.get("content-type", "").startswith("text/html"):
            links = {html.unescape(link) for link in re.findall(r'(?:href|src|data-source)="(/[^"]*)"', page.text)}
            waiting |= links - done
    assert {*seen} == {"", "classes", "pictures", "picture", "confusion", "about", "static", "thumbnails"}


def test_classes_are_counted_filtered_and_sorted(app, dataset):
    rows = get(app, "/classes.json").json["rows"]
    assert len(rows) == 1284 and rows == sorted(rows, key=lambda row: (-row["images"], row["class"]))
    trees = get(app, "/classes.json?q=TREE").json
    assert trees["found"] == len(dataset.vocabulary.search("tree")) == sum(row["found"] for row in trees["rows"])
    stuff = get(app, "/classes.json?group=stuff&sort=least&bars=pixels&split=val").json["rows"]
    assert {row["group"] for row in stuff} == {"stuff"} and stuff[0]["pixels"] <= stuff[-1]["pixels"]
    split = dataset.split("val")
    assert sum(row["pixels"] for row in stuff) == sum(
        int(np.isin(split.mask(i), [c.id for c in dataset.vocabulary if c.group == "stuff"]).sum()) for i in range(len(split))
    )
    assert rows[0]["colour"] == "#" + palette(1284)[rows[0]["class"]].tobytes().hex()
    page = get(app, "/classes?q=tree").text
    assert page.count("<tr hidden>") == 1284 - trees["found"]


def test_instances_are_shown_where_they_are_recorded(app, shown, sample, tmp_path):
    found = get(app, "/classes.json?bars=instances").json
    counts = [row["instances"] for row in found["rows"]]
    assert found["instances_recorded"] and counts == sorted(counts, reverse=True) and counts[0] > 1
    page = get(app, "/classes?bars=instances").text
    assert f'<td class="n">{counts[0]:,}</td>' in page and "not recorded" not in page
    one = get(app, f"/picture/val/{shown.image_id}.json").json
    assert {row["class"]: row["instances"] for row in one["classes"] if row["pixels"]} == shown.instances
    assert one["instances"] == sum(shown.instances.values()) > 1
    assert get(app, f"/picture/val/{shown.image_id}").text.count("</a> \N{MULTIPLICATION SIGN}") == sum(
        map(bool, shown.instances.values())
    )
    assert get(app, "/about.json").json["instances"] is True
    with without_instances():
        sample.rebuild(tmp_path / "data", splits=("val",))
    workspace = Workspace(tmp_path / "data")
    workspace.prepare()
    earlier = application(workspace)
    found = get(earlier, "/classes.json?bars=instances").json
    assert not found["instances_recorded"] and {row["instances"] for row in found["rows"]} == {None}
    page = get(earlier, "/classes?bars=instances").text
    assert "Instances are not recorded in this data set." in page and page.count(">not recorded</span>") == 1284
    one = get(earlier, f"/picture/val/{shown.image_id}.json").json
    assert one["instances"] is None and {row["instances"] for row in one["classes"]} == {None}
    assert get(earlier, f"/picture/val/{shown.image_id}").text.count("not recorded") == 1
    assert get(earlier, "/about.json").json["instances"] is False


def test_pictures_are_selected_sorted_and_paged(app, dataset, workspace):
    top = get(app, "/classes.json").json["rows"][0]
    found = get(app, f"/pictures.json?all={top['name']}&sort=area").json
    assert found["found"] == top["images"]
    values = [card["value"] for card in found["pictures"]]
    assert values == sorted(values, reverse=True)
    card = found["pictures"][0]
    assert card["value"] == pytest.approx((dataset.find(card["id"]).mask == top["class"]).mean())
    ids = [card["id"] for card in get(app, "/pictures.json").json["pictures"]]
    assert ids == sorted(ids)
    worst = get(app, f"/pictures.json?run=shifted&sort=worst&all={top['name']}").json["pictures"]
    assert worst and [card["value"] for card in worst] == sorted(card["value"] for card in worst)
    assert get(app, "/pictures.json?page=99").status == 400


def test_a_class_is_added_by_the_search_field(app):
    answer = get(app, "/pictures?all=tree&sort=area&page=2&add=grass&how=none")
    assert (answer.status, answer.headers["location"]) == (303, "/pictures?sort=area&all=tree&none=grass")
    wrong = get(app, "/pictures?add=gras")
    assert wrong.status == 400 and "did you mean grass" in html.unescape(wrong.text)


def test_a_picture_has_the_classes_of_its_mask_and_its_scores(app, dataset, shown, workspace):
    one = get(app, f"/picture/val/{shown.image_id}.json").json
    counts = {int(c): int((shown.mask == c).sum()) for c in np.unique(shown.mask) if c}
    assert {row["class"]: row["pixels"] for row in one["classes"] if row["pixels"]} == counts
    assert (one["height"], one["width"], one["path"]) == (*shown.mask.shape, shown.path)
    image = next(i for i in range(len(workspace.catalog)) if workspace.catalog.ids()[i] == shown.image_id)
    assert one["runs"][0]["miou"] == pytest.approx(workspace.runs["shifted"].scores.image_scores(40)[image], rel=1e-6)
    assert {row["class"] for row in one["neg"]} == {*shown.neg.tolist()}
    assert one["of"] == dataset.splits["val"] and one["before"] != one["id"] != one["after"]
    neighbour = one["after"] or one["before"]
    assert one["id"] in (get(app, f"/picture/val/{neighbour}.json").json[side] for side in ("before", "after"))


def test_run_lengths_are_sent_as_they_are_stored(app, shown, workspace):
    for address, runs in (("", shown.runs), ("?run=shifted", None)):
        body = get(app, f"/picture/val/{shown.image_id}/runs{address}").body
        classes, lengths = np.frombuffer(body, "<u2").reshape(2, -1)
        if runs is None:
            runs = workspace.runs["shifted"].dataset.find(shown.image_id).runs
        assert np.array_equal(classes, runs.classes) and np.array_equal(lengths, runs.lengths)
    answer = get(app, f"/picture/val/{shown.image_id}/file")
    assert answer.body == shown.content and answer.headers["content-type"] == "image/jpeg"


def test_a_mask_is_sampled_without_decoding_it():
    mask = np.random.default_rng(0).integers(0, 9, (48, 60)).astype(np.uint16)
    assert np.array_equal(sampled(Runs.of(mask), 48, 60), mask)
    assert np.array_equal(sampled(Runs.of(mask), 16, 20), mask[1::3, 1::3])
    assert np.array_equal(sampled(Runs.of(mask), 96, 60), np.repeat(mask, 2, axis=0))


def test_thumbnails_look_like_their_pictures_and_marks_darken_the_rest(app, shown, workspace):
    image = next(i for i in range(len(workspace.catalog)) if workspace.catalog.ids()[i] == shown.image_id)
    small = cv2.imdecode(np.frombuffer(get(app, f"/thumbnails/{image}.jpg").body, np.uint8), cv2.IMREAD_COLOR_RGB)
    whole = cv2.resize(shown.image(), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - whole).mean() < 12
    largest = workspace.vocabulary[int(np.bincount(shown.mask.ravel())[1:].argmax()) + 1]
    marked = get(app, f"/thumbnails/{image}.jpg?mark={largest.name}").body
    marked = cv2.imdecode(np.frombuffer(marked, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    rest = cv2.erode((sampled(shown.runs, *small.shape[:2]) != largest.id).astype(np.uint8), np.ones((9, 9))) > 0
    assert rest.any() and np.abs(marked[rest] - 0.55 * small[rest]).mean() < 12
    confused = get(app, "/confusion.json").json["rows"][0]
    cell = f"run=shifted&truth={confused['truth']['name']}&predicted={confused['predicted']['name']}"
    card = get(app, f"/pictures.json?{cell}").json["pictures"][0]
    assert get(app, f"/thumbnails/{card['image']}.jpg?{cell}").status == 200


def test_a_cell_of_the_confusion_leads_to_its_pictures(app, workspace, dataset):
    found = get(app, "/confusion.json").json
    pixels = {(row["truth"]["class"], row["predicted"]["class"]): row["pixels"] for row in found["rows"]}
    (truth, predicted), most = max(pixels.items(), key=lambda item: item[1])
    names = [workspace.vocabulary.name(c) for c in (truth, predicted)]
    cards = get(app, f"/pictures.json?run=shifted&truth={names[0]}&predicted={names[1]}").json["pictures"]
    counted = 0
    for card in cards:
        mask, prediction = (one.find(card["id"]).mask for one in (dataset, workspace.runs["shifted"].dataset))
        counted += (wrong := int(((mask == truth) & (prediction == predicted)).sum()))
        assert card["value"] == pytest.approx(wrong / mask.size)
    assert counted == most
    ids = [c["class"] for c in found["matrix"]["classes"]]
    if truth in ids and predicted in ids:
        assert found["matrix"]["cells"][ids.index(truth)][ids.index(predicted)] == most


@pytest.mark.parametrize(
    ("address", "status", "said"),
    [
        ("/nothing", 404, "there is no page /nothing"),
        ("/picture/val/999999999", 404, "the split val has no image 999999999"),
        ("/picture/7777777", 404, "the data set has no image 7777777"),
        ("/picture?id=x", 404, "'x' is not a number"),
        ("/picture/elsewhere/1", 404, "the split elsewhere has no image 1"),
        ("/pictures?all=nothing", 400, "no class is named 'nothing'"),
        ("/pictures?sort=size", 400, "sort is 'size'"),
        ("/classes?bars=length", 400, "bars is 'length'"),
        ("/classes?page=0", 400, "page is '0'"),
        ("/picture/val/9223372036854775807", 404, "the split val has no image 9223372036854775807"),
        ("/picture/val/9223372036854775808", 404, "is not a number from 0 to 9223372036854775807"),
        ("/confusion?run=other", 400, "run is 'other'"),
        ("/pictures?truth=tree", 400, "truth, predicted and run belong together"),
    ],
)
def test_wrong_addresses_say_what_is_wrong(app, address, status, said):
    answer = get(app, address)
    assert answer.status == status and said in html.unescape(answer.text) and "Traceback" not in answer.text


OUTSIDE = [
    "/thumbnails/../1.jpg",
    "/thumbnails/40.jpg",
    "/thumbnails/-1.jpg",
    f"/thumbnails/{'9' * 30}.jpg",
    "/picture/val/1/../../../dataset.json",
    "/picture/..%2f/1/file",
    "/../../etc/passwd",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_else_can_be_requested(app, path):
    assert get(app, path).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:9"}, 200),
        ({"host": "[::1]:8765"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "192.168.0.7"}, 403),
        ({"host": ""}, 403),
        ({"host": "[:::"}, 403),
        ({"origin": "http://127.0.0.1:8765"}, 200),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[::1"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"sec_fetch_site": "same-origin", "sec_fetch_dest": "image"}, 200),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "image"}, 403),
        ({"sec_fetch_site": "same-site", "sec_fetch_mode": "no-cors", "sec_fetch_dest": "script"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "iframe"}, 403),
        ({"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}, 200),
    ],
)
def test_requests_of_other_sites_are_refused(app, headers, status):
    assert get(app, "/about.json", **headers).status == status


def test_only_reading_is_possible_and_every_answer_carries_the_policy(app, workspace):
    assert [get(app, "/about", method).status for method in ("POST", "PUT", "DELETE", "OPTIONS")] == [405] * 4
    (style,) = re.findall(r"/static/\w+/explorer.css", get(app, "/").text)
    for address in ("/", "/about.json", "/nothing", style):
        headers = get(app, address).headers
        assert "default-src 'none'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    open_to_all = application(workspace, "0.0.0.0")
    assert "open the explorer as localhost\n" in get(app, "/", host="evil.example").text
    assert "as localhost, or by an IP address of its machine\n" in get(open_to_all, "/", host="evil.example").text
    hosts = ("192.168.0.7:1", "evil.example", "127.0.0.1")
    assert [get(open_to_all, "/about.json", host=host).status for host in hosts] == [200, 403, 200]


def test_files_of_the_pages_are_kept_by_browsers_under_their_version_only(app):
    (script,) = re.findall(r"/static/\w+/explorer.js", get(app, "/").text)
    assert "immutable" in get(app, script).headers["cache-control"]
    assert get(app, script.replace("explorer.js", "mask.js")).status == 200  # which picture.js imports from its own folder
    hidden = ("../../app.py", "%2e%2e/app.py", "..%2fapp.py", "..%2f..%2fapp.py", "app.py")
    assert {get(app, script.replace("explorer.js", name)).status for name in hidden} == {404}
    assert get(app, "/static/000000000000/explorer.js").status == get(app, "/static/explorer.js").status == 404
    assert get(app, "/favicon.ico").headers["location"] == script.replace("explorer.js", "icon.svg")


MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Elements(HTMLParser):
    """The attributes of a page that would run code, and its scripts that are written inside it."""

    def __init__(self, text: str):
        super().__init__()
        self.handlers: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.handlers += [name for name, value in attrs if name.startswith("on") or (value or "").startswith("javascript:")]
        if tag == "script" and not dict(attrs).get("src", "").startswith("/static/"):
            self.inline.append(str(attrs))


def test_names_with_markup_are_shown_as_text(sample, tmp_path):
    shutil.copytree(sample.data, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    index = json.loads(path.read_text())
    for c in index["vocabulary"]["classes"]:
        c["name"], c["synset"] = f"{c['name']} {MARKUP}", MARKUP
    from cocolvis.vocabulary import ClassInfo, Vocabulary

    classes = [ClassInfo(**{("id" if k == "class" else k): v for k, v in c.items()}) for c in index["vocabulary"]["classes"]]
    index["vocabulary"]["digest"] = Vocabulary(classes, {"stuff": {183: "other"}}).digest
    path.write_text(json.dumps(index))
    found = Workspace(tmp_path / "data")
    found.catalog = Workspace(sample.data).catalog
    if found.catalog is None:
        source = Workspace(sample.data)
        source.prepare()
        found.catalog = source.catalog
    app = application(found)
    for address in ("/", f"/classes?q={MARKUP}", f"/pictures?all={MARKUP}", f"/{MARKUP}"):
        text = get(app, address).text
        assert "<script>alert" not in text and "<img src=x" not in text and "{{ 7 * 7 }}" in html.unescape(text)
        elements = Elements(text)
        assert elements.handlers == [] and elements.inline == []


def test_a_damaged_mask_and_picture_leave_the_page_standing(sample, tmp_path):
    shutil.copytree(sample.data, tmp_path / "data")
    (shard, *_) = sorted((tmp_path / "data" / "shards").glob("val-*.h5"))
    dataset = Dataset.open(tmp_path / "data")
    reader = dataset.split("val").shard(0)
    start = reader._columns["image/bytes"].start
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(b"GIF89a" + bytes(200))
    found = Workspace(tmp_path / "data")
    found.prepare()
    first = int(reader.image_ids()[0])
    app = application(found)
    page = get(app, f"/picture/val/{first}")
    assert page.status == 200 and "the picture is damaged" in page.text
    assert get(app, f"/picture/val/{first}/file").status == 404
    image = next(i for i in range(len(found.catalog)) if found.catalog.ids()[i] == first)
    assert get(app, f"/thumbnails/{image}.jpg").status == 200  # drawn from the mask
    start = reader._columns["mask/length"].start
    with shard.open("r+b") as file:
        file.seek(start)
        file.write(b"\xff\xff" * 4)
    page = get(app, f"/picture/val/{first}")
    assert page.status == 200 and "runs cover" in page.text
    assert get(app, f"/picture/val/{first}/runs").status == 400


def test_absurd_sizes_are_not_drawn(workspace, monkeypatch, app, shown):
    from cocolvis.explorer import pictures
    from cocolvis.explorer.site import one_picture

    monkeypatch.setattr(pictures, "SHOWN_PIXELS", shown.mask.size - 1)
    monkeypatch.setattr(one_picture, "is_shown", pictures.is_shown)
    page = get(app, f"/picture/val/{shown.image_id}")
    assert page.status == 200 and "<canvas" not in page.text and "too large" in page.text
    assert [get(app, f"/picture/val/{shown.image_id}/{part}").status for part in ("runs", "file")] == [404, 404]


def test_before_the_catalog_is_there_the_pages_say_what_is_being_done(sample_dataset):
    fresh = Workspace(sample_dataset)
    app = application(fresh)
    page = get(app, "/pictures?all=tree")
    assert page.status == 200 and "Getting ready" in page.text and "preparing.js" in page.text
    assert get(app, "/classes.json").status == 503
    fresh.doing = "Reading the class tables, shard by shard", 3, 9
    assert get(app, "/status.json").json == {
        "run": None,
        "ready": False,
        "text": fresh.doing[0],
        "done": 3,
        "total": 9,
        "failed": None,
    }
    fresh.prepare()
    assert get(app, "/status.json").json["ready"] and "Getting ready" not in get(app, "/pictures?all=tree").text
    fresh.catalog, fresh.failed = None, "the disk is gone"
    page = get(app, "/")
    assert page.status == 500 and "the disk is gone" in page.text


def test_pages_without_a_run_are_shown_while_runs_are_compared(sample_dataset, predictions, monkeypatch):
    from cocolvis.explorer import scores

    fresh, seen = Workspace(sample_dataset, [predictions]), []
    app = application(fresh)
    count = scores.count_pixels

    def look(*given):
        seen.append([get(app, address).text for address in ("/pictures", "/pictures?run=shifted")])
        seen.append([get(app, f"/status.json{query}").json["ready"] for query in ("", "?run=shifted")])
        return count(*given)

    monkeypatch.setattr(scores, "count_pixels", look)
    fresh.prepare()
    assert ["Getting ready" in text for text in seen[0]] == [False, True] and seen[1] == [True, False]
    assert "/status.json?run=shifted" in seen[0][1] and get(app, "/status.json?run=shifted").json["ready"]


def test_every_value_of_a_long_query_counts(app, dataset):
    others = "".join(f"&any={c.id}" for c in [*dataset.vocabulary][1:])
    found = get(app, f"/pictures.json?any=1{others}&split=val").json
    assert found["split"] == "val" and found["found"] == len(dataset.split("val"))


def test_the_first_page_needs_neither_numpy_nor_hdf5_nor_torch(sample_dataset, cache):
    import subprocess
    import sys

    Workspace(sample_dataset).prepare()
    code = (
        f"import sys; sys.path.insert(0, {str(HELPERS)!r}); from asgi import get\n"
        "from cocolvis.explorer.site.app import application\nfrom cocolvis.explorer.workspace import Workspace\n"
        "from pathlib import Path\n"
        f"answer = get(application(Workspace(Path({str(sample_dataset)!r}))), '/')\n"
        "print(answer.status, len(answer.body), *sorted({'numpy', 'h5py', 'cv2', 'torch', 'ess', 'numba'} & {*sys.modules}))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert printed[0] == "200" and int(printed[1]) < 1_000_000 and printed[2:] == []


def test_a_taken_port_is_reported_and_the_next_one_is_found():
    from cocolvis.errors import DataError

    first = listen("127.0.0.1", 0)
    with pytest.raises(DataError, match="cannot listen at 127"):
        listen("127.0.0.1", first.getsockname()[1])
    second = listen("127.0.0.1", None)
    assert second.getsockname()[1] >= 8765
    first.close()
    second.close()
