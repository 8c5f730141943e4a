"""Shards, pictures and cached files that are missing or damaged: the rest is shown, and nothing wrong outlives a repair."""

import html
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from asgi import get
from predictions import write_predictions
from trees import box

from cocolvis.explorer.pictures import sampled
from cocolvis.explorer.site.app import application
from cocolvis.explorer.workspace import Workspace
from cocolvis.palette import palette
from cocolvis.storage.dataset import Dataset


def opened(data: Path, *predictions: Path, **settings) -> Workspace:
    """A workspace after a new start of the explorer."""
    found = Workspace(data, predictions, **settings)
    found.prepare()
    return found


@pytest.fixture
def data(sample, tmp_path) -> Path:
    """A copy of the sample, which a test may damage."""
    return Path(shutil.copytree(sample.data, tmp_path / "data"))


@pytest.fixture
def shard(data) -> Path:
    """The first shard of train, of two."""
    return min((data / "shards").glob("train-*.h5"))


@pytest.fixture
def right(dataset, tmp_path) -> Path:
    """Predictions for train that are identical to the labels."""
    return write_predictions(dataset, tmp_path / "right", lambda _, mask: mask, split="train")


@pytest.fixture
def pictured(sample, tmp_path) -> tuple[Path, Path]:
    """A data set that stores only the paths of its pictures, and an empty folder in which they are missing."""
    sample.rebuild(tmp_path / "paths", splits=("val",), images="path")
    (tmp_path / "empty").mkdir()
    return tmp_path / "paths", tmp_path / "empty"


def thumbnails(workspace: Workspace, query: str = "") -> list[str]:
    """The addresses of the thumbnails on the page of all pictures."""
    page = get(application(workspace), f"/pictures{query}").text
    return [html.unescape(address) for address in re.findall(r'src="(/thumbnails/[^"]+)"', page)]


def pixels(content: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)


def test_after_a_shard_is_repaired_scores_and_thumbnails_are_those_of_its_images(data, shard, right, tmp_path, monkeypatch):
    away = shard.rename(tmp_path / "away.h5")
    broken = opened(data, right)
    assert len(broken.catalog.unreadable) == 1 and broken.runs["right"].scores.facts["miou"] == 1
    before = thumbnails(broken)
    seen = [get(application(broken), address) for address in before]
    away.rename(shard)
    repaired = opened(data, right)
    scores, size = repaired.runs["right"].scores, len(repaired.catalog)
    assert repaired.catalog.unreadable == [] and scores.facts["images"] == repaired.dataset.splits["train"]
    assert np.nanmin(scores.image_scores(size)) == 1
    assert get(application(repaired), f"/picture/train/{repaired.catalog.ids()[0]}.json").json["runs"][0]["miou"] == 1
    after = thumbnails(repaired)
    shown = [get(application(repaired), address).body for address in after]
    assert not {*before} & {*after}  # the browser may keep the earlier ones
    late = get(application(repaired), before[0])
    assert (seen[0].headers["cache-control"], late.headers["cache-control"]) == (
        "private, max-age=604800, immutable",
        "no-store",
    )
    monkeypatch.setenv("COCOLVIS_CACHE", str(tmp_path / "empty cache"))
    assert shown == [get(application(opened(data, right)), address).body for address in after]


def test_a_shard_that_disappears_after_a_start_is_reported_at_the_next_one(data, shard, right, tmp_path):
    whole = opened(data, right)
    page = f"/picture/train/{whole.catalog.ids()[0]}"
    content = shard.read_bytes()
    shard.unlink()
    late = get(application(whole), page)
    assert late.status == 200 and re.search(f'class="notice">[^<]*{shard.name}', late.text) and "<canvas" not in late.text
    for damage in (None, content[:5000]):
        if damage:
            shard.write_bytes(damage)
        broken = opened(data, right)
        app = application(broken)
        assert "1 shard cannot be read" in get(app, "/pictures").text and get(app, page).status == 404
        scores, size = broken.runs["right"].scores, len(broken.catalog)
        assert np.nanmin(scores.image_scores(size)) == 1 == get(app, first_of_train(broken)).json["runs"][0]["miou"]
    shard.write_bytes(content)
    assert Workspace(data).catalog is not None


def first_of_train(workspace: Workspace) -> str:
    """The address of the JSON of the first image of train that can be read."""
    return f"/picture/train/{workspace.catalog.ids()[workspace.catalog.members('train')[0].start]}.json"


def test_masks_are_shown_while_their_pictures_are_missing(pictured):
    data, empty = pictured
    workspace = opened(data, image_root=empty)
    app, first = application(workspace), Dataset.open(data).split("val").shard(0).sample(0)
    one = get(app, f"/picture/val/{first.image_id}.json").json
    assert one["drawn"] and not one["has_picture"] and "pass the folder of the images with --image-root" in one["problems"][0]
    assert {row["class"]: row["pixels"] for row in one["classes"]} == {
        c: int((first.mask == c).sum()) for c in np.unique(first.mask).tolist() if c
    }
    assert "<canvas" in get(app, f"/picture/val/{first.image_id}").text
    assert get(app, f"/picture/val/{first.image_id}/file").status == 404
    small = get(app, thumbnails(workspace)[0])
    assert small.status == 200 and small.headers["cache-control"] == "no-store"
    drawn = pixels(small.body)
    assert np.abs(drawn - palette(1284)[sampled(first.runs, *drawn.shape[:2])]).mean() < 12


def test_a_thumbnail_of_the_mask_is_replaced_as_soon_as_there_is_a_picture(pictured, sample):
    data, empty = pictured
    absent = opened(data, image_root=empty)
    masks = [get(application(absent), address).body for address in thumbnails(absent)]
    shutil.copytree(sample.coco, empty, dirs_exist_ok=True)  # the pictures come back
    restored, elsewhere = opened(data, image_root=empty), opened(data, image_root=sample.coco)
    for workspace in (restored, elsewhere):
        addresses = thumbnails(workspace)
        answers = [get(application(workspace), address) for address in addresses]
        assert not {*masks} & {answer.body for answer in answers} and all(
            "immutable" in a.headers["cache-control"] for a in answers
        )
        image = int(workspace.catalog.ids()[0])
        whole = cv2.resize(
            workspace.dataset.find(image).image(), pixels(answers[0].body).shape[1::-1], interpolation=cv2.INTER_AREA
        )
        assert np.abs(pixels(answers[0].body) - whole).mean() < 12
    assert not {*thumbnails(restored)} & {*thumbnails(elsewhere)}


def test_a_damaged_thumbnail_is_made_again(workspace, cache):
    found = opened(workspace.folder)
    app, (address, *_) = application(found), thumbnails(found)
    whole = get(app, address).body
    (path,) = cache.rglob("*.jpg")
    content = path.read_bytes()
    name = found.vocabulary.name(int(np.argmax(found.catalog.images())))
    for damaged in (
        b"",
        bytes(len(content)),
        content[:-40],
        content[:500] + bytes(len(content) - 500),
        content[:300] + b"?" + content[301:],
    ):
        path.write_bytes(damaged)
        assert get(app, f"{address}&mark={name}").status == 200
        path.write_bytes(damaged)
        assert get(app, address).body == whole


def test_thumbnails_of_a_confusion_have_the_predictions_in_their_address(dataset, sample_dataset, tmp_path):
    split = dataset.split("val")
    counts = np.bincount(np.concatenate([split.mask(i).ravel() for i in range(len(split))]))
    truth, predicted = (np.argsort(-counts[1:])[:2] + 1).tolist()

    def taken(image_id: int, mask: np.ndarray) -> np.ndarray:
        return np.where(mask == truth, predicted, mask).astype(np.uint16)

    def taken_but_once(image_id: int, mask: np.ndarray) -> np.ndarray:
        return mask if image_id == split[0].image_id else taken(image_id, mask)

    query = "?run=run&truth={}&predicted={}".format(*map(dataset.vocabulary.name, (truth, predicted)))
    folders = [write_predictions(dataset, tmp_path / change.__name__ / "run", change) for change in (taken, taken_but_once)]
    first, second = ({*thumbnails(opened(sample_dataset, folder), query)} for folder in folders)
    assert first and second and not first & second


def test_a_click_explains_the_image_that_is_shown_whatever_other_shards_are_like(tree):
    tree.image(1), tree.image(1, "val", listed=False), tree.image(2, "val", listed=False)
    things = {("train", 1): 3, ("val", 1): 793, ("val", 2): 5}
    for (split, image_id), category in things.items():
        tree.thing(image_id, category, box(0, 0, 8, 8), split)
    data = tree.build(shard_size=1)

    def explained(split: str, image_id: int) -> tuple[str, int]:
        app = application(opened(data.folder, sources=tree.sources()))
        found = get(app, f"/picture/{split}/{image_id}/why.json?x=2&y=2")
        assert found.status == 200, found.text
        return found.json["split"], found.json["layers"][0]["category_id"]

    assert all(explained(*place) == (place[0], category) for place, category in things.items())
    for path in (*data.shard_paths("train"), data.shard_paths("val")[0]):
        path.unlink()
    assert explained("val", 2) == ("val", 5)
