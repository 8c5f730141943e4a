"""The legend of `cocolvis show`: every class with its colour and pixels, LVIS's lists, and no clipped or overlapping text."""

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import ImageDraw
from trees import box

from cli.cocolvis import main
from cocolvis.inspection.legend import with_legend
from cocolvis.inspection.render import mask_alone, overlay, palette, side_by_side
from cocolvis.masks.runlength import Runs
from cocolvis.storage.samples import Sample
from cocolvis.vocabulary import ClassInfo, Vocabulary, coco_lvis


def sample_of(mask, neg=(), not_exhaustive=(), instances=None):
    lists = {"neg": np.array(neg, np.uint16), "not_exhaustive": np.array(not_exhaustive, np.uint16)}
    return Sample(image_id=1, path="a.jpg", runs=Runs.of(mask), content=b"", instances=instances, **lists)


@pytest.fixture
def written(monkeypatch):
    """The (text, box) of everything that is written, in order; a box is left, top, right, bottom."""
    texts, text = [], ImageDraw.ImageDraw.text

    def watched(draw, place, words, **how):
        texts.append((words, draw.textbbox(place, words, font=how["font"], anchor=how.get("anchor"))))
        return text(draw, place, words, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    return texts


def test_every_class_is_listed_with_its_colour_and_pixels_however_rare(written):
    rng = np.random.default_rng(0)
    mask = rng.choice(np.array([0, 7, 1284, 500], np.uint16), (90, 120), p=[0.1, 0.2, 0.3, 0.4])
    mask[5, 5] = 31
    drawn = mask_alone(mask, coco_lvis())
    picture = with_legend(drawn, sample_of(mask), coco_lvis())
    assert np.array_equal(picture[: len(drawn), : drawn.shape[1]], drawn)
    legend = picture[len(drawn) :].reshape(-1, 3)
    classes, pixels = np.unique(mask, return_counts=True)
    for c in classes.tolist():
        assert (legend == palette(1284)[c]).all(axis=1).sum() >= 14 * 14
    words = [text for text, _ in written]
    order = sorted(classes.tolist(), key=lambda c: (c == 0, -pixels[classes == c][0]))
    assert words[::2] == [coco_lvis().name(c) for c in order]
    assert [text.split()[0] for text in words[1::2]] == [f"{pixels[classes == c][0]:,}" for c in order]
    assert words[words.index(coco_lvis().name(31)) + 1] == "1  0.00926%"


def test_instances_are_written_after_the_share(written):
    mask = np.array([[7, 7, 0, 1284]], np.uint16)
    with_legend(mask_alone(mask, coco_lvis()), sample_of(mask, instances={7: 1200, 1284: 0}), coco_lvis())
    assert [text for text, _ in written][1::2] == ["2  50%  \N{MULTIPLICATION SIGN}1,200", "1  25%", "1  25%"]


SHAPES = [(1, 1), (3, 5), (1, 3000), (3000, 1), (40, 900), (900, 40), (200, 300), (1200, 1600)]


@pytest.mark.parametrize("size", SHAPES)
def test_no_text_is_clipped_or_overlaps_for_any_shape(size, written):
    rng = np.random.default_rng(size)
    mask = rng.integers(0, 1285, 45).astype(np.uint16)[rng.integers(0, 45, size)]
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    drawn = side_by_side(image, mask, coco_lvis(), int(mask[0, 0]))
    sample = sample_of(mask, neg=range(1, 60), not_exhaustive=[793, 1])
    picture = with_legend(drawn, sample, coco_lvis(), int(mask[0, 0]))
    height, width = drawn.shape[:2]
    assert np.array_equal(picture[:height, :width], drawn)
    beside = picture.shape[1] > width and size[0] > size[1]
    room = (picture.shape[1] - width, picture.shape[0]) if beside else (picture.shape[1], picture.shape[0] - height)
    boxes = [box for _, box in written]
    assert len(boxes) >= 2 * len(np.unique(mask)) + 2
    corners = np.array(boxes)
    assert (corners[:, :2] >= 0).all() and (corners[:, 2:] <= room).all()
    left, top, right, bottom = corners.T
    apart = (right[:, None] <= left) | (left[:, None] >= right) | (bottom[:, None] <= top) | (top[:, None] >= bottom)
    assert (apart | np.eye(len(boxes), dtype=bool)).all()
    assert (picture[-2:] == 255).all() or beside
    said = " ".join(text for text, _ in written)
    assert "verified absent (LVIS): aerosol_can" in said and "not exhaustively annotated (LVIS): person, aerosol_can" in said


def test_long_and_foreign_names_are_complete(written):
    names = ["é" * 300, "Straße", "x"]
    own = Vocabulary(ClassInfo(i, name, "stuff", None, None, {}) for i, name in enumerate(names, 1))
    mask = np.array([[1, 2, 3, 3]], np.uint16)
    picture = with_legend(mask_alone(mask, own), sample_of(mask, neg=[1]), own, 2)
    words = [text for text, _ in written]
    assert set(names) <= set(words) and "".join(words).count("é") == 600
    assert all(right <= picture.shape[1] for _, (_, _, right, _) in written)


def test_only_the_outline_differs_and_names_stay_on_top():
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    mask = np.full((480, 640), 7, np.uint16)
    mask[200:300, 100:500] = 232
    plain, outlined = (side_by_side(image, mask, coco_lvis(), c) for c in (0, 232))
    rows, columns = np.nonzero((plain != outlined).any(axis=2))
    assert rows.min() >= 190 and rows.max() < 310 and len(rows) > 3 * 1000
    near = np.zeros(mask.shape, bool)
    near[190:310, 90:510] = True
    near[210:290, 110:490] = False
    for panel in range(3):
        here = (columns >= panel * 648) & (columns < panel * 648 + 640)
        assert here.any() and near[rows[here], columns[here] - panel * 648].all()
    assert np.array_equal(side_by_side(image, mask, coco_lvis(), 9), plain)
    narrow = np.full((480, 640), 7, np.uint16)
    narrow[238:242] = 232  # its name is written over its outline
    named, nameless = (overlay(image, narrow, names, outlined=232) for names in (coco_lvis(), [""] * 1285))
    assert (named != nameless).any(axis=2)[236:244].sum() > 100


def test_the_command_outlines_one_class(tree, tmp_path, written):
    tree.image(1)
    tree.thing(1, 5, box(0, 0, 4, 8))
    tree.json["lvis_v1_train"]["images"][0] |= {"neg_category_ids": [3], "not_exhaustive_category_ids": [9]}
    data = tree.build()

    def show(*words):
        return CliRunner().invoke(main, ["show", str(data.folder), "1", "--out", str(tmp_path), *words])

    assert show("--class", coco_lvis().name(5)).exit_code == 0
    said = [text for text, _ in written]
    assert said[0] == coco_lvis().name(5) and said[1].startswith("32  50%") and said[2] == "unlabelled"
    assert f"verified absent (LVIS): {coco_lvis().name(3)}" in said
    assert f"not exhaustively annotated (LVIS): {coco_lvis().name(9)}" in said
    picture = cv2.imread(str(tmp_path / "000000000001.png"))[..., ::-1]
    assert (picture == (255, 240, 0)).all(axis=2).sum() > 1000
    assert show("--class", "7").exit_code == 0 and f"{coco_lvis().name(7)}: not in this picture" in [t for t, _ in written]
    wrong = show("--class", "caat")
    assert wrong.exit_code == 1 and "did you mean cat" in wrong.stderr
    assert show("--class", "cat,dog").exit_code == 2
