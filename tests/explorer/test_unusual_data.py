"""Data sets that differ from COCO+LVIS: very many classes, large ids, classes that were added to runs, odd names of folders."""

import html
import json
import os
import re
import shutil

import numpy as np
import pytest
from asgi import get
from predictions import new_classes, shifted, write_data, write_predictions

from cocolvis.errors import DataError
from cocolvis.explorer.site.app import application
from cocolvis.explorer.workspace import Workspace
from cocolvis.vocabulary import Vocabulary


def application_over(*arguments):
    """The application over a workspace, once everything is prepared."""
    workspace = Workspace(*arguments)
    workspace.prepare()
    return application(workspace)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """The application over 2500 classes."""
    mask = np.arange(1, 2501, dtype=np.uint16).reshape(50, 50)
    vocabulary = Vocabulary(new_classes(f"thing{number:05d}" for number in range(2500)))
    return application_over(write_data(tmp_path_factory.mktemp("many"), "val", [(1, "1.jpg", mask)], vocabulary))


def test_a_search_finds_classes_that_are_not_on_the_first_page(many):
    found = get(many, "/classes.json?q=thing02400").json
    assert [row["name"] for row in found["rows"]] == ["thing02400"]
    assert (found["found"], found["pages"], found["complete"]) == (1, 1, False)
    page = get(many, "/classes?q=thing02400").text
    assert page.count("<tr>") == 2 and "<tr hidden>" not in page and "Page 1 of" not in page
    assert 'id="empty">No class has' in get(many, "/classes?q=nothing").text
    two = get(many, "/classes.json?q=thing0&page=2").json
    assert (two["found"], two["pages"], len(two["rows"])) == (2500, 2, 500)
    whole = get(many, "/classes.json").json
    assert (len(whole["rows"]), whole["pages"], whole["rows"][0]["bar"]) == (2000, 2, 100)


def test_images_of_the_largest_id_can_be_opened(tmp_path):
    largest = 2**63 - 1
    images = [(number, f"{number}.jpg", np.ones((4, 6), np.uint16)) for number in (3, largest - 1, largest)]
    app = application_over(write_data(tmp_path / "data", "val", images, Vocabulary(new_classes(["cat"]))))
    assert get(app, f"/picture?id={largest}").headers["location"] == f"/picture/val/{largest}"
    page = get(app, f"/picture/val/{largest}")
    assert page.status == 200 and get(app, f"/picture/val/{largest}/runs").status == 200
    shown = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.text)[1]
    assert json.loads(shown)["id"] == str(largest)  # a number of JavaScript would be rounded


@pytest.mark.parametrize("folder", ["data", "predictions"])
def test_edited_classes_are_refused_with_the_file_that_holds_them(dataset, tmp_path, folder):
    write_predictions(dataset, tmp_path / "predictions", shifted)
    shutil.copytree(dataset.folder, tmp_path / "data")
    path = tmp_path / folder / "dataset.json"
    index = json.loads(path.read_text())
    index["vocabulary"]["classes"][0]["name"] = "another"
    path.write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: vocabulary digest is .*: the classes were edited$"):
        Workspace(tmp_path / "data", [tmp_path / "predictions"])


def test_classes_that_were_added_to_runs_keep_their_names(dataset, sample_dataset, tmp_path):
    size = len(dataset.vocabulary)

    def with_added(number: int):
        def change(image_id: int, mask: np.ndarray) -> np.ndarray:
            mask[:2], mask[2:3] = size + number, size + 1
            return mask

        return change

    added = {"a": ("unicorn", "griffin"), "b": ("dragon", "griffin"), "c": ("dragon",)}
    folders = [
        write_predictions(dataset, tmp_path / name, with_added(len(names)), added=names) for name, names in added.items()
    ]
    app = application_over(sample_dataset, folders)
    sample = dataset.split("val")[0]
    one = get(app, f"/picture/val/{sample.image_id}.json").json
    width = sample.size[1]
    assert {(row["class"], row["name"]): [run["pixels"] for run in row["runs"]] for row in one["classes"] if row["added"]} == {
        (size + 1, "unicorn"): [width, 0, 0],
        (size + 1, "dragon"): [0, width, 3 * width],
        (size + 2, "griffin"): [2 * width, 2 * width, 0],
    }
    assert {row["class"] for row in one["classes"] if not row["added"]} <= {*range(1, size + 1)}
    page = get(app, f"/picture/val/{sample.image_id}").text
    links = {html.unescape(link) for link in re.findall(r'href="(/pictures\?all=[^"]*)"', page)}
    assert links and {get(app, link).status for link in links} == {200}
    assert page.count("</svg>dragon</th>") == 1


def test_a_folder_whose_name_is_not_utf8_can_be_shown(dataset, sample_dataset, predictions, tmp_path):
    folder = tmp_path / os.fsdecode(b"pr\xe9dit")
    try:
        shutil.copytree(predictions, folder)
    except OSError:
        pytest.skip("the file system allows only UTF-8")
    app = application_over(sample_dataset, [folder, folder])
    sample = dataset.split("val")[0]
    names = [run["name"] for run in get(app, "/about.json").json["runs"]]
    assert names == ["pr\\udce9dit", "pr\\udce9dit-2"]
    for address in ("/classes?bars=iou", "/confusion", f"/picture/val/{sample.image_id}"):
        page = get(app, address)
        links = {html.unescape(link) for link in re.findall(r'(?:href|data-source)="([^"]*run=[^"]*)"', page.text)}
        assert page.status == 200 and links and {get(app, link).status for link in links} == {200}
    resized = write_predictions(dataset, tmp_path / os.fsdecode(b"\xe9"), shifted)
    late = application_over(sample_dataset, [resized])
    for shard in (resized / "shards").iterdir():
        shard.unlink()
    assert get(late, f"/picture/val/{sample.image_id}/runs?run=%5Cudce9").status == 400
